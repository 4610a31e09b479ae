"""The loaded-model store: one copy of each set of weights per process."""

from __future__ import annotations

import atexit
import json
import logging
import os
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bge_runtime.backends import load_backend
from bge_runtime.counters import Counters
from bge_runtime.devices import PRECISIONS, check_memory
from bge_runtime.engine import Engine
from bge_runtime.errors import BackendError, BGEError, ModelNotFoundError
from bge_runtime.hub import weight_files

if TYPE_CHECKING:
    from bge_runtime.source import ModelSource
    from bge_runtime.tokenizing import Tokenizing

__all__ = ["STORE", "LoadedModel", "LoadedModelInfo", "loaded_models", "stats", "unload_models"]

logger = logging.getLogger("bge_runtime")

PREPARE_THREADS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedModelInfo:
    """One set of weights in memory.

    Attributes:
        name: Model as first asked for.
        folder: Folder that it was read from.
        task: `embed` or `score`.
        device: Device name.
        precision: Number format of the weights.
        backend: Way of executing.
        parameters: Number of weights.
        bytes: Size of the weights in memory.
    """

    name: str
    folder: str
    task: str
    device: str
    precision: str
    backend: str
    parameters: int
    bytes: int


@dataclass(eq=False)
class LoadedModel:
    """Weights with their engine, and who holds them."""

    info: LoadedModelInfo
    tokenizing: Tokenizing
    engine: Engine
    holders: weakref.WeakSet[object]


class ModelStore:
    """Loads each set of weights once.

    What makes weights different in memory is the key: files, task, device, number format, backend and loading
    arguments. Instructions, lengths and pooling are not, so embedders that differ in them share a copy.
    """

    def __init__(self) -> None:
        """Start empty."""
        self.counters = Counters()
        self._models: dict[str, LoadedModel] = {}
        self._reset_locks()

    def _reset_locks(self) -> None:
        self._lock = threading.Lock()
        # Concurrent loads with different precisions corrupt each other in transformers, so one load at a time.
        self._loading = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None

    @property
    def pool(self) -> ThreadPoolExecutor:
        """Threads that tokenise for callers on an event loop."""
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(PREPARE_THREADS, thread_name_prefix="bge-prepare")
            return self._pool

    def acquire(self, source: ModelSource, task: Literal["embed", "score"], holder: object) -> LoadedModel:
        """Return the loaded model, loading it when nobody has, and note who holds it.

        Raises:
            BGEError: The model cannot be found, run or loaded.
        """
        source.check_supported()
        folder = os.path.realpath(source.folder)  # before torch is imported: a missing model fails at once
        executions = source.executions
        choice = executions[0]
        ways = [[each.backend, each.device, each.precision] for each in executions]
        extras = [source.trust_remote_code, source.model_kwargs, source.processor_kwargs, source.config_kwargs]
        key = json.dumps([folder, task, ways, source.calibration, extras], default=repr, sort_keys=True)
        found = self._hold(key, holder)
        if found is not None:
            return found
        with self._loading:
            found = self._hold(key, holder)
            if found is not None:
                return found
            logger.info("Loading %r (%s).", source.name, choice.reason)
            model = _load(source, task, choice.device, choice.precision, choice.backend, self.counters)
            with self._lock:
                self._models[key] = model
                model.holders.add(holder)
            return model

    def release(self, holder: object) -> None:
        """Forget a holder, and free the weights that nobody else holds."""
        with self._lock:
            mine = [key for key, model in self._models.items() if holder in model.holders]
            for key in mine:
                self._models[key].holders.discard(holder)
            unused = [self._models.pop(key) for key in mine if not self._models[key].holders]
        for model in unused:
            model.engine.close()

    def close(self) -> None:
        """Free all weights and end all workers."""
        with self._lock:
            models = list(self._models.values())
            self._models.clear()
        for model in models:
            model.engine.close()

    def infos(self) -> list[LoadedModelInfo]:
        """Return one row per set of weights in memory."""
        with self._lock:
            return [model.info for model in self._models.values()]

    def after_fork(self) -> None:
        """Give the forked child locks, workers and a pool of its own, over the same weights."""
        # The tokenizers' threads did not survive; with this they are not waited for.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        self._reset_locks()
        self.counters = Counters()
        for model in self._models.values():
            model.engine = model.engine.renew(self.counters)

    def _hold(self, key: str, holder: object) -> LoadedModel | None:
        with self._lock:
            model = self._models.get(key)
            if model is not None:
                model.holders.add(holder)
            return model


def _load(
    source: ModelSource, task: Literal["embed", "score"], device: str, precision: str, backend: str, counters: Counters
) -> LoadedModel:
    request = source.request(device, precision, task)
    check_memory(device, _bytes_needed(source.folder, precision), source.name)
    try:
        loaded = load_backend(backend, request)
    except BGEError:
        raise
    except RuntimeError as error:
        raise BackendError(f"Loading {source.name!r} on {device!r} failed: {error}") from error
    except Exception as error:  # readers of weights and tokenizers have error classes of their own
        raise ModelNotFoundError(
            f"The files of {source.name!r} in {str(source.folder)!r} cannot be loaded "
            f"({type(error).__name__}: {error}). Fetch them again: bge download {source.name} --force"
        ) from error
    counters.add(loads=1)
    info = LoadedModelInfo(
        name=source.name,
        folder=str(source.folder),
        task=task,
        device=device,
        precision=precision,
        backend=backend,
        parameters=loaded.parameters,
        bytes=loaded.bytes,
    )
    return LoadedModel(info, loaded.tokenizing, Engine(loaded, source.name, counters), weakref.WeakSet())


def _bytes_needed(folder: Path, precision: str) -> int:
    """Return the size of the weights in `precision`, from the size of the files and the format they store."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    stored = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    size = sum(file.stat().st_size for file in weight_files(folder))
    return size * PRECISIONS[precision] // PRECISIONS.get(stored, PRECISIONS["float32"])


STORE = ModelStore()
atexit.register(STORE.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=STORE.after_fork)


def loaded_models() -> list[LoadedModelInfo]:
    """Return one row per set of weights in memory."""
    return STORE.infos()


def unload_models() -> None:
    """Free all weights; calls that are pending fail, later ones load again."""
    STORE.close()


def stats() -> dict[str, float]:
    """Return the sums since the process started: texts, tokens, batches, truncated texts, padding share, ..."""
    return STORE.counters.snapshot()
