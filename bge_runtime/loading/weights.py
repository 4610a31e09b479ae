"""Reading one copy of a model's weights, with errors of our own."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from bge_runtime.backends.base import Backend, LoadRequest
from bge_runtime.backends.devices import PRECISIONS, check_memory
from bge_runtime.backends.execution import Execution
from bge_runtime.backends.registry import find_backend, load_backend
from bge_runtime.engine.hooks import Place
from bge_runtime.errors import (
    BackendError,
    BGEError,
    ConfigurationError,
    ModelNotFoundError,
    OutOfMemoryError,
    UnsupportedModelError,
)
from bge_runtime.loading.source import ModelSource
from bge_runtime.models.folder import read_object
from bge_runtime.models.hub import head_files, weight_files

__all__ = ["check_alike", "place_of", "read_backend"]


def check_alike(executions: list[Execution]) -> None:
    """Refuse replicas whose results or batches would differ.

    Raises:
        ConfigurationError: Names the devices and how the model would run on each.
    """
    ways = {(each.backend, each.precision) for each in executions}
    if len(ways) > 1:
        shown = ", ".join(f"{each.device} ({each.backend}, {each.precision})" for each in executions)
        raise ConfigurationError(
            f"devices= gives replicas that run differently: {shown}. Pass devices of one kind, or set backend= and "
            "precision= so that they are the same on all."
        )


def place_of(source: ModelSource, execution: Execution) -> Place:
    """Return what events say about a replica."""
    return Place(model=source.name, backend=execution.backend, device=execution.device, precision=execution.precision)


def read_backend(source: ModelSource, task: Literal["embed", "score"], execution: Execution) -> Backend:
    """Read the weights of one replica; loads must not run at the same time.

    Raises:
        BGEError: They do not fit, are damaged, or the backend cannot run them.
    """
    if (elsewhere := source.connect()) is not None:
        return elsewhere
    request = source.request(execution.device, execution.precision, task)
    if not source.placing_arguments:
        check_memory(execution.device, _bytes_needed(source.folder, execution.precision), source.name)
    try:
        return _load(execution, request, chosen=source.backend == "auto")
    except (BGEError, KeyboardInterrupt):
        raise
    except MemoryError as error:
        raise OutOfMemoryError(f"{source.name!r} does not fit in the memory of {execution.device!r}.") from error
    except RuntimeError as error:
        raise BackendError(f"Loading {source.name!r} on {execution.device!r} failed: {error}") from error
    except BaseException as error:
        # Readers of weights and tokenizers have error classes of their own; panics of those in Rust, and the
        # SystemExit of whatever a folder makes them call, are no Exception.
        raise ModelNotFoundError(
            f"The files of {source.name!r} in {str(source.folder)!r} cannot be loaded "
            f"({type(error).__name__}: {error}). {source.advice}"
        ) from error


def _load(execution: Execution, request: LoadRequest, *, chosen: bool) -> Backend:
    """Load; where the backend was chosen and turns out not to know the model, `packed` stands in."""
    try:
        backend = load_backend(execution.backend, request)
    except UnsupportedModelError:
        # Of what `auto` chooses, only exports need a package, and only they may meet a model that they do not know.
        if not chosen or find_backend(execution.backend).package is None:
            raise
        backend = load_backend("packed", request)
    if request.task == "embed" and head_files(request.folder):
        from bge_runtime.backends.m3_heads import BackendWithHeads  # imports torch, which an export does without

        return BackendWithHeads(backend, request.folder, request.device)
    return backend


def _bytes_needed(folder: Path, precision: str) -> int:
    """Return the size of the weights in `precision`, from the size of the files and the format they store."""
    config = read_object(folder / "config.json")
    # transformers 5 writes `dtype`, those before it `torch_dtype`.
    stored = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    size = sum(file.stat().st_size for file in weight_files(folder))
    return size * PRECISIONS[precision] // PRECISIONS.get(stored, PRECISIONS["float32"])
