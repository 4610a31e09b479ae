"""A server of seeded models, asked in process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from bge_runtime.serving import ServerSettings, create_app

EMBEDDER, HEADS, RERANKER = "BAAI/bge-small-en-v1.5", "BAAI/bge-m3", "BAAI/bge-reranker-base"


def settings(*models: str, **given) -> ServerSettings:
    """Return settings of some models."""
    rows = [{"model": each} if isinstance(each, str) else each for each in models or (EMBEDDER, HEADS, RERANKER)]
    return ServerSettings.read(models=rows, **given)


@pytest.fixture(scope="session")
def client(hub_cache) -> Iterator[TestClient]:
    """A client of a server with an embedder, one with three outputs, and a reranker."""
    with TestClient(create_app(settings()), raise_server_exceptions=False) as found:
        yield found
