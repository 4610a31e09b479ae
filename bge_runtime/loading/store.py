"""The loaded-model store: one copy of each set of weights per process."""

from __future__ import annotations

import atexit
import json
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Literal, TypeVar

from bge_runtime.backends.base import Backend
from bge_runtime.backends.devices import release_memory
from bge_runtime.backends.execution import Execution
from bge_runtime.engine import flow as flows
from bge_runtime.engine.counters import Counters
from bge_runtime.engine.engine import Engine
from bge_runtime.engine.flow import LONGEST_END_S, Callers, Flow, PreparePool, PrepareThread, drive, process_ends
from bge_runtime.engine.hooks import Hook, Hooks, LoadEvent
from bge_runtime.engine.worker import Replica, WorkerThread
from bge_runtime.errors import BackendError
from bge_runtime.loading.loaded import LoadedModel, LoadedModelInfo
from bge_runtime.loading.source import ModelSource
from bge_runtime.loading.weights import check_alike, place_of, read_backend
from bge_runtime.locks import ForkLock

if TYPE_CHECKING:
    from bge_runtime.inputs.tokenizing import Tokenizing

__all__ = [
    "STORE",
    "add_hook",
    "arun",
    "loaded_models",
    "remove_hook",
    "run",
    "stats",
    "unload_models",
]

logger = logging.getLogger("bge_runtime")

T = TypeVar("T")


