"""What each way of executing can do: one record each, read by the choice, the errors, `bge doctor` and the docs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from bge_runtime.backends.base import Backend, LoadRequest
from bge_runtime.errors import ConfigurationError, UnsupportedModelError

__all__ = ["ENCODERS", "BackendRecord", "backend_names", "find_backend", "load_backend"]

# Other packages name their records in this group of their metadata.
GROUP = "bge_runtime.backends"
# `model_type` of what is computed here, layer by layer, rather than by transformers.
ENCODERS = ("bert", "xlm-roberta", "roberta")
HALF = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True, slots=True)
class BackendRecord:
    """A way of executing.

    Attributes:
        name: What `backend=` takes.
        module: Defines `load(request: LoadRequest) -> Backend`.
        runs: What it runs, in words.
        cpu_precisions: Number formats that it computes in on a CPU; the first is the default.
        gpu_precisions: The same on a GPU; none if it runs on CPUs only.
        package: Package that it needs beside the runtime's own.
        install: What pip is to install for that.
        padding: How much of a batch is padding, in words.
        scores: Kinds of score (`ModelSpec.score`) that it computes, and no other backend; where there are some, it
            computes nothing else.
        own_modules: By `model_type`, the module that takes the place of `module`.
    """

    name: str
    module: str
    runs: str
    cpu_precisions: tuple[str, ...]
    gpu_precisions: tuple[str, ...] = ()
    package: str | None = None
    install: str | None = None
    padding: str = "to the longest text of a batch"
    scores: tuple[str, ...] = ()
    own_modules: Mapping[str, str] = field(default_factory=dict)

    def load(self, request: LoadRequest) -> Backend:
        """Load a model.

        Raises:
            UnsupportedModelError: The backend does not know the architecture.
        """
        backend: Backend = import_module(self.own_modules.get(request.architecture, self.module)).load(request)
        return backend


_CLIP = {"clip": "bge_runtime.backends.clip"}
_EXPORTED = "the same models as `packed`"
# In the order in which messages and tables name them.
_OWN = {
    record.name: record
    for record in (
        BackendRecord(
            name="packed",
            module="bge_runtime.backends.packed.encoder",
            runs="BERT, RoBERTa and XLM-R encoders and classifiers",
            cpu_precisions=("float32", "bfloat16", "float16", "int8"),
            gpu_precisions=HALF,
            padding="none",
            own_modules=_CLIP,
        ),
        BackendRecord(
            name="torch",
            module="bge_runtime.backends.torch",
            runs="whatever sentence-transformers loads",
            cpu_precisions=HALF,
            gpu_precisions=HALF,
            own_modules=_CLIP,
        ),
        BackendRecord(
            name="onnx",
            module="bge_runtime.backends.exported.onnx",
            runs=_EXPORTED,
            cpu_precisions=("float32", "int8"),
            package="onnxruntime",
            install="bge-integrations[onnx]",
            padding="inside attention only",
        ),
        BackendRecord(
            name="openvino",
            module="bge_runtime.backends.exported.openvino",
            runs=_EXPORTED,
            cpu_precisions=("float32", "bfloat16", "int8"),
            package="openvino",
            install="bge-integrations[openvino]",
            padding="inside attention only",
        ),
        BackendRecord(
            name="llm",
            module="bge_runtime.backends.llm.yes_logit",
            runs="LLM rerankers",
            cpu_precisions=HALF,
            gpu_precisions=HALF,
            scores=("yes_logit", "layerwise"),
        ),
    )
}


def backend_names() -> list[str]:
    """Return every name that `backend=` takes beside `auto`; other packages' behind ours."""
    return [*_OWN, *sorted(_others())]


def find_backend(name: str) -> BackendRecord:
    """Return the record of a backend.

    Raises:
        ConfigurationError: There is no such backend, or the package that offers it is broken.
    """
    if name in _OWN:
        return _OWN[name]
    # Here and not before: to read what all installed packages offer takes longer than to construct an embedder.
    entry = _others().get(name)
    if entry is None:
        allowed = ", ".join(map(repr, backend_names()))
        raise ConfigurationError(f"backend={name!r} is not known. Use 'auto' or {allowed}.")
    return _read(entry)


def load_backend(name: str, request: LoadRequest) -> Backend:
    """Load a model into the named backend, or into the architecture's own in place of it.

    Raises:
        UnsupportedModelError: The backend does not know the architecture.
    """
    record = find_backend(name)
    if request.architecture in _CLIP and request.architecture not in record.own_modules:
        raise UnsupportedModelError(
            f"backend={name!r} does not run {request.name!r}, a {request.architecture!r} model. Use backend='torch'."
        )
    return record.load(request)


def _others() -> dict[str, EntryPoint]:
    """Return what other packages offer, by name; ours cannot be replaced."""
    return {entry.name: entry for entry in entry_points(group=GROUP) if entry.name not in (*_OWN, "auto")}


def _read(entry: EntryPoint) -> BackendRecord:
    package = entry.dist.name if entry.dist else "?"
    try:
        found: Any = entry.load()
    except Exception as error:  # whatever another package does when it is imported
        raise ConfigurationError(
            f"backend={entry.name!r} of the package {package!r} cannot be loaded ({type(error).__name__}: {error}). "
            "Mend or uninstall that package, or use another backend."
        ) from error
    if not isinstance(found, BackendRecord) or found.name != entry.name:
        raise ConfigurationError(
            f"backend={entry.name!r} of the package {package!r} is {found!r}, which is no BackendRecord of that name. "
            "Mend or uninstall that package, or use another backend."
        )
    return found
