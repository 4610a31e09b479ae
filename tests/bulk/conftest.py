"""A seeded model that is loaded once for all tests of bulk embedding."""

from __future__ import annotations

import pytest

from bge_runtime import Embedder
from tests.bulk.corpora import MODEL


@pytest.fixture(scope="package")
def embedder(hub_cache):
    with Embedder(MODEL, truncation="silent") as embedder:
        yield embedder.warm_up()
