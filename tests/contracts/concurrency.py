"""Helpers of the contracts for calls that run at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any, TypeVar

__all__ = ["in_threads", "on_own_thread", "ticks_during"]

T = TypeVar("T")


async def ticks_during(call: Awaitable[T]) -> tuple[T, int]:
    """Await `call` and count how often the event loop came round meanwhile; a blocked loop does once."""
    ticks = 0

    async def heartbeat() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.001)
            ticks += 1

    task = asyncio.create_task(heartbeat())
    try:
        return await call, ticks
    finally:
        task.cancel()


def in_threads(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """Start all calls at the same moment; an exception is returned in its call's place."""
    barrier = Barrier(len(calls))

    def start(call: Callable[[], Any]) -> Any:
        barrier.wait(timeout=30)
        try:
            return call()
        except Exception as error:  # noqa: BLE001 - the test looks at it
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(start, calls))


def on_own_thread(call: Callable[[], T]) -> T:
    """Return what `call` returns on a thread that ends with it.

    OpenVINO gives a thread that loads a model a signal stack of its own and takes it away with the model: after that,
    any signal with a handler would end the process.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()
