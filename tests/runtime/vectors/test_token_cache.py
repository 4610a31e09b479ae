"""Late interaction remembers token vectors when it is given a cache."""

from __future__ import annotations

import numpy as np
import pytest

import bge_runtime
from bge_runtime import Embedder, Reranker, VectorCache

MODEL = "BAAI/bge-small-en-v1.5"
QUERY = "What is a panda?"
DOCUMENTS = ["The giant panda is a bear.", "", "Paris is the capital of France", "the dog slept " * 200]

pytestmark = pytest.mark.usefixtures("hub_cache")


def computed() -> int:
    return int(bge_runtime.stats()["inputs"])


@pytest.fixture(params=["memory", "file"])
def cache(request, tmp_path):
    made = VectorCache(None if request.param == "memory" else tmp_path / "tokens.sqlite")
    yield made
    made.close()


def test_scores_are_the_same_and_nothing_is_computed_twice(cache):
    plain = Reranker(MODEL, truncation="silent").score(QUERY, DOCUMENTS)
    before = computed()
    first = Reranker(MODEL, truncation="silent", vector_cache=cache).score(QUERY, DOCUMENTS)
    assert computed() - before == 1 + len(DOCUMENTS)
    again = Reranker(MODEL, truncation="silent", vector_cache=cache).score(QUERY, DOCUMENTS)
    assert computed() - before == 1 + len(DOCUMENTS)
    np.testing.assert_allclose(first, plain, atol=1e-5)
    np.testing.assert_array_equal(again, first)


def test_an_embedders_vectors_of_the_same_texts_are_apart(cache):
    embedder = Embedder(MODEL, vector_cache=cache, truncation="silent")
    dense = embedder.encode_documents(DOCUMENTS)
    Reranker(MODEL, vector_cache=cache, truncation="silent").score(QUERY, DOCUMENTS)
    np.testing.assert_array_equal(embedder.encode_documents(DOCUMENTS), dense)


def test_another_length_finds_nothing(cache):
    Reranker(MODEL, vector_cache=cache, max_length=64, truncation="silent").score(QUERY, DOCUMENTS)
    before = computed()
    Reranker(MODEL, vector_cache=cache, max_length=32, truncation="silent").score(QUERY, DOCUMENTS)
    assert computed() - before == 1 + len(DOCUMENTS)


def test_passages_are_not_remembered(cache):
    reranker = Reranker(MODEL, vector_cache=cache, max_length=32, long_document="max_passage")
    first = reranker.score(QUERY, DOCUMENTS)
    np.testing.assert_allclose(reranker.score(QUERY, DOCUMENTS), first, atol=1e-5)
    cut = Reranker(MODEL, vector_cache=cache, max_length=32, truncation="silent")
    np.testing.assert_allclose(
        cut.score(QUERY, DOCUMENTS),
        Reranker(MODEL, max_length=32, truncation="silent").score(QUERY, DOCUMENTS),
        atol=1e-5,
    )


def test_half_the_size_states_its_error(tmp_path):
    half = VectorCache(tmp_path / "half.sqlite", storage="float16")
    exact = Reranker(MODEL, truncation="silent").score(QUERY, DOCUMENTS)
    for _ in range(2):
        scores = Reranker(MODEL, truncation="silent", vector_cache=half).score(QUERY, DOCUMENTS)
        np.testing.assert_allclose(scores, exact, atol=1e-3)


@pytest.mark.parametrize("storage", ["float16", "float32"])
@pytest.mark.parametrize("options", [{"model": MODEL}, {"model": MODEL, "token_pooling": 2}])
def test_entries_of_another_number_format_give_the_right_scores(tmp_path, options, storage):
    other = {"float16": "float32", "float32": "float16"}[storage]
    path = tmp_path / "v.sqlite"
    exact = Reranker(truncation="silent", **options).score(QUERY, DOCUMENTS)
    for kind in (other, storage, other):
        cached = Reranker(truncation="silent", vector_cache=VectorCache(path, storage=kind), **options)
        np.testing.assert_allclose(cached.score(QUERY, DOCUMENTS), exact, atol=1e-3)


def test_token_ids_are_not_read_from_rounded_entries(tmp_path):
    hybrid = {"model": "BAAI/bge-m3", "mode": "hybrid", "truncation": "silent"}
    path = tmp_path / "v.sqlite"
    exact = Reranker(**hybrid).score(QUERY, DOCUMENTS)
    reranker = Reranker(**hybrid, vector_cache=VectorCache(path))
    reranker.score(QUERY, DOCUMENTS)
    identity = reranker.scorer.comparison.identity("document")
    kept = VectorCache(path).get(identity, DOCUMENTS)
    VectorCache(path).clear()
    VectorCache(path, storage="float16").put(identity, DOCUMENTS, kept)
    np.testing.assert_allclose(
        Reranker(**hybrid, vector_cache=VectorCache(path)).score(QUERY, DOCUMENTS), exact, atol=1e-5
    )


@pytest.mark.parametrize("mode", ["multi_vector", "hybrid"])
@pytest.mark.parametrize("wrong", [[], [3.0], [2.5, 1, 1, 1, 1], [0, 2, 1], [-2, 1, 1], [7, 3, 1, 1]], ids=str)
def test_numbers_that_are_no_value_are_computed_again(mode, wrong):
    cache = VectorCache()
    reranker = Reranker("BAAI/bge-m3", mode=mode, vector_cache=cache)
    exact = reranker.score(QUERY, ["cat"])
    identity = reranker.scorer.comparison.identity("document")
    cache.put(identity, ["cat"], [np.array(wrong, np.float32)])
    np.testing.assert_allclose(reranker.score(QUERY, ["cat"]), exact, atol=1e-5)
    assert cache.get(identity, ["cat"])[0].size > len(wrong)
