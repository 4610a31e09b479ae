"""An ingestion that dies (SIGKILL) goes on where it was: what is in the cache is never computed again."""

from __future__ import annotations

import json
import multiprocessing
import time

import numpy as np
import pytest

import bge_runtime
from bge_runtime import Embedder, VectorCache
from tests.docs.pages import ROOT
from tests.runtime.fakes import TIMEOUT_S

MODEL = bge_runtime.DEFAULT_OFFLINE_MODEL
CORPUS = ROOT / "tests" / "data" / "scifact_small" / "corpus.jsonl"
BATCH_TOKENS = 256
PORTION = 8 * 4 * BATCH_TOKENS  # characters


def texts() -> list[str]:
    rows = [json.loads(line) for line in CORPUS.read_text(encoding="utf-8").splitlines()]
    return list(dict.fromkeys(f"{row['title']} {row['text']}"[:400] for row in rows))[:100]


def ingest(path, journal) -> None:
    class Journal(bge_runtime.Hook):
        def on_batch(self, event):
            with journal.open("a") as file:
                file.write(f"{event.inputs}\n")

    bge_runtime.add_hook(Journal())
    Embedder(MODEL, vector_cache=path, batch_tokens=BATCH_TOKENS).encode_documents(texts())


@pytest.mark.timeout(180)
@pytest.mark.slow
def test_a_killed_ingestion_loses_one_portion_at_most(tmp_path, minilm):
    wanted = texts()
    path, journal = tmp_path / "v.sqlite", tmp_path / "journal"
    cache = VectorCache(path)
    process = multiprocessing.get_context("spawn").Process(target=ingest, args=(path, journal))
    process.start()
    until = time.monotonic() + 10 * TIMEOUT_S
    while cache.stats.entries < 20 and process.is_alive() and time.monotonic() < until:
        time.sleep(0.002)
    process.kill()
    process.join(TIMEOUT_S)
    stored = cache.stats.entries
    assert process.exitcode == -9
    assert 20 <= stored < len(wanted)
    lost = sum(map(int, journal.read_text().split())) - stored
    assert 0 <= lost
    assert sum(len(text) for text in wanted[stored : stored + lost - 1]) < PORTION

    before = bge_runtime.stats()["inputs"]
    resumed = Embedder(MODEL, vector_cache=path, batch_tokens=BATCH_TOKENS).encode_documents(wanted)
    assert bge_runtime.stats()["inputs"] - before == len(wanted) - stored
    assert cache.stats.entries == len(wanted)
    np.testing.assert_allclose(resumed, Embedder(MODEL).encode_documents(wanted), atol=1e-5)
    cache.close()
