"""Ways of executing a model, one file each."""

from __future__ import annotations

from importlib import import_module

from bge_runtime.backends.base import Backend, LayerScore, LoadRequest, ModelInput, Output
from bge_runtime.errors import ConfigurationError, UnsupportedModelError
from bge_runtime.models.hub import head_files

__all__ = [
    "BACKENDS",
    "Backend",
    "LayerScore",
    "LoadRequest",
    "ModelInput",
    "Output",
    "check_backend_name",
    "load_backend",
]

# Name -> module that defines `load(request: LoadRequest) -> Backend`.
BACKENDS = {
    "packed": "bge_runtime.backends.packed.encoder",
    "torch": "bge_runtime.backends.torch",
    "onnx": "bge_runtime.backends.exported.onnx",
    "openvino": "bge_runtime.backends.exported.openvino",
    "llm": "bge_runtime.backends.llm.yes_logit",
}
# `model_type` -> the same for an architecture with a forward of its own.
ARCHITECTURES = {"clip": "bge_runtime.backends.clip"}


def check_backend_name(name: str) -> str:
    """Return the name; `auto` is one.

    Raises:
        ConfigurationError: There is no such backend.
    """
    if name != "auto" and name not in BACKENDS:
        raise ConfigurationError(f"backend={name!r} is not known. Use 'auto' or {', '.join(map(repr, BACKENDS))}.")
    return name


def load_backend(name: str, request: LoadRequest) -> Backend:
    """Load weights into the named backend, or into the architecture's own in place of `torch` and `packed`.

    Raises:
        UnsupportedModelError: The named backend does not know the architecture.
    """
    own = ARCHITECTURES.get(request.architecture)
    if own is not None and name not in ("torch", "packed"):
        raise UnsupportedModelError(
            f"backend={name!r} does not run {request.name!r}, a {request.architecture!r} model. Use backend='torch'."
        )
    backend: Backend = import_module(own or BACKENDS[name]).load(request)
    if request.task == "embed" and head_files(request.folder):
        from bge_runtime.backends.m3_heads import BackendWithHeads

        return BackendWithHeads(backend, request.folder, request.device)
    return backend
