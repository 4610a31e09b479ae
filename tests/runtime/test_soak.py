"""Many callers, two models, injected faults: every result right, every error at its own caller, nothing left over.

`BGE_SOAK_SECONDS` sets the length; the default is short.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections import Counter

import numpy as np
import pytest

import bge_runtime
from bge_runtime.loading import STORE

SECONDS = float(os.environ.get("BGE_SOAK_SECONDS", "20"))
CALLERS = 64
FAULT_SHARE = 0.05
SUBJECTS = ("the dog", "a red house", "my blue garden", "the little river", "one green tree", "seven fast models")
TEXTS = [f"{subject} {'and the water runs ' * (number % 9)}{number}" for number, subject in enumerate(SUBJECTS * 10)]
QUERIES = [f"where is {subject}" for subject in SUBJECTS]
KINDS = ("exception", "out_of_memory", "cancelled", "killed")


class InjectedError(Exception):
    """Raised by a forward pass that a caller's fault was planted in."""


class Faults:
    """Plants faults in the backends of loaded models, and counts those that fired."""

    def __init__(self) -> None:
        self.fired: Counter[str] = Counter()
        self.planted: Counter[str] = Counter()
        self._lock = threading.Lock()

    def plant(self, kind: str) -> None:
        with self._lock:
            self.planted[kind] += 1

    def _take(self, kind: str) -> bool:
        with self._lock:
            if not self.planted[kind]:
                return False
            self.planted[kind] -= 1
            self.fired[kind] += 1
            return True

    def wrap(self, backend):
        original = backend.forward

        def forward(batch, output):
            if len(batch) > 1 and self._take("out_of_memory"):
                raise bge_runtime.OutOfMemoryError("injected")
            if self._take("exception"):
                raise InjectedError("injected")
            if self._take("killed"):
                raise SystemExit("injected")
            return original(batch, output)

        backend.forward = forward


class Soak:
    """The callers' work, and the answers computed beforehand by one thread."""

    def __init__(self) -> None:
        self.embedder = bge_runtime.Embedder()
        self.reranker = bge_runtime.Reranker("BAAI/bge-reranker-base")
        self.documents = self.embedder.encode_documents(TEXTS)
        self.queries = self.embedder.encode_queries(QUERIES)
        self.scores = {query: self.reranker.score(query, TEXTS) for query in QUERIES}
        self.faults = Faults()
        self.done: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.deadline = 0.0

    def job(self, dice: random.Random):
        """Return the name, the sync call, the async call and the expected answer of a random request."""
        kind = dice.choice(("query", "documents", "rerank"))
        if kind == "query":
            index = dice.randrange(len(QUERIES))
            text = [QUERIES[index]]
            calls = self.embedder.encode_queries, self.embedder.aencode_queries
            return (text,), calls, self.queries[[index]]
        chosen = dice.sample(range(len(TEXTS)), dice.randint(1, 12))
        texts = [TEXTS[index] for index in chosen]
        if kind == "documents":
            calls = self.embedder.encode_documents, self.embedder.aencode_documents
            return (texts,), calls, self.documents[chosen]
        query = dice.choice(QUERIES)
        return (query, texts), (self.reranker.score, self.reranker.ascore), self.scores[query][chosen]

    def record(self, result, expected) -> None:
        self.done["result"] += 1
        error = float(np.abs(result - expected).max())
        if result.shape != expected.shape or not error <= 1e-5:
            self.wrong.append(f"off by {error}")

    def failed(self, error: Exception) -> None:
        # Only these two may reach a caller: its own fault, or the worker that died under it.
        expected = isinstance(error, bge_runtime.EngineStoppedError) or isinstance(error.__cause__, InjectedError)
        self.done[type(error).__name__] += 1
        if not expected:
            self.wrong.append(repr(error))

    def goes_on(self) -> bool:
        """Until the time is over; on a busy machine a little longer, until every fault has fired."""
        late = time.monotonic() - self.deadline
        return late < 0 or (late < 2 * SECONDS and any(self.faults.fired[kind] < 10 for kind in KINDS))

    def plant(self, dice: random.Random) -> str | None:
        kind = dice.choice(KINDS) if dice.random() < FAULT_SHARE else None
        if kind in ("exception", "out_of_memory", "killed"):
            self.faults.plant(kind)
        return kind

    def thread(self, seed: int) -> None:
        dice = random.Random(seed)
        while self.goes_on():
            self.plant(dice)
            arguments, (call, _), expected = self.job(dice)
            try:
                self.record(call(*arguments), expected)
            except bge_runtime.BGEError as error:
                self.failed(error)

    async def task(self, seed: int) -> None:
        dice = random.Random(seed)
        while self.goes_on():
            kind = self.plant(dice)
            arguments, (_, call), expected = self.job(dice)
            try:
                if kind == "cancelled":
                    await self.cancelled(call(*arguments), dice.random() * 0.02)
                else:
                    self.record(await call(*arguments), expected)
            except bge_runtime.BGEError as error:
                self.failed(error)

    async def cancelled(self, call, after: float) -> None:
        running = asyncio.ensure_future(call)
        await asyncio.sleep(after)
        if running.cancel():
            self.faults.fired["cancelled"] += 1
        await asyncio.gather(running, return_exceptions=True)

    async def run(self) -> None:
        self.deadline = time.monotonic() + SECONDS
        threads = [threading.Thread(target=self.thread, args=(seed,)) for seed in range(CALLERS)]
        for thread in threads:
            thread.start()
        await asyncio.gather(*(self.task(1000 + seed) for seed in range(CALLERS)))
        for thread in threads:
            await asyncio.to_thread(thread.join, 30)
        assert not any(thread.is_alive() for thread in threads), "a caller waits for ever"


@pytest.mark.timeout(3 * SECONDS + 100)
async def test_results_stay_right_and_nothing_hangs_under_load_and_faults(hub_cache, fresh_store, caplog):
    caplog.set_level("CRITICAL", logger="bge_runtime")
    before = set(threading.enumerate())
    soak = Soak()
    for model in STORE._models.values():
        soak.faults.wrap(model.engine._backend)

    await soak.run()

    assert soak.wrong == []
    assert all(soak.faults.fired[kind] >= 10 for kind in KINDS), soak.faults.fired
    assert soak.done["result"] > 5 * CALLERS
    assert all(not model.engine._interactive and not model.engine._bulk for model in STORE._models.values())
    np.testing.assert_allclose(soak.embedder.encode_documents(TEXTS), soak.documents, atol=1e-5)

    bge_runtime.unload_models()
    left = [thread.name for thread in set(threading.enumerate()) - before if thread.name.startswith("bge")]
    assert left == []
