"""What each way of executing can do: one record each, read by the choice, the errors, `bge doctor` and the docs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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

    def loader(self, architecture: str) -> Callable[[LoadRequest], Backend]:
        """Return what loads a model of this architecture; imports its module."""
        load: Callable[[LoadRequest], Backend] = import_module(self.own_modules.get(architecture, self.module)).load
        return load


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


def find_backend(name: Any) -> BackendRecord:
    """Return the record of a backend.

    Raises:
        ConfigurationError: There is no such backend, or the package that offers it is broken.
    """
    if not isinstance(name, str):
        raise ConfigurationError(f"backend={name!r} is not a name. Use 'auto' or {', '.join(map(repr, _OWN))}.")
    if name in _OWN:
        return _OWN[name]
    # Here and not before: to read what all installed packages offer takes longer than to construct an embedder.
    return _read(_other(name))


def load_backend(name: str, request: LoadRequest) -> Backend:
    """Load a model into the named backend, or into the architecture's own in place of it.

    Raises:
        UnsupportedModelError: The backend does not know the architecture.
        ConfigurationError: There is no such backend, or the package that offers it is broken.
    """
    record = find_backend(name)
    if request.architecture in _CLIP and request.architecture not in record.own_modules:
        raise UnsupportedModelError(
            f"backend={name!r} does not run {request.name!r}, a {request.architecture!r} model. Use backend='torch'."
        )
    if name in _OWN:
        return record.loader(request.architecture)(request)
    try:
        load = record.loader(request.architecture)
    except Exception as error:
        raise _broken(_other(name), error) from error
    return load(request)  # what is wrong from here on is the model's matter, not the package's


def _others() -> dict[str, list[EntryPoint]]:
    """Return what other packages offer, by name; ours cannot be replaced."""
    found: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=GROUP):
        if entry.name not in (*_OWN, "auto"):
            found.setdefault(entry.name, []).append(entry)
    return found


def _other(name: str) -> EntryPoint:
    entries = _others().get(name, [])
    if not entries:
        allowed = ", ".join(map(repr, backend_names()))
        raise ConfigurationError(f"backend={name!r} is not known. Use 'auto' or {allowed}.")
    if len(entries) > 1:  # which of them comes first is the file system's choice
        packages = " and ".join(repr(_package(entry)) for entry in entries)
        raise ConfigurationError(f"backend={name!r} is offered by {packages}. Uninstall all but one of them.")
    return entries[0]


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else "?"


def _broken(entry: EntryPoint, error: Exception) -> ConfigurationError:
    return ConfigurationError(
        f"backend={entry.name!r} of the package {_package(entry)!r} cannot be loaded ({type(error).__name__}: "
        f"{error}). Mend or uninstall that package, or use another backend."
    )


def _read(entry: EntryPoint) -> BackendRecord:
    try:
        found: Any = entry.load()
    except Exception as error:  # whatever another package does when it is imported
        raise _broken(entry, error) from error
    if not isinstance(found, BackendRecord) or found.name != entry.name:
        raise ConfigurationError(
            f"backend={entry.name!r} of the package {_package(entry)!r} is {found!r}, which is no BackendRecord of "
            "that name. Mend or uninstall that package, or use another backend."
        )
    return found
