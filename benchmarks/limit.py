"""The machine's own limit: the best rate that any installed library reaches at the models' matrix shapes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

__all__ = ["SHAPES", "flops", "measure"]

LAYERS = 12
SHAPES = {"embed": 384, "score": 768}  # width of the embedder and of the reranker
ROWS = (1024, 4096)  # rows of a product: tokens of a batch
MIN_SECONDS = 0.05
REPEATS = 3

Product = Callable[[], Any]


def flops(width: int, tokens: int, squares: int, *, pruned: bool = False, layers: int = LAYERS) -> float:
    """Return the operations that texts cost, padding not counted.

    Args:
        width: Of the model.
        tokens: Of all texts together.
        squares: Sum of the squared lengths, for attention.
        pruned: Count the last layer only as far as one pooled row per text needs it: keys and values of all tokens.
        layers: Of the model.
    """
    linear, attention = 24 * width**2 * tokens, 4 * width * squares
    if not pruned:
        return float(layers * (linear + attention))
    return float((layers - 1) * (linear + attention) + 4 * width**2 * tokens)


def measure(kind: str) -> dict[str, Any]:
    """Return GFLOP/s of one layer's products: the best per library, and the best kernel for each product."""
    width = SHAPES[kind]
    products = ((width, 3 * width), (width, width), (width, 4 * width), (4 * width, width))
    started = time.perf_counter()
    rates: dict[str, dict[str, float]] = {}
    best: dict[str, float] = {}
    for precision in ("float32", "bfloat16"):
        seconds: dict[str, list[float]] = {}
        for inputs, outputs in products:
            for name, taken in _seconds(inputs, outputs, precision):
                seconds.setdefault(name, []).append(taken)
        work = sum(2 * inputs * outputs for inputs, outputs in products)
        complete = {name: values for name, values in seconds.items() if len(values) == len(products)}
        rates[precision] = {name: work / sum(values) / 1e9 for name, values in complete.items()}
        best[precision] = work / sum(map(min, zip(*complete.values(), strict=True))) / 1e9
    return {"seconds": time.perf_counter() - started, "gflops": best, "libraries": rates}


def _seconds(inputs: int, outputs: int, precision: str) -> Iterator[tuple[str, float]]:
    """Yield library -> seconds per row of one product, at the number of rows that suits it best."""
    found: dict[str, float] = {}
    for rows in ROWS:
        for build in (_torch, _numpy, _onnxruntime, _openvino):
            try:
                kernels = build(rows, inputs, outputs, precision)
            except ImportError:
                continue
            for name, product in kernels.items():
                taken = _best_time(product) / rows
                found[name] = min(taken, found.get(name, taken))
    yield from found.items()


def _best_time(product: Product) -> float:
    product()
    best = float("inf")
    for _ in range(REPEATS):
        calls, started = 0, time.perf_counter()
        while (taken := time.perf_counter() - started) < MIN_SECONDS:
            product()
            calls += 1
        best = min(best, taken / calls)
    return best


def _torch(rows: int, inputs: int, outputs: int, precision: str) -> dict[str, Product]:
    import torch

    torch.set_grad_enabled(False)
    dtype = getattr(torch, precision)
    left, weight, bias = (torch.randn(*shape, dtype=dtype) for shape in ((rows, inputs), (outputs, inputs), (outputs,)))
    kernels: dict[str, Product] = {"torch F.linear": lambda: torch.nn.functional.linear(left, weight, bias)}
    ops: Any = torch.ops.mkldnn
    if torch.backends.mkldnn.is_available() and hasattr(ops, "_linear_pointwise"):
        packed = ops._reorder_linear_weight(weight, rows)
        kernels["oneDNN, packed weights"] = lambda: ops._linear_pointwise(left, packed, bias, "none", [], "")
    return kernels


def _numpy(rows: int, inputs: int, outputs: int, precision: str) -> dict[str, Product]:
    if precision != "float32":
        return {}
    dice = np.random.default_rng(0)
    left, weight = (dice.standard_normal(shape, dtype=np.float32) for shape in ((rows, inputs), (inputs, outputs)))
    result = np.empty((rows, outputs), dtype=np.float32)
    return {"numpy": lambda: np.matmul(left, weight, out=result)}


def _onnxruntime(rows: int, inputs: int, outputs: int, precision: str) -> dict[str, Product]:
    """A model of one product; `onnx` is needed to write it."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    if precision != "float32":
        return {}
    dice = np.random.default_rng(0)
    weight = numpy_helper.from_array(dice.standard_normal((inputs, outputs), dtype=np.float32), "weight")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["left", "weight"], ["result"])],
        "product",
        [helper.make_tensor_value_info("left", TensorProto.FLOAT, [rows, inputs])],
        [helper.make_tensor_value_info("result", TensorProto.FLOAT, [rows, outputs])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    left = {"left": dice.standard_normal((rows, inputs), dtype=np.float32)}
    return {"onnxruntime": lambda: session.run(None, left)}


def _openvino(rows: int, inputs: int, outputs: int, precision: str) -> dict[str, Product]:
    import openvino
    from openvino import opset13 as opset

    dice = np.random.default_rng(0)
    left = opset.parameter([rows, inputs], np.float32)
    weight = opset.constant(dice.standard_normal((inputs, outputs), dtype=np.float32))
    model = openvino.Model([opset.matmul(left, weight, False, False)], [left])
    hint = {"float32": "f32", "bfloat16": "bf16"}[precision]
    options = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()
    request.set_input_tensor(openvino.Tensor(dice.standard_normal((rows, inputs), dtype=np.float32)))
    return {"openvino": request.infer}
