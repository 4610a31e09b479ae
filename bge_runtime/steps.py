"""One body for a call and its async twin.

The body is a generator: it does the CPU work (checks, tokenising, NumPy) between its yields, and yields the
futures whose results it needs. `run` waits for them on the caller's thread; `arun` awaits them, and does the
CPU work on a small pool of its own, so that neither blocks an event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from concurrent.futures import Executor, Future
from typing import Any, TypeVar, cast

__all__ = ["Steps", "arun", "run"]

T = TypeVar("T")
Steps = Generator["Future[Any]", Any, T]


def run(steps: Steps[T]) -> T:
    """Drive the body on this thread; an interrupt cancels what it waits for."""
    try:
        value: Any = None
        while True:
            future = steps.send(value)
            value = _wait(future)
    except StopIteration as stop:
        result: T = stop.value
        return result
    finally:
        steps.close()


def _wait(future: Future[Any]) -> Any:
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


async def arun(steps: Steps[T], pool: Executor) -> T:
    """Drive the body from an event loop; a cancelled task cancels what it waits for."""
    value: Any = None
    while True:
        advance = pool.submit(_advance, steps, value)
        try:
            future, result = await asyncio.wrap_future(advance)
        except asyncio.CancelledError:
            # The pool may be inside the generator: close it when that step has ended.
            advance.add_done_callback(lambda _: steps.close())
            raise
        if future is None:
            return cast("T", result)
        try:
            value = await asyncio.wrap_future(future)
        except BaseException:
            steps.close()
            raise


def _advance(steps: Steps[T], value: Any) -> tuple[Future[Any] | None, T | None]:
    try:
        return steps.send(value), None
    except StopIteration as stop:
        return None, stop.value
