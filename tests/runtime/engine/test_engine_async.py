"""Callers on an event loop: who holds a thread, who waits, and what is dropped."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace

import numpy as np
import pytest

import bge_runtime
from bge_runtime.engine.flow import PREPARE_THREADS, PreparePool
from bge_runtime.loading.store import STORE
from tests.runtime.fakes import TIMEOUT_S

LONG = [f"the dog slept in the garden {number}" for number in range(50)]


@pytest.fixture
def embedder(hub_cache, fresh_store):
    return bge_runtime.Embedder().warm_up()


@pytest.fixture
def worker(embedder):
    """Holds the model's worker at its next batch until `go_on` is set; `batches` lists their sizes."""

    held = SimpleNamespace(started=threading.Event(), go_on=threading.Event(), batches=[])
    (model,) = STORE._models.values()
    backend = model.engine.replicas[0].backend
    original = backend.forward

    def forward(batch, output):
        held.started.set()
        assert held.go_on.wait(TIMEOUT_S)
        held.batches.append(len(batch))
        return original(batch, output)

    backend.forward = forward
    yield held
    held.go_on.set()


async def test_ingestions_that_wait_for_room_keep_no_query_waiting(embedder, worker, monkeypatch):
    monkeypatch.setattr("bge_runtime.engine.queue.MAX_QUEUED_TOKENS", 100)
    monkeypatch.setattr("bge_runtime.engine.call.WINDOW", 10)
    ingestions = [asyncio.create_task(embedder.aencode_documents(LONG)) for _ in range(4 * PREPARE_THREADS)]
    (model,) = STORE._models.values()
    assert await asyncio.to_thread(worker.started.wait, TIMEOUT_S)  # or its first batch were the query
    while len(model.engine._queue._bulk.outside) < PREPARE_THREADS:
        await asyncio.sleep(0.01)
    query = asyncio.create_task(embedder.aencode_queries(["dog"]))
    await asyncio.wait_for(_prepared(STORE.pool), TIMEOUT_S)
    queued = sum(len(job.sequences) for job in model.engine._queue._bulk.jobs)
    assert queued <= 100, "ingestions that were let in one after the other stop when the queue is full"
    assert len(model.engine._queue._interactive.jobs) == 1
    worker.go_on.set()
    done, _ = await asyncio.wait([query, *ingestions], return_when=asyncio.FIRST_COMPLETED, timeout=TIMEOUT_S)
    assert query in done
    expected = embedder.encode_documents(LONG)
    for rows in await asyncio.gather(*ingestions):
        np.testing.assert_allclose(rows, expected, atol=1e-5)


async def test_a_cancelled_wait_for_room_leaves_nothing_behind(embedder, worker, monkeypatch):
    monkeypatch.setattr("bge_runtime.engine.queue.MAX_QUEUED_TOKENS", 1)
    first = asyncio.create_task(embedder.aencode_documents(LONG[:2]))
    assert await asyncio.to_thread(worker.started.wait, TIMEOUT_S)
    second = asyncio.create_task(embedder.aencode_documents(LONG[2:4]))
    await _prepared(STORE.pool)
    third = asyncio.create_task(embedder.aencode_documents(LONG[4:6]))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(third, 0.05)
    worker.go_on.set()
    await asyncio.gather(first, second)
    assert sum(worker.batches) == 4
    assert (await embedder.aencode_documents(LONG[4:6])).shape == (2, 384)


async def test_a_call_that_times_out_in_the_queue_is_never_computed(embedder, worker):
    first = asyncio.create_task(embedder.aencode_queries(["dog"]))
    assert await asyncio.to_thread(worker.started.wait, TIMEOUT_S)
    before = bge_runtime.stats()["cancelled"]
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(embedder.aencode_queries(LONG[:3]), 0.2)
    worker.go_on.set()
    await first
    await embedder.aencode_queries(["cat"])
    assert worker.batches == [1, 1]
    assert bge_runtime.stats()["cancelled"] - before == 3


async def test_a_call_that_times_out_before_it_is_prepared_is_never_queued(embedder, worker):
    release = threading.Event()
    for _ in range(PREPARE_THREADS):
        STORE.pool.submit(release.wait, TIMEOUT_S)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(embedder.aencode_queries(LONG[:3]), 0.05)
    release.set()
    worker.go_on.set()
    await embedder.aencode_queries(["cat"])
    assert worker.batches == [1]


async def test_an_event_loop_inside_an_iterable_of_texts_is_an_error_and_no_hang(embedder):
    def texts():
        yield str(asyncio.run(embedder.aencode_queries(["dog"])).shape)

    with pytest.raises(bge_runtime.BackendError, match="could wait for itself"):
        await embedder.aencode_documents(texts())
    assert (await embedder.aencode_queries(["dog"])).shape == (1, 384)


def test_a_closed_pool_does_what_it_was_given_and_starts_again():
    pool = PreparePool()
    release = threading.Event()
    running = [pool.submit(release.wait, TIMEOUT_S) for _ in range(2 * PREPARE_THREADS)]
    pool.close()
    later = pool.submit(int, "7")
    release.set()
    assert later.result(TIMEOUT_S) == 7
    assert all(future.result(TIMEOUT_S) for future in running)
    pool.close()


async def _prepared(pool):
    """Let everything run that the pool has been given so far, by its calls' own steps included."""
    for _ in range(3):
        # All threads meet: none of them is still at something that was handed in before.
        meeting = threading.Barrier(PREPARE_THREADS, timeout=TIMEOUT_S)
        await asyncio.gather(*(asyncio.wrap_future(pool.submit(meeting.wait)) for _ in range(PREPARE_THREADS)))
