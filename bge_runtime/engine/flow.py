"""One body for a call and its async twin.

The body is a generator: it does light CPU work (checks, NumPy) between its yields. It yields the futures whose
results it needs, and heavy CPU work as functions without arguments. `run` does it all on the caller's thread;
`drive` does the CPU work on threads of its own, the heavy apart, so that an event loop never blocks and a query
never waits for the tokenising of somebody's thousands of documents.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, Generic, TypeVar, cast

from bge_runtime.errors import EngineStoppedError
from bge_runtime.locks import Promise

__all__ = ["LONGEST_END_S", "Callers", "Flow", "PreparePool", "PrepareThread", "drive", "process_ends", "run"]

T = TypeVar("T")
Flow = Generator["Future[Any] | Callable[[], Any]", Any, T]

PREPARE_THREADS = 4
HEAVY_THREADS = 1  # the tokenizer uses all cores by itself
# What threads do when the process ends may take longer than anybody wants to wait: a load, a step of a call.
LONGEST_END_S = 10.0
LONGEST_STEP_S = 2.0


class PreparePool:
    """The threads that do the CPU work of callers on an event loop.

    Nothing that runs here may wait for a worker or for room in a queue: it yields a future instead.
    """

    def __init__(self) -> None:
        """Start without threads; the first call makes them."""
        self._ending = False
        self._light = _Threads(PREPARE_THREADS, "bge-prepare")
        self._heavy = _Threads(HEAVY_THREADS, "bge-heavy")

    def submit(self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        """Run a light function soon."""
        if self._ending:
            raise process_ends()
        return self._light.submit(function, *arguments)

    def submit_heavy(self, function: Callable[[], T]) -> Future[T]:
        """Run a function after those that were handed in before it."""
        if self._ending:
            raise process_ends()
        return self._heavy.submit(function)

    def close(self) -> None:
        """Let the threads end when they have done what was submitted; a later call makes new ones."""
        self._light.close()
        self._heavy.close()

    def stop(self) -> None:
        """Let the threads end because the process does, and wait for what they are doing."""
        self._ending = True
        threads = [*self._light.close(), *self._heavy.close()]
        end = time.monotonic() + LONGEST_END_S
        for thread in threads:
            thread.join(max(end - time.monotonic(), 0))


class PrepareThread(threading.Thread):
    """One of a pool's threads."""


