"""What `vector_cache=` must do in both adapters. Not collected by itself: `pytest.mark` comes with the subclass."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bge_runtime

TEXTS = ["the heart pumps blood", "rivers run to the sea", "glass is made of sand"]


class CacheContract:
    """Subclasses give `build(**options)`, `documents(embeddings, texts)` and `query(embeddings, text)`."""

    build: Callable[..., Any]
    documents: Callable[..., list[list[float]]]
    query: Callable[..., list[float]]

    @staticmethod
    def computed() -> float:
        return bge_runtime.stats()["inputs"]

    def test_a_text_is_computed_once_across_objects(self, tmp_path: Path) -> None:
        before = self.computed()
        first = self.documents(self.build(vector_cache=tmp_path / "v.sqlite"), TEXTS)
        second = self.documents(self.build(vector_cache=str(tmp_path / "v.sqlite")), TEXTS)
        assert self.computed() - before == len(TEXTS)
        np.testing.assert_array_equal(first, second)

    def test_queries_and_documents_keep_their_own_vectors(self) -> None:
        embeddings = self.build(vector_cache=bge_runtime.VectorCache())
        document = self.documents(embeddings, TEXTS[:1])[0]
        query = self.query(embeddings, TEXTS[0])
        assert np.abs(np.subtract(document, query)).max() > 1e-3

    def test_vectors_are_those_computed_without_it(self) -> None:
        cached = self.build(vector_cache=bge_runtime.VectorCache())
        plain = self.build()
        for _ in range(2):
            np.testing.assert_allclose(self.documents(cached, TEXTS), self.documents(plain, TEXTS), atol=1e-6)
            np.testing.assert_allclose(self.query(cached, TEXTS[0]), self.query(plain, TEXTS[0]), atol=1e-6)

    def test_copies_and_pickles_share_the_file(self, tmp_path: Path) -> None:
        embeddings = self.build(vector_cache=tmp_path / "v.sqlite")
        expected = self.documents(embeddings, TEXTS)
        for twin in (copy.deepcopy(embeddings), pickle.loads(pickle.dumps(embeddings))):
            before = self.computed()
            np.testing.assert_array_equal(self.documents(twin, TEXTS), expected)
            assert self.computed() == before

    def test_what_is_no_cache_is_refused(self) -> None:
        with pytest.raises(bge_runtime.ConfigurationError, match="VectorCache"):
            self.build(vector_cache=3)
