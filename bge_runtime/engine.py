"""One queue and one worker per loaded model.

Calls from any thread or event loop become jobs. The worker forms each batch from whatever is queued, so
that concurrent small calls share a forward pass without waiting for a timer; work marked as bulk is done a
batch at a time, behind interactive work.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque

from bge_runtime.backends.base import Backend
from bge_runtime.counters import Counters
from bge_runtime.errors import BackendError, BGEError, EngineStoppedError, OutOfMemoryError
from bge_runtime.job import Job

__all__ = ["Engine", "Job"]

logger = logging.getLogger("bge_runtime")

MAX_QUEUED_TOKENS = 8_000_000
# Another process may have had the memory: try the double again after so many batches without trouble.
BATCHES_BEFORE_GROWTH = 64
# A steady stream of queries must not starve an ingestion.
INTERACTIVE_BATCHES_IN_A_ROW = 16


Batch = list[tuple[Job, int]]


class Engine:
    """Serialises the forward passes of one model; safe from any number of threads and event loops."""

    def __init__(self, backend: Backend, name: str, counters: Counters | None = None) -> None:
        """Wrap a loaded model; the worker starts with the first job."""
        self.name = name
        self._backend = backend
        self._counters = counters or Counters()
        self._interactive: deque[Job] = deque()
        self._bulk: deque[Job] = deque()
        self._changed = threading.Condition()
        self._queued_tokens = 0
        self._in_a_row = 0
        self._worker: threading.Thread | None = None
        self._closed = False
        self._fitting_tokens: int | None = None  # halved when memory runs out
        self._batches_that_fitted = 0

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def submit(self, job: Job) -> Job:
        """Queue a job; blocks while the queue is full.

        Raises:
            EngineStoppedError: The engine is closed.
        """
        if not job.sequences:
            job.future.set_result([])
            return job
        with self._changed:
            while self._queued_tokens > MAX_QUEUED_TOKENS and not self._closed:
                self._changed.wait()
            if self._closed:
                raise EngineStoppedError(f"Model {self.name!r} was unloaded while the call was on its way. Call again.")
            (self._bulk if job.bulk else self._interactive).append(job)
            self._queued_tokens += job.tokens
            if self._worker is None:
                self._worker = threading.Thread(target=self._work, name=f"bge-{self.name}", daemon=True)
                self._worker.start()
            self._changed.notify_all()
        return job

    def close(self) -> None:
        """Fail what is pending and end the worker, after the batch that it is computing."""
        with self._changed:
            self._closed = True
            worker = self._worker
            self._changed.notify_all()
        if worker is not None and worker is not threading.current_thread():
            worker.join()
        vars(self).pop("_backend", None)  # callers that still hold a closed engine do not hold its weights
        self._fail_all(EngineStoppedError(f"Model {self.name!r} was unloaded while the call was pending. Call again."))

    def renew(self, counters: Counters) -> Engine:
        """Return an engine over the same weights with a queue and a worker of its own, for a forked child."""
        return Engine(self._backend, self.name, counters)

    def _work(self) -> None:
        try:
            while self._step():
                pass
        except BaseException as error:  # whatever ends the worker must reach those who wait for it
            logger.exception("The worker of %r ended.", self.name)
            stopped = EngineStoppedError(
                f"The worker of model {self.name!r} ended while the call was pending "
                f"({type(error).__name__}: {error}). Call again; a new worker starts."
            )
            stopped.__cause__ = error
            self._fail_all(stopped)

    def _step(self) -> bool:
        """Do one batch. A method of its own, so that an idle worker holds no results."""
        batch = self._next_batch()
        if batch is not None:
            self._compute(batch)
        return batch is not None

    def _fail_all(self, error: BGEError) -> None:
        with self._changed:
            jobs = [*self._interactive, *self._bulk]
            self._interactive.clear()
            self._bulk.clear()
            self._queued_tokens = 0
            self._worker = None
            self._changed.notify_all()
        for job in jobs:
            job.fail(error)

    def _next_batch(self) -> Batch | None:
        with self._changed:
            while True:
                if self._closed:
                    return None
                self._drop_finished()
                if not (self._interactive or self._bulk):
                    self._changed.wait()
                elif batch := self._form_batch():  # empty when the job at its head was cancelled this instant
                    return batch

    def _drop_finished(self) -> None:
        for queue in (self._interactive, self._bulk):
            for job in [job for job in queue if not job.waiting]:
                queue.remove(job)
                self._queued_tokens -= job.tokens
                self._changed.notify_all()

    def _form_batch(self) -> Batch:
        bulk_turn = bool(self._bulk) and (not self._interactive or self._in_a_row >= INTERACTIVE_BATCHES_IN_A_ROW)
        queue = self._bulk if bulk_turn else self._interactive
        self._in_a_row = 0 if bulk_turn else self._in_a_row + 1
        head = queue[0]
        budget = min(head.batch_tokens, self._fitting_tokens or head.batch_tokens)
        batch: Batch = []
        longest = total = 0
        for job in queue:
            if (job.output, job.batch_size) != (head.output, head.batch_size):
                continue
            while job.waiting:
                longest = max(longest, job.next_length())
                total += job.next_length()
                cost = (len(batch) + 1) * longest if self._backend.pads else total
                if not _fits(len(batch) + 1, cost, budget, head.batch_size):
                    break
                batch.append((job, job.take()))
            if job.waiting:  # first come, first served: nobody overtakes a job that did not fit
                break
        if bulk_turn:
            queue.rotate(-1)  # callers take turns
        return batch

    def _compute(self, batch: Batch) -> None:
        sequences = [job.sequences[index] for job, index in batch]
        tokens = sum(len(sequence.ids) for sequence in sequences)
        padded = len(batch) * max(len(sequence.ids) for sequence in sequences) if self._backend.pads else tokens
        parts = _by_job(batch)
        started = time.perf_counter()
        try:
            rows = self._backend.forward(sequences, batch[0][0].output)
        except OutOfMemoryError as error:
            self._shrink(batch, padded, error)
            return
        except Exception as error:  # noqa: BLE001 - whatever a model raises belongs to its callers
            self._isolate(batch, parts, error)
            return
        self._grow()
        self._counters.add(
            batches=1,
            merged_batches=len(parts) > 1,
            inputs=len(batch),
            tokens=tokens,
            padded_tokens=padded,
            compute_s=time.perf_counter() - started,
            queue_s=sum(started - job.queued_at for job in parts if job.untouched),
        )
        results = dict(zip([(job, index) for job, index in batch], rows, strict=True))
        for job, indices in parts.items():
            try:
                job.deliver([(index, results[job, index]) for index in indices])
            except Exception as error:  # noqa: BLE001 - raised by the caller's progress callback
                job.fail(error)

    def _shrink(self, batch: Batch, padded: int, error: OutOfMemoryError) -> None:
        """Halve the budget and queue the inputs again; a single input that does not fit fails alone."""
        if len(batch) == 1:
            batch[0][0].fail(error)
            return
        self._fitting_tokens = max(padded // 2, 1)
        self._batches_that_fitted = 0
        self._counters.add(out_of_memory_retries=1)
        logger.warning("Out of memory at %d tokens a batch; going on with %d.", padded, self._fitting_tokens)
        for job, indices in _by_job(batch).items():
            job.put_back(indices)

    def _grow(self) -> None:
        self._batches_that_fitted += 1
        if self._fitting_tokens is not None and self._batches_that_fitted >= BATCHES_BEFORE_GROWTH:
            self._fitting_tokens *= 2
            self._batches_that_fitted = 0

    def _isolate(self, batch: Batch, parts: dict[Job, list[int]], error: Exception) -> None:
        """Give an error to the caller whose input causes it, and to nobody who shared the batch."""
        if len(parts) > 1:
            for job in parts:
                self._compute([(owner, index) for owner, index in batch if owner is job])
            return
        wrapped = error
        if not isinstance(error, BGEError):
            wrapped = BackendError(f"The forward pass of {self.name!r} failed: {type(error).__name__}: {error}")
            wrapped.__cause__ = error
        batch[0][0].fail(wrapped)


def _fits(count: int, cost: int, batch_tokens: int, batch_size: int | None) -> bool:
    """A single input is always a batch."""
    return count == 1 or (cost <= batch_tokens and (batch_size is None or count <= batch_size))


def _by_job(batch: Batch) -> dict[Job, list[int]]:
    parts: dict[Job, list[int]] = {}
    for job, index in batch:
        parts.setdefault(job, []).append(index)
    return parts
