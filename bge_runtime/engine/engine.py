"""One queue per loaded model, and one worker per copy of its weights.

Calls from any thread or event loop become jobs. A worker forms each batch from whatever is queued, so that
concurrent small calls share a forward pass without waiting for a timer; work marked as bulk is done a batch at
a time, behind interactive work. Workers share jobs: a large call is spread over all replicas.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Literal

from bge_runtime.backends.devices import release_memory
from bge_runtime.engine.computing import Computing
from bge_runtime.engine.counters import Counters
from bge_runtime.engine.hooks import Hooks, UnloadEvent
from bge_runtime.engine.job import Job
from bge_runtime.engine.queue import Batch, JobQueue
from bge_runtime.engine.replica import Replica
from bge_runtime.errors import BGEError, EngineStoppedError

__all__ = ["Engine", "Job"]

logger = logging.getLogger("bge_runtime")

LONGEST_WAIT_S = 3600.0  # a condition refuses very long timeouts; an early look at the clock does no harm


class Engine:
    """Runs the forward passes of one model; safe from any number of threads and event loops."""

    def __init__(
        self,
        replicas: Sequence[Replica],
        name: str,
        counters: Counters | None = None,
        hooks: Hooks | None = None,
    ) -> None:
        """Wrap a loaded model; the workers start with the first job."""
        self.name = name
        self.replicas = list(replicas)
        self._counters = counters or Counters()
        self._hooks = hooks or Hooks()
        self._computing = Computing(name, self._counters, self._hooks, self._again)
        self._queue = JobQueue()
        self._changed = threading.Condition()
        self._busy = 0
        self._idle_since = time.monotonic()
        self._keep_alive_s: float | None = None
        self._closed = self._ending = False

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    @property
    def in_memory(self) -> bool:
        """Whether any copy of the weights is in memory."""
        return any(replica.backend is not None for replica in self.replicas)

    @property
    def keep_alive_s(self) -> float | None:
        """Seconds without work after which the weights are freed, until the next job; `None` keeps them."""
        return self._keep_alive_s

    @keep_alive_s.setter
    def keep_alive_s(self, seconds: float | None) -> None:
        with self._changed:
            self._keep_alive_s = seconds
            if seconds is not None:  # somebody must watch the clock, even if no job ever comes
                self._start_workers(loaded_only=True)
            self._changed.notify_all()

    def room(self, *, bulk: bool) -> Future[None] | None:
        """Return `None` if the queue has room for more work, else a future to wait for before asking again.

        Back-pressure is the caller's to obey: wait here, without holding a thread, before preparing more.
        """
        with self._changed:
            return None if self._closed else self._queue.room(bulk)

    def full(self, *, bulk: bool) -> bool:
        """Whether the queue has no room for more work."""
        with self._changed:
            return not self._closed and self._queue.full(bulk)

    def submit(self, job: Job) -> Job:
        """Queue a job. Never blocks; see `room`.

        Raises:
            EngineStoppedError: The engine is closed.
        """
        if not job.sequences:
            job.future.set_result([])
            return job
        with self._changed:
            if self._ending:
                return job
            if self._closed:
                raise EngineStoppedError(f"Model {self.name!r} was unloaded while the call was on its way. Call again.")
            self._start_workers()
            self._queue.add(job)
            self._idle_since = time.monotonic()
            self._changed.notify_all()
        return job

    def stop(self) -> None:
        """End the workers because the process ends; calls that are pending or come now are never answered.

        Only daemon threads can still make them, and an error there would be printed.
        """
        self._ending = True
        self._join_workers()

    def _join_workers(self) -> None:
        """Take no more jobs, and wait for the batches that are being computed."""
        with self._changed:
            self._closed = True
            workers = [replica.worker for replica in self.replicas]
            self._changed.notify_all()
        for worker in workers:
            if worker is not None and worker is not threading.current_thread():
                worker.join()

    def close(self) -> None:
        """End the workers, fail what is pending, and free the weights."""
        self._join_workers()
        with self._changed:
            jobs = self._queue.clear()
            sizes = [replica.free() for replica in self.replicas]
        self._computing.fail(self.replicas[0], jobs, self._unloaded())
        for replica, size in zip(self.replicas, sizes, strict=True):
            self._note_freed(replica, size, "closed")

    def renew(self, counters: Counters, hooks: Hooks) -> Engine:
        """Return an engine over the same weights with a queue and workers of its own, for a forked child."""
        engine = Engine([replica.renew() for replica in self.replicas], self.name, counters, hooks)
        engine._keep_alive_s = self._keep_alive_s  # no setter: threads start with the first job
        return engine

    def _unloaded(self) -> EngineStoppedError:
        return EngineStoppedError(f"Model {self.name!r} was unloaded while the call was pending. Call again.")

    def _start_workers(self, *, loaded_only: bool = False) -> None:
        for number, replica in enumerate(self.replicas):
            if replica.worker is not None or (loaded_only and replica.backend is None):
                continue
            name = f"bge-{self.name}" + (f"-{number}" if len(self.replicas) > 1 else "")
            worker = threading.Thread(target=self._work, args=[replica], name=name, daemon=True)
            worker.start()
            replica.worker = worker
            self._counters.add(worker_restarts=replica.died)
            replica.died = False

    def _work(self, replica: Replica) -> None:
        try:
            if self._load(replica):
                while self._step(replica):
                    pass
        except BaseException as error:  # whatever ends the worker must reach those who wait for it
            logger.exception("A worker of %r ended.", self.name)
            stopped = EngineStoppedError(
                f"A worker of model {self.name!r} ended while the call was pending "
                f"({type(error).__name__}: {error}). Call again; a new worker starts."
            )
            stopped.__cause__ = error
            replica.died = True
            self._end_worker(replica, stopped)

    def _load(self, replica: Replica) -> bool:
        """Read the weights if they are not in memory; the worker ends if that fails."""
        if replica.backend is not None or replica.load is None:
            return True
        try:
            backend = replica.load()
        except BGEError as error:
            logger.warning("Loading %r on %r again failed: %s", self.name, replica.place["device"], error)
            self._end_worker(replica, error)
            return False
        with self._changed:
            replica.backend = backend
        return True

    def _step(self, replica: Replica) -> bool:
        """Do one batch. A method of its own, so that an idle worker holds no results."""
        batch = self._next_batch(replica)
        if batch is None:
            return False
        replica.batch = batch
        self._computing.compute(replica, batch)
        replica.batch = None
        self._note_rest()
        return True

    def _note_rest(self) -> None:
        with self._changed:
            self._busy -= 1
            self._idle_since = time.monotonic()
            if not self._busy and self._keep_alive_s is not None:
                self._changed.notify_all()

    def _next_batch(self, replica: Replica) -> Batch | None:
        """Wait for work; `None` ends the worker."""
        with self._changed:
            while not self._closed:
                if self._queue:
                    batch = self._take_batch(replica)
                    if batch is not None:
                        return batch
                    continue
                left = self._seconds_left(replica)
                if left is not None and left <= 0:
                    break
                self._changed.wait(left)
            else:
                return None
            # At once with the worker's end: a worker that starts now must find no weights and load them.
            size = replica.free()
            replica.worker = None
        self._note_freed(replica, size, "idle")
        return None

    def _take_batch(self, replica: Replica) -> Batch | None:
        assert replica.backend is not None
        batch = self._queue.take_batch(pads=replica.backend.pads, most_tokens=replica.most_tokens)
        self._counters.add(cancelled=self._queue.take_cancelled())
        self._busy += batch is not None
        return batch

    def _seconds_left(self, replica: Replica) -> float | None:
        """Return how long to wait before an idle replica is freed."""
        if self._keep_alive_s is None or replica.load is None or self._busy:
            return None
        return min(self._idle_since + self._keep_alive_s - time.monotonic(), LONGEST_WAIT_S)

    def _note_freed(self, replica: Replica, size: int | None, reason: Literal["idle", "closed"]) -> None:
        if size is not None:
            release_memory(replica.place["device"])
            self._counters.add(unloads=1)
            self._hooks.tell(UnloadEvent(**replica.place, reason=reason, bytes=size))

    def _end_worker(self, replica: Replica, error: BGEError) -> None:
        """Fail what this worker was computing, and all else if no other worker is left to compute it."""
        batch, replica.batch = replica.batch, None
        with self._changed:
            self._busy -= batch is not None
            replica.worker = None
            jobs = [] if any(each.worker for each in self.replicas) else self._queue.clear()
            self._changed.notify_all()
        self._computing.fail(replica, [*(batch.by_job() if batch else ()), *jobs], error)

    def _again(self, batch: Batch) -> None:
        """Queue a batch's inputs once more."""
        parts = batch.by_job()
        with self._changed:
            closed = self._closed
            for job, indices in parts.items():
                job.put_back(indices)
                if not closed:
                    self._queue.add_again(job)
            self._changed.notify_all()
        if closed:
            self._computing.fail(self.replicas[0], parts, self._unloaded())
