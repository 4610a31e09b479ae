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
from bge_runtime.engine.flow import process_ends
from bge_runtime.engine.hooks import Hooks
from bge_runtime.engine.job import Job
from bge_runtime.engine.worker import Replica, Shared, WorkerThread
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
            if seconds is not None:  # somebody must watch the clock, even if no job ever comes
                self._shared.start_workers(loaded_only=True)
            self._shared.changed.notify_all()
            self._shared.keep_alive_s = seconds

    def room(self, *, bulk: bool) -> Future[None] | None:
        """Return `None` if the queue has room for more work, else a future to wait for before asking again.

        Back-pressure is the caller's to obey: wait here, without holding a thread, before preparing more.
        """
        # A worker must not wait for room that it makes itself; whether it may wait at all, `submit` looks at.
        if isinstance(threading.current_thread(), WorkerThread):
            return None
        with self._shared.changed:
            return None if self._shared.closed else self._queue.room(bulk)

    def submit(self, job: Job) -> Job:
        """Queue a job. Never blocks; see `room`.

        Raises:
            EngineStoppedError: The engine is closed.
            BackendError: It is called on the thread that would have to compute it, by a hook.
        """
        # No worker would ever deliver a result for it.
        if not job.sequences:
            job.future.set_result([])
            return job
        shared = self._shared
        thread = threading.current_thread()
        if isinstance(thread, WorkerThread):
            thread.ask(shared, job.future)
        try:
            with shared.changed:
                if not shared.closed:
                    shared.start_workers()
                    shared.idle_since = time.monotonic()
                    # Those who wait come when the lock is free. An interrupt before that must leave no job unnoticed.
                    shared.changed.notify_all()
                    self._queue.add(job)
                    return job
        except BaseException:
            job.future.cancel()
            raise
        if shared.ending:
            raise process_ends()
        raise EngineStoppedError(f"Model {self.name!r} was unloaded while the call was on its way. Call again.")

    def stop(self) -> None:
        """End the workers because the process ends; calls that are pending are never answered.

        Only daemon threads can still wait for them, and an error there would be printed.
        """
        self._shared.ending = True
        self.retire()
        self._join_workers()

    def retire(self) -> None:
        """Take no more jobs. The workers finish their batches, fail what is pending, free the weights, and end."""
        with self._shared.changed:
            self._shared.changed.notify_all()  # before the books, as in `submit`
            self._shared.closed = True

    def close(self) -> None:
        """End the workers, fail what is pending, and free the weights; again after an interrupt, what is left of it."""
        self.retire()
        self._join_workers()
        shared = self._shared
        with shared.changed:
            jobs = [] if shared.staffed else self._queue.clear()
            idle = [replica for replica in self.replicas if replica.worker is None]
            sizes = [replica.free() for replica in idle]
        shared.fail(self.replicas[0], jobs, shared.unloaded())
        for replica, size in zip(idle, sizes, strict=True):
            shared.note_freed(replica, size, "closed")

    def renew(self, counters: Counters, hooks: Hooks) -> Engine:
        """Return an engine over the same weights with a queue and workers of its own, for a forked child."""
        engine = Engine([replica.renew() for replica in self.replicas], self.name, counters, hooks)
        engine._shared.keep_alive_s = self.keep_alive_s  # no setter: threads start with the first job
        return engine

    def _join_workers(self) -> None:
        """Wait for the batches that are being computed."""
        # Not on a worker, where a hook closes the model that is being computed, or one whose hook closes this one.
        if isinstance(threading.current_thread(), WorkerThread):
            return
        with self._shared.changed:
            workers = {*self._shared.threads, *(each.worker for each in self.replicas if each.worker is not None)}
        for worker in workers:
            worker.join()
