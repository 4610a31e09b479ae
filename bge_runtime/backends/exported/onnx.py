"""BERT and XLM-R encoders on onnxruntime, on CPUs: float32 and int8."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bge_runtime.backends.base import Backend, LoadRequest
from bge_runtime.backends.exported.export import Graph, load_exported
from bge_runtime.backends.exported.rectangles import INPUTS, Rectangle
from bge_runtime.backends.exported.session import Session
from bge_runtime.backends.exported.weights import EncoderWeights
from bge_runtime.backends.registry import find_backend
from bge_runtime.backends.threads import usable_cores

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from bge_runtime.backends.exported.onnx_file import ModelWriter

__all__ = ["load"]

MODEL, DATA = "model.onnx", "model.data"


def load(request: LoadRequest) -> Backend:
    """Load a model from its export, which is made first when there is none; see `load_exported`."""
    return load_exported(request, _OnnxRuntime())


class _OnnxRuntime:
    record = find_backend("onnx")
    int8_levels = 127

    def build(self, weights: EncoderWeights) -> Graph:
        from bge_runtime.backends.exported.onnx_graph import INPUT_KINDS, build

        writer, output = build(weights)
        return _Model(writer, writer.message(INPUT_KINDS, output, DATA))

    def open(self, folder: Path, precision: str) -> Session:
        return _Loaded(str(folder / MODEL), _options())


class _Model:
    def __init__(self, writer: ModelWriter, message: bytes) -> None:
        self._writer = writer
        self._message = message

    def save(self, folder: Path) -> None:
        (folder / MODEL).write_bytes(self._message)
        with (folder / DATA).open("wb") as file:
            for offset, values in zip(self._writer.offsets(), self._writer.tensors.values(), strict=True):
                file.seek(offset)
                values.tofile(file)

    def open(self, precision: str) -> Session:
        import onnxruntime

        options = _options()
        tensors = self._writer.tensors
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in tensors.values()]
        options.add_external_initializers(list(tensors), values)
        return _Loaded(self._message, options)


class _Loaded:
    """A model that is ready to run."""

    def __init__(self, model: str | bytes, options: Any) -> None:
        import onnxruntime

        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def __call__(self, inputs: Rectangle) -> NDArray[np.float32]:
        arrays: dict[str, Any] = inputs.arrays()
        arrays["mask"] = (inputs.mask[:, 0, 0] == 0).astype("int32")
        rows: NDArray[np.float32] = self._session.run(None, {name: arrays[name] for name in INPUTS})[0]
        return rows


def _options() -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    # On CPUs without VNNI the product of uint8 and int8 saturates (cosines of 0.989): weights become uint8 there.
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.log_severity_level = 3  # errors; they are raised as well
    options.enable_mem_pattern = False  # patterns are kept for each shape that is met
    # Waiting threads would take the cores from torch's and the tokenizer's; measured, spinning gains nothing here.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options
