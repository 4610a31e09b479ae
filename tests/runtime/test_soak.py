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
from bge_runtime.engine.job import Job
from bge_runtime.loading import weights as reading
from bge_runtime.loading.store import STORE

pytestmark = pytest.mark.slow

SECONDS = float(os.environ.get("BGE_SOAK_SECONDS", "20"))
CALLERS = 64
FAULT_SHARE = 0.05
SUBJECTS = ("the dog", "a red house", "my blue garden", "the little river", "one green tree", "seven fast models")
TEXTS = [f"{subject} {'and the water runs ' * (number % 9)}{number}" for number, subject in enumerate(SUBJECTS * 10)]
QUERIES = [f"where is {subject}" for subject in SUBJECTS]
POISON = "panda"  # in no other text
KINDS = ("exception", "out_of_memory", "cancelled", "killed")


class InjectedError(Exception):
    """Raised by every forward pass that a poisoned input is part of."""


class Faults:
    """Plants faults in every backend that is loaded, and counts those that fired."""

    def __init__(self) -> None:
        self.fired: Counter[str] = Counter()
        self.planted: Counter[str] = Counter()
        self._lock = threading.Lock()

    def plant(self, kind: str) -> None:
        with self._lock:
            self.planted[kind] += 1

    def note(self, kind: str) -> None:
        with self._lock:
            self.fired[kind] += 1

    def _take(self, kind: str) -> bool:
        with self._lock:
            if not self.planted[kind]:
                return False
            self.planted[kind] -= 1
            self.fired[kind] += 1
            return True

    def wrap(self, backend):
        original, poison = backend.forward, _poison_id(backend.tokenizing)

        def forward(batch, output):
            if len(batch) > 1 and self._take("out_of_memory"):
                raise bge_runtime.OutOfMemoryError("injected")
            if any(poison in sequence.ids for sequence in batch):
                raise InjectedError("injected")
            if self._take("killed"):
                raise SystemExit("injected")
            return original(batch, output)

        backend.forward = forward
        return backend


def _poison_id(tokenizing) -> int:
    def ids(texts):
        return {each for sequence in tokenizing.texts(texts, 512).sequences for each in sequence.ids}

    return max(ids([POISON]) - ids([*TEXTS, *QUERIES]))


class Soak:
    """The callers' work, and the answers computed beforehand by one thread."""

    def __init__(self, embedder, reranker, seconds: float, faults: Faults) -> None:
        self.embedder = embedder
        self.reranker = reranker
        self.seconds = seconds
        self.faults = faults
        self.documents = self.embedder.encode_documents(TEXTS)
        self.queries = self.embedder.encode_queries(QUERIES)
        self.scores = {query: self.reranker.score(query, TEXTS) for query in QUERIES}
        self.done: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.deadline = 0.0

    def job(self, dice: random.Random, poisoned: bool):
        """Return the arguments, the sync and the async call and the expected answer of a random request."""
        kind = dice.choice(("query", "documents", "rerank"))
        if kind == "query":
            index = dice.randrange(len(QUERIES))
            text = [POISON if poisoned else QUERIES[index]]
            calls = self.embedder.encode_queries, self.embedder.aencode_queries
            return (text,), calls, self.queries[[index]]
        chosen = dice.sample(range(len(TEXTS)), dice.randint(1, 12))
        texts = [TEXTS[index] for index in chosen]
        if poisoned:
            texts[0] = POISON
        if kind == "documents":
            calls = self.embedder.encode_documents, self.embedder.aencode_documents
            return (texts,), calls, self.documents[chosen]
        query = dice.choice(QUERIES)
        return (query, texts), (self.reranker.score, self.reranker.ascore), self.scores[query][chosen]

    def record(self, result, expected, poisoned: bool) -> None:
        self.done["result"] += 1
        if poisoned:
            self.wrong.append("a poisoned call got a result")
            return
        error = float(np.abs(result - expected).max())
        if result.shape != expected.shape or not error <= 1e-5:
            self.wrong.append(f"off by {error}")

    def failed(self, error: Exception, poisoned: bool) -> None:
        """Only two errors may reach a caller: that of its own input, or of the worker that died under it."""
        self.done[type(error).__name__] += 1
        if poisoned and isinstance(error.__cause__, InjectedError):
            self.faults.note("exception")
        elif not isinstance(error, bge_runtime.EngineStoppedError):
            self.wrong.append(repr(error))

    def goes_on(self) -> bool:
        """Until the time is over; on a busy machine a little longer, until every fault has fired."""
        late = time.monotonic() - self.deadline
        return late < 0 or (late < 2 * SECONDS and any(self.faults.fired[kind] < 10 for kind in KINDS))

    def plant(self, dice: random.Random) -> str | None:
        kind = dice.choice(KINDS) if dice.random() < FAULT_SHARE else None
        if kind in ("out_of_memory", "killed"):
            self.faults.plant(kind)
        return kind

    def thread(self, seed: int) -> None:
        dice = random.Random(seed)
        while self.goes_on():
            poisoned = self.plant(dice) == "exception"
            arguments, (call, _), expected = self.job(dice, poisoned)
            try:
                self.record(call(*arguments), expected, poisoned)
            except bge_runtime.BGEError as error:
                self.failed(error, poisoned)

    async def task(self, seed: int) -> None:
        dice = random.Random(seed)
        while self.goes_on():
            kind = self.plant(dice)
            poisoned = kind == "exception"
            arguments, (_, call), expected = self.job(dice, poisoned)
            try:
                if kind == "cancelled":
                    await self.cancelled(call(*arguments), dice.random() * 0.02)
                else:
                    self.record(await call(*arguments), expected, poisoned)
            except bge_runtime.BGEError as error:
                self.failed(error, poisoned)

    async def cancelled(self, call, after: float) -> None:
        running = asyncio.ensure_future(call)
        await asyncio.sleep(after)
        if running.cancel():
            self.faults.note("cancelled")
        await asyncio.gather(running, return_exceptions=True)

    async def run(self) -> None:
        self.deadline = time.monotonic() + self.seconds
        threads = [threading.Thread(target=self.thread, args=(seed,)) for seed in range(CALLERS)]
        for thread in threads:
            thread.start()
        await asyncio.gather(*(self.task(1000 + seed) for seed in range(CALLERS)))
        for thread in threads:
            await asyncio.to_thread(thread.join, 30)
        assert not any(thread.is_alive() for thread in threads), "a caller waits for ever"


