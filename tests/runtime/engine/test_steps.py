"""The drivers of a call's body hold nothing that the body has let go of."""

from __future__ import annotations

import asyncio
import gc
import threading
import traceback
import weakref
from concurrent.futures import Future

import pytest

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


def body(log, *wanted):
    try:
        for each in wanted:
            log.append((yield each))
        return "done"
    finally:
        log.append("closed")


def later(result, seconds=0.05):
    future = Future()
    threading.Timer(seconds, lambda: future.set_result(result)).start()
    return future


async def ended(log, *, seconds=5.0):
    async with asyncio.timeout(seconds):
        while "closed" not in log:
            await asyncio.sleep(0.01)


@pytest.fixture
def pool():
    pool = PreparePool()
    yield pool
    pool.close()


async def test_the_event_loop_wakes_once_however_many_steps_a_call_has(pool, monkeypatch):
    loop, woken, log = asyncio.get_running_loop(), [], []
    wake = loop.call_soon_threadsafe

    def counting(*arguments, **named):
        woken.append(arguments[0])
        return wake(*arguments, **named)

    monkeypatch.setattr(loop, "call_soon_threadsafe", counting)
    assert await drive(body(log, later(1), lambda: 2, later(3)), pool) == "done"
    assert log == [1, 2, 3, "closed"]
    assert len(woken) == 1


async def test_a_call_that_is_cancelled_in_the_middle_of_a_step_ends_with_it(pool):
    log, working, may_go_on, unused = [], threading.Event(), threading.Event(), Future()

    def slow():
        try:
            working.set()
            may_go_on.wait(5)
            log.append((yield unused))
        finally:
            log.append("closed")

    task = asyncio.create_task(drive(slow(), pool))
    await asyncio.to_thread(working.wait, 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert log == []
    may_go_on.set()
    await ended(log)
    assert log == ["closed"]


async def test_a_call_that_is_cancelled_while_it_waits_goes_on_no_more_even_if_nobody_can_stop_what_it_waits_for(pool):
    log, stubborn = [], Future()
    stubborn.set_running_or_notify_cancel()
    task = asyncio.create_task(drive(body(log, stubborn), pool))
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    stubborn.set_result("too late")
    await ended(log)
    assert log == ["closed"]


async def test_what_goes_wrong_comes_to_the_caller_and_ends_the_body(pool):
    log, broken = [], Future()
    broken.set_exception(ValueError("of a batch"))
    with pytest.raises(ValueError, match="of a batch"):
        await drive(body(log, later(1), broken), pool)
    assert log == [1, "closed"]

    def fails():
        raise KeyError("of heavy work")

    with pytest.raises(KeyError, match="of heavy work"):
        await drive(body([], fails), pool)


async def test_a_future_that_somebody_else_cancels_cancels_the_call(pool):
    log, dropped = [], Future()
    dropped.cancel()
    with pytest.raises(asyncio.CancelledError):
        await drive(body(log, dropped), pool)
    assert log == ["closed"]


async def test_what_goes_wrong_when_the_body_is_closed_comes_to_the_caller_too(pool):
    def untidy(wanted):
        try:
            yield wanted
        finally:
            raise OSError("of a broken pipe")

    broken = Future()
    broken.set_exception(ValueError("of a batch"))
    async with asyncio.timeout(5):
        with pytest.raises(OSError, match="of a broken pipe"):
            await drive(untidy(broken), pool)


def test_a_call_whose_event_loop_was_closed_ends_with_the_step_that_it_is_in(pool):
    log, first, second = [], Future(), Future()
    loop = asyncio.new_event_loop()
    task = loop.create_task(drive(body(log, first, second), pool))
    loop.run_until_complete(asyncio.sleep(0.1))
    loop.close()  # without having cancelled anything, as after an interrupt
    first.set_result(1)
    asyncio.run(ended(log))
    assert log == ["closed"]
    assert not task.done()
    task._log_destroy_pending = False


async def test_a_call_that_nobody_awaits_any_more_goes_on_no_more(pool):
    log, wanted = [], Future()
    call = drive(body(log, wanted, Future()), pool)
    call.send(None)
    await asyncio.sleep(0.1)
    call.close()
    await ended(log)
    assert log == ["closed"]
    assert wanted.cancelled()


async def test_an_error_that_many_calls_share_does_not_grow_with_them(pool):
    futures = [Future() for _ in range(50)]
    calls = [asyncio.create_task(drive(body([], each), pool)) for each in futures]
    await asyncio.sleep(0.1)
    shared = ValueError("of a batch")
    for each in futures:
        each.set_exception(shared)  # while the event loop looks elsewhere
    for call in calls:
        with pytest.raises(ValueError, match="of a batch"):
            await call
    assert len(traceback.format_exception(shared)) < 20
