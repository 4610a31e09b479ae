"""BERT and XLM-R encoders on OpenVINO, on CPUs: float32, bfloat16 and int8."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bge_runtime.backends.base import Backend, LoadRequest
from bge_runtime.backends.exported.export import Graph, load_exported
from bge_runtime.backends.exported.rectangles import Rectangle
from bge_runtime.backends.exported.session import Session
from bge_runtime.backends.exported.weights import EncoderWeights
from bge_runtime.backends.registry import find_backend
from bge_runtime.backends.threads import usable_cores

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["load"]

MODEL = "model.xml"
# x86 processors without VNNI add two products of a byte and a weight in 16 bits, which saturate. Smaller weights keep
# them apart. Lowest cosine with float32 of 60 abstracts, all-MiniLM-L6-v2 on AVX2: 127 levels 0.9911, 95 0.9954,
# 80 0.9952, 63 (where no sum can saturate) 0.9938.
LEVELS_OF_16_BIT_SUMS = 95


def load(request: LoadRequest) -> Backend:
    """Load a model from its export, which is made first when there is none; see `load_exported`."""
    return load_exported(request, _OpenVINO())


class _OpenVINO:
    record = find_backend("openvino")

    @property
    def int8_levels(self) -> int:
        return 127 if _adds_in_32_bits() else LEVELS_OF_16_BIT_SUMS

    def build(self, weights: EncoderWeights) -> Graph:
        from bge_runtime.backends.exported.openvino_graph import build

        return _Model(build(weights))

    def open(self, folder: Path, precision: str) -> Session:
        return _Compiled(folder / MODEL, precision)


def _adds_in_32_bits() -> bool:
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    facts = Path("/proc/cpuinfo")
    return facts.exists() and "vnni" in facts.read_text(encoding="ascii", errors="replace")


class _Model:
    def __init__(self, model: Any) -> None:
        self._model = model

    def save(self, folder: Path) -> None:
        import openvino

        openvino.save_model(self._model, folder / MODEL, compress_to_fp16=False)

    def open(self, precision: str) -> Session:
        return _Compiled(self._model, precision)


class _Compiled:
    """A model that is ready to run."""

    def __init__(self, model: Any, precision: str) -> None:
        import openvino

        settings = {
            # What is not int8 in an int8 graph, attention above all, runs in bfloat16 where the processor has it.
            "INFERENCE_PRECISION_HINT": "f32" if precision == "float32" else "bf16",
            "PERFORMANCE_HINT": "LATENCY",  # one batch at a time, on all cores
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": usable_cores(),  # of its own accord it counts those of the whole machine
            # Kernels are kept by shape, 5,000 of them unless told otherwise: hundreds of megabytes of an int8 model.
            "CPU_RUNTIME_CACHE_CAPACITY": 256,
        }
        self._request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()

    def __call__(self, inputs: Rectangle) -> NDArray[np.float32]:
        rows: NDArray[np.float32] = self._request.infer(inputs.arrays(), share_inputs=True)[0]
        return rows
