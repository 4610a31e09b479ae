"""A request that is computed ends with its client, with its time, or with its result, and says which."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from bge_runtime.serving.work import ClientGone


@pytest.fixture
def admitted(client):
    work = client.app.state.work

    async def compute(seconds=30.0, error=None):
        await asyncio.sleep(seconds)
        if error is not None:
            raise error
        return "found"

    def start(receive, **how):
        request = SimpleNamespace(scope={"state": {"key": "k"}}, receive=receive)
        return work._admitted(request, 1, lambda: compute(**how))

    return start, work


async def waits():
    await asyncio.Event().wait()


async def gone():
    return {"type": "http.disconnect"}


async def breaks():
    raise ConnectionError("the way to the client is lost")


async def test_a_result_comes_while_the_client_waits(admitted):
    start, _ = admitted
    assert await start(waits, seconds=0.0) == "found"
    await asyncio.sleep(0)
    assert len(asyncio.all_tasks()) == 1  # its watch has ended with it


@pytest.mark.parametrize("receive", [gone, breaks])
async def test_a_client_that_goes_ends_the_work_however_the_server_says_it(admitted, receive):
    start, work = admitted
    async with asyncio.timeout(5):
        with pytest.raises(ClientGone):
            await start(receive)
    assert work._admission.queued_tokens == 0


async def test_time_that_is_up_is_told_as_that(admitted, monkeypatch):
    start, work = admitted
    monkeypatch.setattr(work, "_settings", work._settings.model_copy(update={"timeout_s": 0.05}))
    with pytest.raises(TimeoutError):
        await start(waits)
    with pytest.raises(TimeoutError):
        await start(waits, seconds=0.0, error=TimeoutError("of the work itself"))


async def test_a_request_that_is_cancelled_is_cancelled(admitted):
    start, _ = admitted
    task = asyncio.create_task(start(waits))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
