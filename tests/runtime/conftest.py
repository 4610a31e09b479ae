"""Fixtures of the engine's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bge_runtime.engine import Engine
from tests.runtime.fakes import FakeBackend, engine_over


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
