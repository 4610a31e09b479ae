"""Token pooling, against Ward's criterion step by step."""

from __future__ import annotations

import numpy as np
import pytest

import bge_runtime
from bge_runtime import Reranker, VectorCache
from bge_runtime.vectors.token_pooling import BLOCK_TOKENS, pool_tokens
from tests.runtime import references

MODEL = "BAAI/bge-small-en-v1.5"
M3 = "BAAI/bge-m3"
QUERY = "What is a panda?"
TEXTS = ["The giant panda is a bear species endemic to China.", "", "Paris is the capital of France", "dog " * 14]


def unit_vectors(count, dimension=16, seed=3):
    rows = np.random.default_rng(seed).standard_normal((count, dimension))
    return references.unit(rows).astype(np.float32)


def ward(vectors, clusters):
    """Merge the two clusters whose union adds least to the squared distances from the means, again and again."""
    groups = [[index] for index in range(len(vectors))]
    rows = vectors.astype(np.float64)
    while len(groups) > clusters:
        costs = {
            (a, b): len(groups[a])
            * len(groups[b])
            / (len(groups[a]) + len(groups[b]))
            * np.sum((rows[groups[a]].mean(axis=0) - rows[groups[b]].mean(axis=0)) ** 2)
            for a in range(len(groups))
            for b in range(a)
        }
        a, b = min(costs, key=costs.get)
        groups[b].extend(groups.pop(a))  # a > b
    return references.unit(np.array([rows[group].mean(axis=0) for group in groups]))


def best(query, document):
    return float((query @ document.T).max(axis=1).mean())


@pytest.mark.parametrize(("count", "pooling", "clusters"), [(24, 2, 12), (25, 3, 9), (9, 8, 2), (3, 5, 1), (2, 2, 1)])
def test_vectors_are_the_unit_means_of_wards_clusters(count, pooling, clusters):
    vectors = unit_vectors(count)
    pooled, expected = pool_tokens(vectors, pooling), ward(vectors, clusters)
    assert pooled.dtype == np.float32
    assert pooled.shape == expected.shape == (clusters, 16)
    np.testing.assert_allclose(np.sort(pooled @ expected.T, axis=1)[:, -1], 1, atol=1e-5)
    np.testing.assert_allclose(np.sort(expected @ pooled.T, axis=1)[:, -1], 1, atol=1e-5)


@pytest.mark.parametrize("count", [0, 1, 7])
def test_one_changes_nothing_and_one_vector_stays(count):
    vectors = unit_vectors(count)
    np.testing.assert_array_equal(pool_tokens(vectors, 1), vectors)
    if count < 2:
        np.testing.assert_array_equal(pool_tokens(vectors, 3), vectors)


def test_equal_vectors_become_one_and_opposite_ones_no_nan():
    vectors = unit_vectors(1).repeat(6, axis=0)
    np.testing.assert_allclose(pool_tokens(vectors, 2), vectors[:1], atol=1e-6)
    assert np.isfinite(pool_tokens(np.concatenate([vectors[:1], -vectors[:1]]), 2)).all()


