"""What computes batches: one thread per copy of a model's weights.

A worker forms each batch from whatever is queued, hands its inputs to the model, and sees to it that every result
and every error reaches the call that it belongs to.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from typing import Any, Literal, Protocol

from bge_runtime.engine.counters import Counters
from bge_runtime.engine.hooks import BatchEvent, ErrorEvent, Hooks, OutOfMemoryEvent, Place, UnloadEvent
from bge_runtime.engine.job import Job, Output
from bge_runtime.engine.queue import Batch, JobQueue
from bge_runtime.errors import (
    BackendError,
    BGEError,
    EngineStoppedError,
    ModelChangedError,
    OutOfMemoryError,
    ServerUnreachableError,
)
from bge_runtime.locks import Condition

__all__ = ["Forward", "Replica", "Shared", "Worker", "WorkerThread"]

logger = logging.getLogger("bge_runtime")

# Another process may have had the memory: try the double again after so many batches without trouble.
BATCHES_BEFORE_GROWTH = 64
# Of a server; each call alone would only wait for the same.
OF_NO_INPUT = (ServerUnreachableError, ModelChangedError)
LONGEST_WAIT_S = 3600.0  # a condition refuses very long timeouts; an early look at the clock does no harm


class Forward(Protocol):
    """A loaded model, as far as the engine knows it; `backends.base.Backend` is one.

    Attributes:
        pads: Whether a batch costs as much as if all its inputs were as long as the longest.
        bytes: Size of the weights in memory.
    """

    pads: bool
    bytes: int

    def forward(self, batch: Sequence[Any], output: Any) -> Sequence[Any]:
        """Return one result per input, in their order.

        Raises:
            OutOfMemoryError: The batch does not fit; it is halved and tried again.
        """
        ...


class Replica:
    """One copy of a model's weights, and what was learnt about its memory.

    The engine's lock guards `backend` and `worker`; all else belongs to the worker.
    """

    def __init__(
        self,
        backend: Forward | None,
        place: Place,
        load: Callable[[], Forward] | None = None,
        release: Callable[[], object] = lambda: None,
        *,
        queries_only: bool = False,
    ) -> None:
        """Wrap a loaded model.

        Args:
            backend: The model; `None` if `load` is to be called first.
            place: What events say of it.
            load: Reads the weights again after they were freed; `None` if they never are.
            release: Gives the memory of freed weights back to the device.
            queries_only: Whether it leaves bulk work to the others, so that a query never waits for theirs.
        """
        self.backend = backend
        self.place = place
        self.load = load
        self.release = release
        self.queries_only = queries_only
        self.worker: WorkerThread | None = None
        self.died = False
        self.most_tokens: int | None = None  # halved when memory runs out
        self._batches_that_fitted = 0

    def renew(self) -> Replica:
        """Return a replica over the same weights without a worker, for a forked child."""
        return Replica(self.backend, self.place, self.load, self.release, queries_only=self.queries_only)

    def free(self) -> int | None:
        """Let go of the weights and return their size; `None` if they are not in memory."""
        size = self.backend.bytes if self.backend is not None else None
        self.backend = None
        return size

    def shrink(self, padded_tokens: int) -> int:
        """Note that a batch did not fit, and return the budget from here on."""
        self.most_tokens = max(padded_tokens // 2, 1)
        self._batches_that_fitted = 0
        return self.most_tokens

    def grow(self) -> None:
        """Note that a batch fitted."""
        if self.most_tokens is None:
            return
        self._batches_that_fitted += 1
        if self._batches_that_fitted >= BATCHES_BEFORE_GROWTH:
            self.most_tokens *= 2
            self._batches_that_fitted = 0


class Shared:
    """What an engine and its workers share. `changed` guards everything that is not constant."""

    def __init__(self, name: str, replicas: Sequence[Replica], counters: Counters, hooks: Hooks) -> None:
        """Begin with an empty queue."""
        self.name = name
        self.replicas = list(replicas)
        self.counters = counters
        self.hooks = hooks
        self.queue = JobQueue()
        self.changed = Condition()
        self.busy = 0  # batches that are being computed
        self.idle_since = time.monotonic()
        self.keep_alive_s: float | None = None
        self.closed = False
        self.ending = False  # closed because the process ends
        self.threads: set[threading.Thread] = set()  # of workers, and of those that have ended but for freeing weights

    @property
    def staffed(self) -> bool:
        """Whether any replica has a worker; the caller holds the lock."""
        return any(replica.worker is not None for replica in self.replicas)

    def start_workers(self, *, loaded_only: bool = False) -> None:
        """Start a thread for every replica that has none; the caller holds the lock."""
        for number, replica in enumerate(self.replicas):
            if replica.worker is not None or (loaded_only and replica.backend is None):
                continue
            name = f"bge-{self.name}" + (f"-{number}" if len(self.replicas) > 1 else "")
            # First the books: a signal's exception may come out of `start`, whether the thread runs by then or not.
            # Should it come up after all, it finds that it is not expected, and ends.
            try:
                replica.worker = WorkerThread(self, replica, name)
                replica.worker.start()
            except BaseException:
                replica.worker = None
                raise
            self.counters.add(worker_restarts=replica.died)
            replica.died = False

    def fail(self, replica: Replica, jobs: Collection[Job], error: BGEError) -> None:
        """Give an error to the calls that still wait."""
        waiting = [job for job in jobs if not job.future.done()]
        if not waiting:
            return
        self.counters.add(errors=len(waiting))
        cause = type(error.__cause__ or error).__name__
        self.hooks.tell(ErrorEvent(**replica.place, error=type(error).__name__, cause=cause, jobs=len(waiting)))
        for job in waiting:
            job.fail(error)

    def waited_for(self) -> set[Shared]:
        """Return the engines that must go on before this one can, because its workers wait for their answers."""
        found: set[Shared] = set()
        unseen = [self]
        while unseen:
            workers = [replica.worker for replica in unseen.pop().replicas]
            more = {engine for worker in workers if worker is not None for engine in tuple(worker.asked)} - found
            found |= more
            unseen += more
        return found

    def unloaded(self) -> EngineStoppedError:
        """Return the error of calls that were pending when the engine was closed."""
        return EngineStoppedError(f"Model {self.name!r} was unloaded while the call was pending. Call again.")

    def note_freed(self, replica: Replica, size: int | None, reason: Literal["idle", "closed"]) -> None:
        """Give memory back and tell of it; not under the lock, as hooks are called."""
        if size is not None:
            replica.release()
            self.counters.add(unloads=1)
            self.hooks.tell(UnloadEvent(**replica.place, reason=reason, bytes=size))


class WorkerThread(threading.Thread):
    """The thread of a worker, which also runs hooks, and models that call others."""

    def __init__(self, shared: Shared, replica: Replica, name: str) -> None:
        """Nothing runs before `start`."""
        super().__init__(target=Worker(shared, replica).run, name=name, daemon=True)
        self._own = shared
        self.asked: list[Shared] = []

    def ask(self, engine: Shared, future: Future[Any]) -> None:
        """Note that this thread is about to wait for an engine, until `future` is done.

        Raises:
            BackendError: That engine waits for this thread.
        """
        self.asked.append(engine)  # before the look: of two threads that ask for each other, one sees the other
        future.add_done_callback(lambda _: self.asked.remove(engine))
        if engine is self._own or self._own in engine.waited_for():
            future.cancel()
            raise BackendError(
                f"Model {engine.name!r} was called by a hook, or by another model, on the thread that computes for it: "
                "the call would wait for itself. Call it from another thread, and do not wait for that one in a hook."
            )


class Worker:
    """Computes with one replica until the engine closes, the weights are freed, or it dies."""

    def __init__(self, shared: Shared, replica: Replica) -> None:
        """Nothing runs before `run`."""
        self._shared = shared
        self._replica = replica
        self._batch: Batch | None = None

    def run(self) -> None:
        """Work; the body of the thread."""
        try:
            if self._expected() and self._load():
                while self._step():
                    pass
        except BaseException as error:  # whatever ends the worker must reach those who wait for it
            logger.exception("A worker of %r ended.", self._shared.name)
            stopped = EngineStoppedError(
                f"A worker of model {self._shared.name!r} ended while the call was pending "
                f"({type(error).__name__}: {error}). Call again; a new worker starts."
            )
            stopped.__cause__ = error
            self._replica.died = True
            self._end(stopped)
        finally:
            self._shared.threads.discard(threading.current_thread())

    def _expected(self) -> bool:
        """Whether this thread is the one that computes with the replica, and not one whose start was given up."""
        with self._shared.changed:
            self._shared.threads.add(threading.current_thread())
            return self._replica.worker is threading.current_thread()

    def _load(self) -> bool:
        """Read the weights if they are not in memory; the worker ends if that fails."""
        replica = self._replica
        if replica.backend is not None or replica.load is None or self._shared.closed:
            return True
        try:
            backend = replica.load()
        except BGEError as error:
            if threading.main_thread().is_alive():  # what fails while the process ends is nobody's concern
                logger.warning("Loading %r on %r again failed: %s", self._shared.name, replica.place["device"], error)
            self._end(error)
            return False
        with self._shared.changed:
            replica.backend = backend
        return True

    def _step(self) -> bool:
        """Do one batch. A method of its own, so that an idle worker holds no results."""
        batch = self._next_batch()
        if batch is None:
            return False
        self._batch = batch
        self._compute(batch)
        self._batch = None
        shared = self._shared
        with shared.changed:
            shared.busy -= 1
            shared.idle_since = time.monotonic()
            if not shared.busy and shared.keep_alive_s is not None:
                shared.changed.notify_all()
        return True

    def _next_batch(self) -> Batch | None:
        """Wait for work; `None` ends the worker."""
        shared, replica = self._shared, self._replica
        jobs: list[Job] = []
        with shared.changed:
            while not shared.closed:
                if shared.queue.waiting(bulk=not replica.queries_only):
                    batch = self._take_batch()
                    if batch is not None:
                        return batch
                    continue
                left = self._seconds_left()
                if left is not None and left <= 0:
                    break
                shared.changed.wait(left)
            if shared.ending:
                return None
            # At once with the worker's end: a worker that starts now must find no weights and load them.
            size = replica.free()
            replica.worker = None
            reason: Literal["idle", "closed"] = "closed" if shared.closed else "idle"
            # Here and not only in `Engine.close`, whose caller may be interrupted before it comes to that.
            if shared.closed and not shared.staffed:
                jobs = shared.queue.clear()
        shared.fail(replica, jobs, shared.unloaded())
        shared.note_freed(replica, size, reason)
        return None

    def _take_batch(self) -> Batch | None:
        shared, replica = self._shared, self._replica
        assert replica.backend is not None
        batch = shared.queue.take_batch(
            pads=replica.backend.pads, most_tokens=replica.most_tokens, bulk=not replica.queries_only
        )
        if cancelled := shared.queue.take_cancelled():
            shared.counters.add(cancelled=cancelled)
        shared.busy += batch is not None
        return batch

    def _seconds_left(self) -> float | None:
        """Return how long to wait before an idle replica is freed."""
        shared = self._shared
        if shared.keep_alive_s is None or self._replica.load is None or shared.busy:
            return None
        return min(shared.idle_since + shared.keep_alive_s - time.monotonic(), LONGEST_WAIT_S)

    def _end(self, error: BGEError) -> None:
        """Fail what this worker was computing, and all else if no other worker is left to compute it."""
        shared = self._shared
        batch, self._batch = self._batch, None
        with shared.changed:
            shared.busy -= batch is not None
            self._replica.worker = None
            jobs = [] if shared.staffed or shared.ending else shared.queue.clear()
            shared.changed.notify_all()
        # Outside the lock: failing calls runs hooks and the callbacks of futures, which may submit again.
        shared.fail(self._replica, [*(batch.by_job() if batch else ()), *jobs], error)

    def _compute(self, batch: Batch) -> None:
        """Run a batch and deliver its results; an `Exception` goes to the calls concerned."""
        replica = self._replica
        assert replica.backend is not None
        sequences, lengths = batch.inputs()
        tokens = sum(lengths)
        padded = len(lengths) * max(lengths) if replica.backend.pads else tokens
        started = time.perf_counter()
        try:
            rows = _forward(replica.backend, sequences, batch.output)
        except OutOfMemoryError as error:
            self._shrink(batch, padded, error)
            return
        except Exception as error:  # noqa: BLE001 - whatever a model raises belongs to its callers
            self._isolate(batch, error)
            return
        seconds = time.perf_counter() - started
        # Before the results are delivered, since a caller may ask for more at once.
        replica.grow()
        parts = batch.by_job()
        self._record(batch, len(parts), tokens, padded, seconds)
        results = dict(zip(batch.items, rows, strict=True))
        for job, indices in parts.items():
            try:
                job.deliver([(index, results[job, index]) for index in indices])
            except Exception as error:  # noqa: BLE001 - raised by the caller's progress callback
                job.fail(error)

    def _record(self, batch: Batch, jobs: int, tokens: int, padded: int, seconds: float) -> None:
        inputs = len(batch)
        self._shared.counters.add(
            batches=1,
            merged_batches=jobs > 1,
            inputs=inputs,
            tokens=tokens,
            padded_tokens=padded,
            compute_s=seconds,
            queue_s=sum(batch.queue_s),
        )
        if self._shared.hooks.active:
            event = BatchEvent(
                **self._replica.place,
                output=str(batch.output),
                inputs=inputs,
                jobs=jobs,
                tokens=tokens,
                padded_tokens=padded,
                seconds=seconds,
                queue_s=tuple(batch.queue_s),
            )
            self._shared.hooks.tell(event)

    def _shrink(self, batch: Batch, padded: int, error: OutOfMemoryError) -> None:
        """Halve the budget and queue the inputs again; a single input that does not fit fails alone."""
        shared, replica, parts = self._shared, self._replica, batch.by_job()
        if len(batch) == 1:
            shared.fail(replica, parts, error)
            return
        budget = replica.shrink(padded)
        shared.counters.add(out_of_memory_retries=1)
        logger.warning("Out of memory at %d tokens a batch; going on with %d.", padded, budget)
        shared.hooks.tell(
            OutOfMemoryEvent(**replica.place, inputs=len(batch), padded_tokens=padded, retry_tokens=budget)
        )
        with shared.changed:
            closed = shared.closed
            for job, indices in parts.items():
                job.put_back(indices)
                if not closed:
                    shared.queue.add_again(job)
            shared.changed.notify_all()
        if closed:
            shared.fail(replica, parts, shared.unloaded())

    def _isolate(self, batch: Batch, error: Exception) -> None:
        """Give an error to the call whose input causes it, and to nobody who shared the batch."""
        parts = batch.by_job()
        if len(parts) > 1 and not isinstance(error, OF_NO_INPUT):
            for number, (job, indices) in enumerate(parts.items()):
                if not job.future.done():
                    # Each call alone, at once and not queued again: it has waited for its turn already. How long, is
                    # counted with the first of them.
                    self._compute(Batch([(job, index) for index in indices], [] if number else batch.queue_s))
            return
        if not isinstance(error, BGEError):
            wrapped = BackendError(f"The forward pass of {self._shared.name!r} failed: {type(error).__name__}: {error}")
            wrapped.__cause__ = error
            error = wrapped
        self._shared.fail(self._replica, parts, error)


def _forward(backend: Forward, sequences: Sequence[Any], output: Output) -> list[Any]:
    rows = list(backend.forward(sequences, output))
    if len(rows) != len(sequences):
        raise BackendError(f"The backend returned {len(rows)} results for {len(sequences)} inputs.")
    return rows
