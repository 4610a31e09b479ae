"""One body for a call and its async twin.

The body is a generator: it does light CPU work (checks, NumPy) between its yields. It yields the futures whose
results it needs, and heavy CPU work as functions without arguments. `run` does it all on the caller's thread;
`drive` does the CPU work on threads of its own, the heavy apart, so that an event loop never blocks and a query
never waits for the tokenising of somebody's thousands of documents.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar, cast

__all__ = ["Flow", "PreparePool", "drive", "run"]

T = TypeVar("T")
Flow = Generator["Future[Any] | Callable[[], Any]", Any, T]

PREPARE_THREADS = 4
HEAVY_THREADS = 1  # the tokenizer uses all cores by itself


class PreparePool:
    """The threads that do the CPU work of callers on an event loop.

    Nothing that runs here may wait for a worker or for room in a queue: it yields a future instead.
    """

    def __init__(self) -> None:
        """Start without threads; the first call makes them."""
        self._lock = threading.Lock()
        self._light: ThreadPoolExecutor | None = None
        self._heavy: ThreadPoolExecutor | None = None

    def submit(self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        """Run a light function soon."""
        with self._lock:
            if self._light is None:
                self._light = ThreadPoolExecutor(PREPARE_THREADS, thread_name_prefix="bge-prepare")
            return self._light.submit(function, *arguments)

    def submit_heavy(self, function: Callable[[], T]) -> Future[T]:
        """Run a function after those that were handed in before it."""
        with self._lock:
            if self._heavy is None:
                self._heavy = ThreadPoolExecutor(HEAVY_THREADS, thread_name_prefix="bge-heavy")
            return self._heavy.submit(function)

    def close(self) -> None:
        """Let the threads end when they have done what was submitted; a later call makes new ones."""
        with self._lock:
            pools, self._light, self._heavy = (self._light, self._heavy), None, None
        for pool in pools:
            if pool is not None:
                pool.shutdown(wait=False)


def run(flow: Flow[T]) -> T:
    """Drive the body on this thread; an interrupt cancels what it waits for."""
    try:
        value: Any = None
        while True:
            wanted = flow.send(value)
            value = None  # what the body has let go of need not live on here until the next value comes
            value = _wait(wanted) if isinstance(wanted, Future) else wanted()
    except StopIteration as stop:
        result: T = stop.value
        return result
    finally:
        flow.close()


def _wait(future: Future[Any]) -> Any:
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


async def drive(flow: Flow[T], pool: PreparePool) -> T:
    """Drive the body from an event loop; a cancelled task cancels what it waits for."""
    value: Any = None
    while True:
        advance = pool.submit(_advance, flow, value)
        value = None  # as in `run`
        try:
            wanted, result = await asyncio.wrap_future(advance)
        except asyncio.CancelledError:
            # The pool may be inside the generator: close it when that step has ended.
            advance.add_done_callback(lambda _: flow.close())
            raise
        # The body has ended: `_advance` gives its result in place of something to wait for.
        if wanted is None:
            return cast("T", result)
        future = wanted if isinstance(wanted, Future) else pool.submit_heavy(wanted)
        try:
            value = await asyncio.wrap_future(future)
        except BaseException:
            flow.close()
            raise


def _advance(flow: Flow[T], value: Any) -> tuple[Future[Any] | Callable[[], Any] | None, T | None]:
    try:
        return flow.send(value), None
    except StopIteration as stop:
        return None, stop.value