class ModelStore:
    """Loads each set of weights once, and holds what is told about all of them.

    What makes weights different in memory is the key: files, adapter, task, devices, number format, backend and
    loading arguments. Instructions, lengths and pooling are not, so embedders that differ in them share a copy.
    """

    def __init__(self) -> None:
        """Start empty."""
        self._models: dict[str, LoadedModel] = {}
        self._forking = ForkLock()
        self._begin(())

    def _begin(self, hooks: tuple[Hook, ...]) -> None:
        """Make all that one process has of its own."""
        self._lock = threading.Lock()
        # Concurrent loads with different precisions corrupt each other in transformers, so one load at a time.
        self._loading = threading.Lock()
        self._loader: threading.Thread | None = None  # who has it
        self._ending = False
        self.counters = Counters()
        self.hooks = Hooks(hooks)
        self.pool = PreparePool()
        self.callers = Callers()
        for model in self._models.values():
            model.engine = model.engine.renew(self.counters, self.hooks)
        self.process = os.getpid()

    def acquire(self, source: ModelSource, task: Literal["embed", "score"], holder: object) -> LoadedModel:
        """Return the model, loading it when nobody has, and note who holds it.

        Weights that were freed while idle are read again by the first job.

        Raises:
            BGEError: The model cannot be found, run or loaded.
        """
        self.after_fork()
        if self._ending:
            raise process_ends()
        source.check_supported()
        where = source.key  # before torch is imported: a missing model fails at once
        asker = threading.current_thread()
        model, events = _on_own_thread(partial(self._hold_or_load, where, source, task, holder, asker))
        for event in events:
            self.hooks.tell(event)
        return model

    def release(self, holder: object) -> None:
        """Forget a holder, and free the weights that nobody else holds."""
        self.after_fork()
        unused = []
        with self._lock:
            for key, model in self._models.items():
                if holder not in model.holders:
                    continue
                if len(model.holders) == 1:
                    unused.append((key, model))
                    continue
                del model.holders[holder]
                model.note_keep_alive()
            for _, model in unused:
                model.engine.retire()
        with self.callers.working():
            self._close(unused)

    def close(self) -> None:
        """Free all weights and end all threads."""
        self.after_fork()
        with self._lock:
            models = list(self._models.items())
            for _, model in models:
                model.engine.retire()
        with self.callers.working():
            self._close(models)
        self.pool.close()

    def settle(self) -> None:
        """Let no thread but the main one begin anything more, because the process ends; wait for a load."""
        if self.process != os.getpid():  # a child that has never asked for anything has no threads
            return
        self.callers.leaving = True
        if self._loading.acquire(timeout=LONGEST_END_S):
            self._loading.release()

    def stop(self) -> None:
        """End all threads because the process ends."""
        if self.process != os.getpid():
            return
        self.settle()
        self._ending = True
        with self._lock:
            models = list(self._models.values())
        for model in models:
            model.engine.stop()
        self.callers.leave()
        self.pool.stop()

    def infos(self) -> list[LoadedModelInfo]:
        """Return one row per set of weights in memory."""
        self.after_fork()
        with self._lock:
            return [model.info for model in self._models.values() if model.engine.in_memory]

    def after_fork(self) -> None:
        """Give a forked child locks, workers and a pool of its own, over the same weights; nothing else happens.

        Called by Python after forks of its own, and wherever state is taken, for those of others.
        """
        if self.process == os.getpid():
            return
        with self._forking:
            if self.process != os.getpid():
                # The old ones' locks may be held by threads that the child does not have.
                self._begin(self.hooks.active)

    def _close(self, models: list[tuple[str, LoadedModel]]) -> None:
        """Free the weights of models that are retired, and forget them."""
        # In this order: where an interrupt comes between, they are still there to be closed again.
        for key, model in models:
            model.engine.close()
            with self._lock:
                if self._models.get(key) is model:
                    del self._models[key]

    def _hold(self, key: str, source: ModelSource, holder: object) -> LoadedModel | None:
        with self._lock:
            model = self._models.get(key)
            if model is None or model.engine.closed:
                return None
            model.holders[holder] = source.keep_alive_s
            model.note_keep_alive()
            return model

    def _hold_or_load(
        self, where: str, source: ModelSource, task: Literal["embed", "score"], holder: object, asker: threading.Thread
    ) -> tuple[LoadedModel, list[LoadEvent]]:
        executions = source.executions
        check_alike(executions)
        ways = [[each.backend, each.device, each.precision] for each in executions]
        extras = [source.trust_remote_code, source.model_kwargs, source.processor_kwargs, source.config_kwargs]
        key = json.dumps([where, task, ways, source.calibration, extras], default=repr, sort_keys=True)
        # First without the loading lock: a model in memory must not wait until another one is loaded.
        found = self._hold(key, source, holder)
        if found is not None:
            return found, []
        if asker is self._loader:
            raise BackendError(
                f"Model {source.name!r} was asked for by code that runs while another model is loaded, and "
                "one is loaded at a time: the call would wait for itself. Load it before (`warm_up`), or later."
            )
        with self._loading:
            if self._ending or (self.callers.leaving and asker.daemon):
                raise process_ends()
            found = self._hold(key, source, holder)
            if found is not None:
                return found, []
            logger.info("Loading %r (%s).", source.name, executions[0].reason)
            model, events = self._load(source, task, executions)
            with self._lock:
                self._models[key] = model
                model.holders[holder] = source.keep_alive_s
                model.note_keep_alive()
            return model, events

    def _load(
        self, source: ModelSource, task: Literal["embed", "score"], executions: list[Execution]
    ) -> tuple[LoadedModel, list[LoadEvent]]:
        """Read the weights of every replica; the caller has the loading lock."""
        first = executions[0]
        backend, event = self._read(source, task, first)
        tokenizing, backends, events = backend.tokenizing, [backend], [event]
        for execution in executions[1:]:
            backend, event = self._read(source, task, execution, tokenizing)
            backends.append(backend)
            events.append(event)
        replicas = [
            Replica(
                each,
                place_of(source, where),
                partial(self._load_again, source, task, where, tokenizing),
                partial(release_memory, where.device),
                # All connections may be waiting for long answers.
                queries_only=source.is_remote and number == 0,
            )
            for number, (each, where) in enumerate(zip(backends, executions, strict=True))
        ]
        info = LoadedModelInfo(
            name=source.name,
            folder=source.location,
            task=task,
            device=first.device if source.is_remote else ", ".join(execution.device for execution in executions),
            precision=first.precision,
            backend=first.backend,
            parameters=events[0].parameters,
            bytes=sum(event.bytes for event in events),
            adapter=None if source.adapter is None else str(source.adapter),
        )
        engine = Engine(replicas, source.name, self.counters, self.hooks)
        holders = weakref.WeakKeyDictionary[object, float | None]()
        return LoadedModel(info, tokenizing, engine, source.batch_tokens(first.device), holders), events

    def _load_again(
        self, source: ModelSource, task: Literal["embed", "score"], execution: Execution, tokenizing: Tokenizing
    ) -> Backend:
        with self._loading:
            if self.callers.leaving:
                raise process_ends()
            backend, event = self._read(source, task, execution, tokenizing)
        self.hooks.tell(event)
        return backend

    def _read(
        self,
        source: ModelSource,
        task: Literal["embed", "score"],
        execution: Execution,
        tokenizing: Tokenizing | None = None,
    ) -> tuple[Backend, LoadEvent]:
        """Read the weights of one replica, which shares the tokenizer of an earlier one."""
        started = time.perf_counter()
        self._loader = threading.current_thread()
        try:
            backend = read_backend(source, task, execution)
        finally:
            self._loader = None
            # To be called before what this has imported takes itself apart: the last to come is the first to be called.
            atexit.unregister(self.settle)
            atexit.register(self.settle)
        if tokenizing is not None:
            backend.tokenizing = tokenizing
        self.counters.add(loads=1)
        event = LoadEvent(
            **place_of(source, execution),
            seconds=time.perf_counter() - started,
            parameters=backend.parameters,
            bytes=backend.bytes,
        )
        return backend, event


