"""Faults inside the forward pass, on a real model: what the caller sees, and that the next call works."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

import bge_runtime

TEXTS = [f"the dog slept in the garden {number}" for number in range(64)]
BACKENDS = ["packed", "torch"]


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


@pytest.fixture
def inject(backend, monkeypatch):
    """Replace the computation of a batch by `fault(batch, compute)`."""

    def replace(fault):
        from bge_runtime.backends import torch
        from bge_runtime.backends.packed import encoder as packed

        owner = {"packed": packed.PackedBackend, "torch": torch.TorchBackend}[backend]
        original = owner._run
        monkeypatch.setattr(
            owner, "_run", lambda self, batch, output: fault(batch, lambda: original(self, batch, output))
        )

    return replace


@pytest.fixture
def embedder(backend, hub_cache, fresh_store):
    return bge_runtime.Embedder(backend=backend)


def memory_errors():
    import torch

    return [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory: you tried to allocate"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
    ]


@pytest.mark.parametrize("kind", range(3), ids=["cuda", "cpu", "mps"])
def test_out_of_memory_halves_the_batches_and_all_vectors_come(embedder, inject, kind):
    expected = embedder.encode_documents(TEXTS)
    error = memory_errors()[kind]

    def fault(batch, compute):
        if len(batch) > 5:
            raise error
        return compute()

    inject(fault)
    before = bge_runtime.stats()["out_of_memory_retries"]
    np.testing.assert_allclose(embedder.encode_documents(TEXTS), expected, atol=1e-5)
    assert bge_runtime.stats()["out_of_memory_retries"] > before


def test_a_single_text_that_does_not_fit_is_out_of_memory(embedder, inject):
    def fault(batch, compute):
        raise memory_errors()[0]

    inject(fault)
    with pytest.raises(bge_runtime.OutOfMemoryError) as caught:
        embedder.encode_documents(["panda"])
    assert isinstance(caught.value, MemoryError)


def test_another_error_is_not_taken_for_out_of_memory(embedder, inject):
    calls = []

    def fault(batch, compute):
        calls.append(len(batch))
        raise RuntimeError("shapes cannot be multiplied")

    inject(fault)
    with pytest.raises(bge_runtime.BackendError, match="shapes cannot be multiplied"):
        embedder.encode_documents(TEXTS[:4])
    assert calls == [4]


@pytest.mark.parametrize("error", [SystemExit("bye"), KeyboardInterrupt()], ids=["exit", "interrupt"])
def test_a_dead_worker_is_reported_and_the_next_call_works(embedder, inject, error):
    expected = embedder.encode_documents(TEXTS[:3])
    failing = [True]

    def fault(batch, compute):
        if failing:
            failing.pop()
            raise error
        return compute()

    inject(fault)
    with pytest.raises(bge_runtime.EngineStoppedError):
        embedder.encode_documents(TEXTS[:3])
    np.testing.assert_allclose(embedder.encode_documents(TEXTS[:3]), expected, atol=1e-6)


async def test_a_dead_worker_is_reported_to_async_callers(embedder, inject):
    def fault(batch, compute):
        raise SystemExit("bye")

    inject(fault)
    with pytest.raises(bge_runtime.EngineStoppedError):
        await embedder.aencode_documents(["panda"])


async def test_a_cancelled_call_stops_computing(embedder, inject):
    started, go_on = threading.Event(), threading.Event()
    batches = []

    def fault(batch, compute):
        batches.append(len(batch))
        started.set()
        assert go_on.wait(10)
        return compute()

    expected = embedder.encode_documents(["panda"])
    inject(fault)
    slow = bge_runtime.Embedder(batch_size=1, backend=embedder.options()["backend"])
    call = asyncio.create_task(slow.aencode_documents(TEXTS))
    assert await asyncio.to_thread(started.wait, 10)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    go_on.set()
    np.testing.assert_allclose(await embedder.aencode_documents(["panda"]), expected, atol=1e-6)
    assert batches == [1, 1]


async def test_a_timeout_ends_the_callers_wait(embedder, inject):
    started, go_on = threading.Event(), threading.Event()

    def fault(batch, compute):
        started.set()
        assert go_on.wait(10)
        return compute()

    embedder.warm_up()
    inject(fault)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(embedder.aencode_queries(["panda"]), 0.05)
    go_on.set()
    assert (await embedder.aencode_queries(["panda"])).shape == (1, 384)


async def test_unloading_while_async_calls_queue_is_an_error_of_ours(embedder):
    from bge_runtime.loading.store import STORE

    embedder.warm_up()
    release = threading.Event()
    for _ in range(16):
        STORE.pool.submit(release.wait, 10)
    call = asyncio.create_task(embedder.aencode_queries(["panda"]))
    await asyncio.sleep(0)
    bge_runtime.unload_models()
    release.set()
    try:
        assert (await call).shape == (1, 384)
    except bge_runtime.EngineStoppedError:
        pass


def test_an_interrupted_wait_leaves_the_worker_alive(embedder, inject, monkeypatch):
    from concurrent.futures import Future

    expected = embedder.encode_documents(["panda"])
    original = Future.result

    def interrupted(self, timeout=None):
        monkeypatch.setattr(Future, "result", original)
        raise KeyboardInterrupt

    monkeypatch.setattr(Future, "result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        embedder.encode_documents(TEXTS)
    np.testing.assert_allclose(embedder.encode_documents(["panda"]), expected, atol=1e-6)


def test_truncation_error_names_how_many_texts_and_the_limit(hub_cache):
    embedder = bge_runtime.Embedder(truncation="error")
    with pytest.raises(bge_runtime.InputTooLongError, match="2 of 3"):
        embedder.encode_documents(["panda", "dog " * 600, "cat " * 600])
    assert embedder.truncated_count == 0


def test_a_reranker_over_an_embedder_does_not_swallow_truncation_error(hub_cache):
    with pytest.raises((bge_runtime.InputTooLongError, bge_runtime.ConfigurationError)):
        bge_runtime.Reranker(bge_runtime.Embedder(), truncation="error").score("panda", ["dog " * 600])


def test_silent_truncation_logs_nothing_and_counts(hub_cache, caplog):
    embedder = bge_runtime.Embedder(truncation="silent")
    with caplog.at_level("WARNING", logger="bge_runtime"):
        embedder.encode_documents(["panda", "dog " * 600])
    assert caplog.records == []
    assert embedder.truncated_count == 1