class _Threads:
    """Some threads that do what is handed in, in its order; started as work comes.

    `ThreadPoolExecutor` is not used: a signal's exception in its `submit` can leave a lock of the whole process taken,
    and a child of a fork that Python did not see waits for the parent's threads when it ends.
    """

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._lock = threading.Lock()
        self._work = SimpleQueue[Any]()
        self._threads: list[threading.Thread] = []

    def submit(self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        promise = Promise[T]()
        with self._lock:
            if len(self._threads) < self._most:
                self._start()
            self._work.put((promise, function, arguments))
        return promise

    def close(self) -> list[threading.Thread]:
        with self._lock:
            threads, self._threads = self._threads, []
            work, self._work = self._work, SimpleQueue()
        for _ in threads:
            work.put(None)
        return threads

    def _start(self) -> None:
        name = f"{self._name}_{len(self._threads)}"
        thread = PrepareThread(target=_work_off, args=(self._work,), name=name, daemon=True)
        try:
            self._threads.append(thread)
            thread.start()
        except BaseException:  # a signal's exception too, by which it may run: one more does no harm
            self._threads = [each for each in self._threads if each is not thread]
            raise


def _work_off(work: SimpleQueue[Any]) -> None:
    while (task := work.get()) is not None:
        promise, function, arguments = task
        if promise.set_running_or_notify_cancel():
            try:
                promise.set_result(function(*arguments))
            except BaseException as error:  # noqa: BLE001 - it is the caller's
                promise.set_exception(error)
        del task, promise, function, arguments  # what is done need not live on until the next comes


class Callers:
    """The threads that work for their calls just now, instead of waiting for an answer.

    Only daemon threads still call models when the process ends, and they are cut off wherever they are: in the middle
    of native code, that aborts the process. What they return or raise reaches nobody, or is printed.
    """

    def __init__(self) -> None:
        """Begin with nobody."""
        self.at_work: set[int] = set()
        self.leaving = False

    def stay(self) -> None:
        """Hold a daemon thread for good; nothing happens on others, as exit handlers may use models."""
        if self.leaving and threading.current_thread().daemon:
            self.at_work.discard(threading.get_ident())
            SimpleQueue[None]().get()

    def leave(self) -> None:
        """Wait until all who are at work have come to an end, or to a wait, but not for long."""
        end = time.monotonic() + LONGEST_STEP_S
        while self.at_work - {threading.get_ident()} and time.monotonic() < end:
            time.sleep(0.001)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Count this thread as one at work."""
        self.at_work.add(threading.get_ident())
        try:
            self.stay()
            yield
        finally:
            self.at_work.discard(threading.get_ident())


def process_ends() -> EngineStoppedError:
    """Return the error of calls that come too late."""
    return EngineStoppedError(
        "The process is ending, and its models have stopped. A function of `atexit` can use models if it is registered "
        "after the first import of an embedder or reranker, and they are loaded before."
    )


def run(flow: Flow[T], callers: Callers) -> T:
    """Drive the body on this thread; an interrupt cancels what it waits for."""
    thread = threading.get_ident()
    try:
        value: Any = None
        while True:
            callers.at_work.add(thread)
            if callers.leaving:
                callers.stay()
            wanted = flow.send(value)
            value = None  # what the body has let go of need not live on here until the next value comes
            if isinstance(wanted, Future):
                callers.at_work.discard(thread)
                value = _wait(wanted)
            else:
                value = wanted()
    except StopIteration as stop:
        result: T = stop.value
        return result
    except Exception:
        if callers.leaving:
            callers.stay()
        raise
    finally:
        callers.at_work.discard(thread)
        flow.close()


def _wait(future: Future[Any]) -> Any:
    # Not by `result`, which waits in Python code: an interrupt there can come out as another error.
    done = SimpleQueue[Future[Any]]()
    try:
        future.add_done_callback(done.put)
        return done.get().result()
    except BaseException:
        future.cancel()
        raise


async def drive(flow: Flow[T], pool: PreparePool) -> T:
    """Drive the body from an event loop; a cancelled task cancels what it waits for."""
    call = _Driven(flow, pool)
    try:
        return await asyncio.wrap_future(call.result)
    except BaseException:  # that nobody awaits it any more, too
        call.cancel()
        raise


class _Driven(Generic[T]):
    """A body on the pool's threads, which hand it from one step to the next: the event loop wakes for its result alone.

    Attributes:
        result: What the body returns, or raises.
    """

    def __init__(self, flow: Flow[T], pool: PreparePool) -> None:
        """Begin with the first step."""
        self.result = Promise[T]()
        self._flow = flow
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._waits_for: Future[Any] | None = None
        self._is_cancelled = False
        self._step(None)

    def cancel(self) -> None:
        """Cancel what the body waits for, or else let its step be the last one."""
        self._is_cancelled = True
        if (future := self._waits_for) is not None:
            future.cancel()

    @property
    def _is_unwanted(self) -> bool:
        """Whether nobody waits: a loop that was closed has cancelled nothing."""
        return self._is_cancelled or self._loop.is_closed()

    def _step(self, value: Any) -> None:
        self._follow(self._pool.submit(_advance, self._flow, value), self._stepped)

    def _follow(self, future: Future[Any], then: Callable[[Future[Any]], None]) -> None:
        # In this order: of two threads, this one and one that cancels, the later sees what the other has said.
        self._waits_for = future
        if self._is_cancelled:
            future.cancel()
        future.add_done_callback(then)

    def _stepped(self, advance: Future[Any]) -> None:
        """Go on after a step, on the thread that made it."""
        if (error := _error_of(advance)) is not None:
            self._end(error)
            return
        wanted, found = advance.result()
        # The body has ended: `_advance` gives its result in place of something to wait for.
        if wanted is None:
            self._end(found=found)
        elif self._is_unwanted:
            self._end(CancelledError())
        else:
            try:
                future = wanted if isinstance(wanted, Future) else self._pool.submit_heavy(wanted)
            except BaseException as problem:  # noqa: BLE001 - it is the caller's
                self._end(problem)
            else:
                self._follow(future, self._answered)

    def _answered(self, future: Future[Any]) -> None:
        """Go on with what the body has waited for, on the thread that brought it, which does not do the body's work."""
        if (error := _error_of(future)) is not None:
            self._end(error)
        elif self._is_unwanted:
            self._end(CancelledError())
        else:
            try:
                self._step(future.result())
            except BaseException as problem:  # noqa: BLE001 - it is the caller's
                self._end(problem)

    def _end(self, error: BaseException | None = None, found: T | None = None) -> None:
        self._waits_for = None  # it refers to this call again
        try:
            self._flow.close()
        except BaseException as problem:  # noqa: BLE001 - it is the caller's: nothing else may keep the result from it
            error = problem
        if isinstance(error, CancelledError):
            self.result.cancel()
        if not self.result.set_running_or_notify_cancel():
            return
        if error is None:
            self.result.set_result(cast("T", found))
        else:
            self.result.set_exception(error)


def _error_of(future: Future[Any]) -> BaseException | None:
    """Return why a future has no result, without raising it: many calls share one, and each would add its traceback."""
    return CancelledError() if future.cancelled() else future.exception()


def _advance(flow: Flow[T], value: Any) -> tuple[Future[Any] | Callable[[], Any] | None, T | None]:
    try:
        return flow.send(value), None
    except StopIteration as stop:
        return None, stop.value