@pytest.fixture
def faults(hub_cache, fresh_store, monkeypatch, caplog):
    """Faults for every backend that is loaded from here on."""
    caplog.set_level("CRITICAL", logger="bge_runtime")
    faults, load = Faults(), reading.load_backend
    monkeypatch.setattr(reading, "load_backend", lambda *arguments: faults.wrap(load(*arguments)))
    return faults


@pytest.fixture
def futures(monkeypatch):
    """The future of every job from here on."""
    futures = []

    class Watched(Job):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            futures.append(self.future)

    monkeypatch.setattr("bge_runtime.engine.call.Job", Watched)
    return futures


@pytest.mark.timeout(3 * SECONDS + 100)
@pytest.mark.parametrize(
    ("options", "seconds"), [({}, SECONDS), ({"devices": ["cpu", "cpu"]}, SECONDS / 4)], ids=["single", "replicas"]
)
async def test_results_stay_right_and_nothing_hangs_under_load_and_faults(faults, futures, options, seconds):
    before, counted = set(threading.enumerate()), bge_runtime.stats()
    soak = Soak(bge_runtime.Embedder(**options), bge_runtime.Reranker("BAAI/bge-reranker-base"), seconds, faults)

    await soak.run()

    engines = [model.engine for model in STORE._models.values()]
    assert soak.wrong == []
    assert all(faults.fired[kind] >= 10 for kind in KINDS), faults.fired
    assert soak.done["result"] > 5 * CALLERS
    assert [len(engine._queue) for engine in engines] == [0, 0]
    faults.planted.clear()
    np.testing.assert_allclose(soak.embedder.encode_documents(TEXTS), soak.documents, atol=1e-5)
    assert len(futures) > soak.done["result"]
    assert all(future.done() for future in futures)
    assert bge_runtime.stats()["worker_restarts"] > counted["worker_restarts"]
    print(f"\n{len(futures)} jobs, callers got {dict(soak.done)}, faults {dict(faults.fired)}")  # noqa: T201

    bge_runtime.unload_models()
    assert _left(before) == []


async def test_weights_come_and_go_under_callers_who_never_notice(faults, futures):
    before, counted = set(threading.enumerate()), bge_runtime.stats()
    options = {"keep_alive_s": 0.001}
    embedder = bge_runtime.Embedder(devices=["cpu", "cpu"], **options)
    soak = Soak(embedder, bge_runtime.Reranker("BAAI/bge-reranker-base", **options), 5.0, faults)
    deadline = time.monotonic() + soak.seconds

    def thread(seed):
        dice = random.Random(seed)
        while time.monotonic() < deadline:
            arguments, (call, _), expected = soak.job(dice, False)
            soak.record(call(*arguments), expected, False)
            time.sleep(dice.random() * 0.5)

    async def task(seed):
        dice = random.Random(seed)
        while time.monotonic() < deadline:
            arguments, (_, call), expected = soak.job(dice, False)
            soak.record(await call(*arguments), expected, False)
            await asyncio.sleep(dice.random() * 0.5)

    sync = [asyncio.to_thread(thread, seed) for seed in range(2)]
    await asyncio.gather(*sync, *(task(100 + seed) for seed in range(2)))

    assert soak.wrong == []
    assert bge_runtime.stats()["unloads"] - counted["unloads"] >= 10
    assert all(future.done() for future in futures)
    bge_runtime.unload_models()
    assert _left(before) == []


def _left(before: set[threading.Thread]) -> list[str]:
    """Return the names of our threads that do not end."""
    ours = [each for each in set(threading.enumerate()) - before if each.name.startswith("bge")]
    for thread in ours:
        thread.join(10)
    return [thread.name for thread in ours if thread.is_alive()]
