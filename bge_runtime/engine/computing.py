"""The forward pass of a batch: who gets the results, who gets the error, and what is tried again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection

import numpy as np
from numpy.typing import NDArray

from bge_runtime.backends.base import Backend
from bge_runtime.engine.counters import Counters
from bge_runtime.engine.hooks import BatchEvent, ErrorEvent, Hooks, OutOfMemoryEvent
from bge_runtime.engine.job import Job
from bge_runtime.engine.queue import Batch
from bge_runtime.engine.replica import Replica
from bge_runtime.errors import BackendError, BGEError, OutOfMemoryError

__all__ = ["Computing"]

logger = logging.getLogger("bge_runtime")


class Computing:
    """What all workers of an engine do with a batch."""

    def __init__(self, name: str, counters: Counters, hooks: Hooks, again: Callable[[Batch], object]) -> None:
        """Note whom to tell; `again` queues the inputs of a batch once more."""
        self._name = name
        self._counters = counters
        self._hooks = hooks
        self._again = again

    def compute(self, replica: Replica, batch: Batch) -> None:
        """Run a batch and deliver its results; an `Exception` goes to the calls concerned."""
        backend = replica.backend
        assert backend is not None
        tokens = sum(sequence.length for sequence in batch.sequences)
        padded = len(batch) * max(sequence.length for sequence in batch.sequences) if backend.pads else tokens
        started = time.perf_counter()
        try:
            rows = _forward(backend, batch)
        except OutOfMemoryError as error:
            self._shrink(replica, batch, padded, error)
            return
        except Exception as error:  # noqa: BLE001 - whatever a model raises belongs to its callers
            self._isolate(replica, batch, error)
            return
        seconds = time.perf_counter() - started
        replica.grow()
        self._record(replica, batch, tokens, padded, seconds)
        self._deliver(batch, rows)

    def fail(self, replica: Replica, jobs: Collection[Job], error: BGEError) -> None:
        """Give an error to the calls that still wait."""
        waiting = [job for job in jobs if not job.future.done()]
        if not waiting:
            return
        self._counters.add(errors=len(waiting))
        cause = type(error.__cause__ or error).__name__
        self._hooks.tell(ErrorEvent(**replica.place, error=type(error).__name__, cause=cause, jobs=len(waiting)))
        for job in waiting:
            job.fail(error)

    def _record(self, replica: Replica, batch: Batch, tokens: int, padded: int, seconds: float) -> None:
        jobs = len(batch.by_job())
        self._counters.add(
            batches=1,
            merged_batches=jobs > 1,
            inputs=len(batch),
            tokens=tokens,
            padded_tokens=padded,
            compute_s=seconds,
            queue_s=sum(batch.queue_s),
        )
        if self._hooks.active:
            event = BatchEvent(
                **replica.place,
                output=str(batch.output),
                inputs=len(batch),
                jobs=jobs,
                tokens=tokens,
                padded_tokens=padded,
                seconds=seconds,
                queue_s=tuple(batch.queue_s),
            )
            self._hooks.tell(event)

    def _deliver(self, batch: Batch, rows: list[NDArray[np.float32]]) -> None:
        results = dict(zip(batch.items, rows, strict=True))
        for job, indices in batch.by_job().items():
            try:
                job.deliver([(index, results[job, index]) for index in indices])
            except Exception as error:  # noqa: BLE001 - raised by the caller's progress callback
                job.fail(error)

    def _shrink(self, replica: Replica, batch: Batch, padded: int, error: OutOfMemoryError) -> None:
        """Halve the budget and queue the inputs again; a single input that does not fit fails alone."""
        if len(batch) == 1:
            self.fail(replica, batch.by_job(), error)
            return
        budget = replica.shrink(padded)
        self._counters.add(out_of_memory_retries=1)
        logger.warning("Out of memory at %d tokens a batch; going on with %d.", padded, budget)
        self._hooks.tell(
            OutOfMemoryEvent(**replica.place, inputs=len(batch), padded_tokens=padded, retry_tokens=budget)
        )
        self._again(batch)

    def _isolate(self, replica: Replica, batch: Batch, error: Exception) -> None:
        """Give an error to the call whose input causes it, and to nobody who shared the batch."""
        parts = batch.by_job()
        if len(parts) > 1:
            for number, (job, indices) in enumerate(parts.items()):
                if not job.future.done():
                    self.compute(replica, Batch([(job, index) for index in indices], [] if number else batch.queue_s))
            return
        if not isinstance(error, BGEError):
            wrapped = BackendError(f"The forward pass of {self._name!r} failed: {type(error).__name__}: {error}")
            wrapped.__cause__ = error
            error = wrapped
        self.fail(replica, parts, error)


def _forward(backend: Backend, batch: Batch) -> list[NDArray[np.float32]]:
    rows = list(backend.forward(batch.sequences, batch.output))
    if len(rows) != len(batch):
        raise BackendError(f"The backend returned {len(rows)} results for {len(batch)} inputs.")
    return rows
