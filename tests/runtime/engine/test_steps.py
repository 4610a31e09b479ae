"""The drivers of a call's body hold nothing that the body has let go of."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import Future

from bge_runtime.engine.flow import Callers, PreparePool, drive, run


class Rows:
    """Stands for the results of a large window."""


def two_windows(seen):
    first = Future()
    first.set_result(Rows())
    rows = yield first
    seen.append(weakref.ref(rows))
    del rows, first
    second = Future()
    threading.Timer(0.2, lambda: second.set_result(alive(seen[0]))).start()
    return (yield second)


def alive(reference):
    gc.collect()
    return reference() is not None


def test_a_call_holds_no_result_that_was_used_while_it_waits_for_the_next():
    assert run(two_windows([]), Callers()) is False


async def test_neither_does_its_async_twin():
    pool = PreparePool()
    try:
        assert await drive(two_windows([]), pool) is False
    finally:
        pool.close()