def test_long_texts_are_clustered_in_parts(monkeypatch):
    monkeypatch.setattr("bge_runtime.vectors.token_pooling.BLOCK_TOKENS", 20)
    vectors = unit_vectors(50)
    parts = np.array_split(vectors, 3)
    expected = np.concatenate([ward(part, -(-len(part) // 2)) for part in parts])
    pooled = pool_tokens(vectors, 2)
    assert len(pooled) == len(expected) == 26
    np.testing.assert_allclose(np.sort(pooled @ expected.T, axis=1)[:, -1], 1, atol=1e-5)
    assert BLOCK_TOKENS**2 * 4 < 2**25


@pytest.mark.parametrize("pooling", [2, 3])
def test_documents_are_pooled_and_queries_are_not(hub_cache, pooling):
    folder = references.snapshot_of(hub_cache, MODEL)
    reranker = Reranker(MODEL, token_pooling=pooling)
    expected, both = [], []
    query = references.unit(references.token_states(folder, QUERY, 512))
    for text in TEXTS:
        document = references.unit(references.token_states(folder, text, 512))
        clusters = -(-len(document) // pooling)
        expected.append(best(query, ward(document, clusters)))
        both.append(best(ward(query, -(-len(query) // pooling)), ward(document, clusters)))
    scores = reranker.score(QUERY, TEXTS)
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    assert np.abs(scores - both).max() > 1e-2
    assert np.abs(scores - Reranker(MODEL).score(QUERY, TEXTS)).max() > 1e-2


def test_a_trained_head_is_pooled_too(hub_cache):
    folder = references.snapshot_of(hub_cache, M3)
    query = references.m3(folder, QUERY, max_length=512).vectors
    documents = [references.m3(folder, text, max_length=512).vectors for text in TEXTS]
    expected = [best(query, ward(each, -(-len(each) // 2))) for each in documents]
    np.testing.assert_allclose(Reranker(M3, token_pooling=2).score(QUERY, TEXTS), expected, atol=1e-4)


async def test_batched_alone_and_async_agree(hub_cache):
    reranker = Reranker(MODEL, token_pooling=2)
    scores = reranker.score(QUERY, TEXTS)
    np.testing.assert_allclose([reranker.score(QUERY, [text])[0] for text in TEXTS], scores, atol=1e-4)
    np.testing.assert_allclose(await reranker.ascore(QUERY, TEXTS), scores, atol=1e-6)


def test_passages_are_pooled_each(hub_cache):
    text = " ".join(TEXTS) * 3
    options = {"max_length": 32, "long_document": "max_passage", "passage_overlap": 8}
    whole = Reranker(MODEL, token_pooling=2, **options).score(QUERY, [text])[0]
    cut = Reranker(MODEL, token_pooling=2, max_length=32, truncation="silent").score(QUERY, [text])[0]
    assert whole >= cut
    assert whole != pytest.approx(Reranker(MODEL, **options).score(QUERY, [text])[0], abs=1e-4)
    assert -1 <= whole <= 1 + 1e-6


def test_the_cache_holds_the_pooled_vectors_apart_and_spares_the_pass(hub_cache):
    plain, pooled = VectorCache(), VectorCache()
    Reranker(MODEL, vector_cache=plain).score(QUERY, TEXTS)
    first = Reranker(MODEL, vector_cache=pooled, token_pooling=3).score(QUERY, TEXTS)
    assert pooled.stats.bytes < 0.6 * plain.stats.bytes
    before = bge_runtime.stats()["inputs"]
    np.testing.assert_array_equal(Reranker(MODEL, vector_cache=pooled, token_pooling=3).score(QUERY, TEXTS), first)
    assert bge_runtime.stats()["inputs"] == before
    Reranker(MODEL, vector_cache=pooled, token_pooling=2).score(QUERY, TEXTS)
    assert bge_runtime.stats()["inputs"] - before == len(TEXTS)  # the query's vectors are those of every pooling


def test_a_text_that_is_query_and_document_is_kept_in_both_forms(hub_cache):
    cache = VectorCache()
    expected = Reranker(MODEL, token_pooling=2).score(TEXTS[0], TEXTS)
    for _ in range(2):
        reranker = Reranker(MODEL, token_pooling=2, vector_cache=cache)
        np.testing.assert_allclose(reranker.score(TEXTS[0], TEXTS), expected, atol=1e-5)


def test_pooling_is_part_of_what_a_reranker_is_only_when_it_is_on(hub_cache):
    plain, pooled = Reranker(MODEL), Reranker(MODEL, token_pooling=2)
    assert plain.identity == Reranker(MODEL, token_pooling=1).identity
    assert len({each.identity for each in (plain, pooled, Reranker(MODEL, token_pooling=3))}) == 3
    assert Reranker(**pooled.options()).identity == pooled.identity
    assert (plain.token_pooling, pooled.token_pooling) == (1, 2)
    assert pooled.document_identity != plain.document_identity


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *[({"model": MODEL, "token_pooling": value}, "1 .off. to 8") for value in (0, 9, -1, 2.0, True, "2", None)],
        ({"model": M3, "token_pooling": 2, "mode": "hybrid"}, "mode='hybrid'"),
        ({"model": M3, "token_pooling": 2, "mode": "dense"}, "mode='dense'"),
        ({"model": "BAAI/bge-reranker-base", "token_pooling": 2}, "cross-encoder"),
    ],
)
def test_wrong_pooling_is_refused_before_anything_loads(arguments, message, fresh_store):
    with pytest.raises(bge_runtime.ConfigurationError, match=message):
        Reranker(**arguments)
    assert not bge_runtime.loaded_models()


@pytest.mark.parametrize("package", ["langchain_bge", "llamaindex_bge"])
def test_both_frameworks_pass_it_on(hub_cache, package):
    import importlib
    import pickle

    kind = importlib.import_module(package).BGERerank
    made = kind(model=MODEL, token_pooling=3)
    expected = Reranker(MODEL, token_pooling=3).score(QUERY, TEXTS)
    np.testing.assert_allclose(made.reranker.score(QUERY, TEXTS), expected, atol=1e-5)
    assert pickle.loads(pickle.dumps(made)).reranker.identity == made.reranker.identity
    assert kind(reranker=Reranker(MODEL, token_pooling=2)).token_pooling == 2
    with pytest.raises(bge_runtime.ConfigurationError, match="token_pooling"):
        kind(model=MODEL, token_pooling=9)
