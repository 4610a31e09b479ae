"""One queue per loaded model, and one worker per copy of its weights.

Calls from any thread or event loop become jobs. A worker forms each batch from whatever is queued, so that
concurrent small calls share a forward pass without waiting for a timer; work marked as bulk is done a batch at
a time, behind interactive work. Workers share jobs: a large call is spread over all replicas.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future

from bge_runtime.engine.counters import Counters
from bge_runtime.engine.hooks import Hooks
from bge_runtime.engine.job import Job
from bge_runtime.engine.worker import Replica, Shared
from bge_runtime.errors import EngineStoppedError

__all__ = ["Engine"]


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
        self._shared = Shared(name, self.replicas, counters or Counters(), hooks or Hooks())
        self._queue = self._shared.queue
        self._ending = False

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._shared.closed

    @property
    def in_memory(self) -> bool:
        """Whether any copy of the weights is in memory."""
        return any(replica.backend is not None for replica in self.replicas)

    @property
    def keep_alive_s(self) -> float | None:
        """Seconds without work after which the weights are freed, until the next job; `None` keeps them."""
        return self._shared.keep_alive_s

    @keep_alive_s.setter
    def keep_alive_s(self, seconds: float | None) -> None:
        with self._shared.changed:
            self._shared.keep_alive_s = seconds
            if seconds is not None:  # somebody must watch the clock, even if no job ever comes
                self._shared.start_workers(loaded_only=True)
            self._shared.changed.notify_all()

    def room(self, *, bulk: bool) -> Future[None] | None:
        """Return `None` if the queue has room for more work, else a future to wait for before asking again.

        Back-pressure is the caller's to obey: wait here, without holding a thread, before preparing more.
        """
        with self._shared.changed:
            return None if self._shared.closed else self._queue.room(bulk)

    def submit(self, job: Job) -> Job:
        """Queue a job. Never blocks; see `room`.

        Raises:
            EngineStoppedError: The engine is closed.
        """
        # No worker would ever deliver a result for it.
        if not job.sequences:
            job.future.set_result([])
            return job
        shared = self._shared
        with shared.changed:
            if self._ending:
                return job
            if shared.closed:
                raise EngineStoppedError(f"Model {self.name!r} was unloaded while the call was on its way. Call again.")
            shared.start_workers()
            self._queue.add(job)
            shared.idle_since = time.monotonic()
            shared.changed.notify_all()
        return job

    def stop(self) -> None:
        """End the workers because the process ends; calls that are pending or come now are never answered.

        Only daemon threads can still make them, and an error there would be printed.
        """
        self._ending = True
        self._join_workers()

    def close(self) -> None:
        """End the workers, fail what is pending, and free the weights."""
        self._join_workers()
        shared = self._shared
        with shared.changed:
            jobs = self._queue.clear()
            sizes = [replica.free() for replica in self.replicas]
        shared.fail(self.replicas[0], jobs, shared.unloaded())
        for replica, size in zip(self.replicas, sizes, strict=True):
            shared.note_freed(replica, size, "closed")

    def renew(self, counters: Counters, hooks: Hooks) -> Engine:
        """Return an engine over the same weights with a queue and workers of its own, for a forked child."""
        engine = Engine([replica.renew() for replica in self.replicas], self.name, counters, hooks)
        engine._shared.keep_alive_s = self.keep_alive_s  # no setter: threads start with the first job
        return engine

    def _join_workers(self) -> None:
        """Take no more jobs, and wait for the batches that are being computed."""
        with self._shared.changed:
            self._shared.closed = True
            workers = [replica.worker for replica in self.replicas]
            self._shared.changed.notify_all()
        for worker in workers:
            if worker is not None and worker is not threading.current_thread():
                worker.join()