def _on_own_thread(function: Callable[[], T]) -> T:
    """Run a function on a thread that ends with it.

    Each thread that computes with OpenMP keeps threads of its own until it ends. With those of a caller that loads
    beside the worker's there are more than cores, and OpenMP then lets all of them sleep between two operations:
    short batches would take a third longer. And an interrupt ends the caller's wait, but not an import halfway.
    """
    future: Future[T] = Future()
    done = SimpleQueue[Future[T]]()  # its `get` is one step, which an interrupt ends or does not

    def work() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # noqa: BLE001 - it is the caller's
            future.set_exception(error)
        done.put(future)

    thread = threading.Thread(target=work, name="bge-load", daemon=True)
    thread.start()
    finished = done.get()
    thread.join()
    return finished.result()


STORE = ModelStore()
atexit.register(STORE.stop)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=STORE.after_fork)


def run(flow: Flow[T]) -> T:
    """Drive the body of a call on this thread; see `flow.run`."""
    if STORE.process != os.getpid():  # a fork that Python did not see
        STORE.after_fork()
    return flows.run(flow, STORE.callers)


async def arun(flow: Flow[T]) -> T:
    """Drive the body of a call from an event loop, its CPU work on the process's own threads; see `flow.drive`.

    Raises:
        BackendError: The loop runs on a thread that works for calls: inside a hook, or while texts are read.
    """
    if isinstance(threading.current_thread(), WorkerThread | PrepareThread):
        flow.close()
        raise BackendError(
            "A model was called in an event loop that a hook, or an iterable of texts, started on a thread that works "
            "for calls: the call could wait for itself. Call it from another thread, and wait for none there."
        )
    STORE.after_fork()
    STORE.callers.stay()
    try:
        return await drive(flow, STORE.pool)
    except Exception:
        STORE.callers.stay()
        raise


def loaded_models() -> list[LoadedModelInfo]:
    """Return one row per set of weights in memory."""
    return STORE.infos()


def unload_models() -> None:
    """Free all weights; calls that are pending fail, later ones load again."""
    STORE.close()


def stats() -> dict[str, float]:
    """Return the sums since the process started: texts, tokens, batches, truncated texts, padding share, ..."""
    STORE.after_fork()
    return STORE.counters.snapshot()


def add_hook(hook: Hook | type[Hook], *, once: bool = False) -> None:
    """Tell `hook` of every load, batch, error and unload of this process from here on; see `Hook`.

    Args:
        hook: What is told; an object that is there already is told once.
        once: Whether `hook` is a class, of which an object is made unless one is in force already.

    Raises:
        ConfigurationError: A method of `Hook` is missing.
    """
    STORE.after_fork()
    STORE.hooks.add(hook, once=once)


def remove_hook(hook: Hook) -> None:
    """Tell `hook` no more; nothing happens if it was not added."""
    STORE.after_fork()
    STORE.hooks.remove(hook)
