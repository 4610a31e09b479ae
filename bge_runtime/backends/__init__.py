"""Ways of executing a model, one file each."""

from __future__ import annotations

from importlib import import_module

from bge_runtime.backends.base import Backend, LayerScore, LoadRequest, Output
from bge_runtime.errors import ConfigurationError

__all__ = ["BACKENDS", "Backend", "LayerScore", "LoadRequest", "Output", "check_backend_name", "load_backend"]

# Name -> module that defines `load(request: LoadRequest) -> Backend`.
BACKENDS = {
    "packed": "bge_runtime.backends.packed",
    "torch": "bge_runtime.backends.torch",
    "onnx": "bge_runtime.backends.onnx",
    "openvino": "bge_runtime.backends.openvino",
    "llm": "bge_runtime.backends.llm",
}


def check_backend_name(name: str) -> str:
    """Return the name; `auto` is one.

    Raises:
        ConfigurationError: There is no such backend.
    """
    if name != "auto" and name not in BACKENDS:
        raise ConfigurationError(f"backend={name!r} is not known. Use 'auto' or {', '.join(map(repr, BACKENDS))}.")
    return name


def load_backend(name: str, request: LoadRequest) -> Backend:
    """Load weights into the named backend."""
    backend: Backend = import_module(BACKENDS[name]).load(request)
    return backend
