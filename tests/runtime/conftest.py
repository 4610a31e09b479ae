"""Fixtures of the engine's tests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import bge_runtime
from bge_runtime.engine.engine import Engine
from tests.runtime.fakes import FakeBackend, engine_over

SCIFACT = Path(__file__).parents[1] / "data" / "scifact_small"


@pytest.fixture(scope="session")
def scifact_vectors() -> tuple[np.ndarray, np.ndarray]:
    """all-MiniLM-L6-v2's vectors of the queries and of the abstracts, in the order of the files."""
    embedder = bge_runtime.Embedder(bge_runtime.DEFAULT_OFFLINE_MODEL, truncation="silent")
    corpus, queries = (
        [json.loads(line) for line in (SCIFACT / name).read_text(encoding="utf-8").splitlines()]
        for name in ("corpus.jsonl", "queries.jsonl")
    )
    documents = embedder.encode_documents(f"{row['title']} {row['text']}" for row in corpus)
    return embedder.encode_queries(row["text"] for row in queries), documents


@pytest.fixture
def fake_backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def engine(fake_backend: FakeBackend) -> Iterator[Engine]:
    """An engine over `fake_backend`, closed after the test."""
    engine = engine_over(fake_backend)
    yield engine
    fake_backend.gate.set()
    engine.close()
