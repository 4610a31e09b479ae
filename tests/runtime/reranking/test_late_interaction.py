"""Reranking with an embedder, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

import bge_runtime
from tests.runtime import references

QUERY = "What is a panda?"
DOCUMENTS = [
    "The giant panda is a bear species endemic to China. It eats bamboo.",
    "",
    "Paris is the capital of France",
    "the dog slept in the garden " * 120,
    "What is a panda?",
    "The giant panda is a bear species endemic to China. It eats bamboo.",
]


@pytest.fixture(params=["BAAI/bge-small-en-v1.5", "BAAI/bge-small-zh-v1.5"])
def model(request):
    return request.param


def expected_scores(folder, max_length):
    return [references.late_interaction(folder, QUERY, each, max_length=max_length) for each in DOCUMENTS]


def test_the_score_is_the_mean_of_the_best_cosines(hub_cache, model):
    folder = references.snapshot_of(hub_cache, model)
    reranker = bge_runtime.Reranker(model, max_length=512, truncation="silent")
    assert reranker.method == "late_interaction"
    scores = reranker.score(QUERY, DOCUMENTS)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected_scores(folder, 512), atol=1e-5)


def test_normalize_leaves_a_cosine_as_it_is(hub_cache):
    raw = bge_runtime.Reranker("BAAI/bge-small-en-v1.5", truncation="silent")
    squashed = bge_runtime.Reranker("BAAI/bge-small-en-v1.5", truncation="silent", normalize=True)
    np.testing.assert_array_equal(squashed.score(QUERY, DOCUMENTS), raw.score(QUERY, DOCUMENTS))


def test_an_embedder_object_is_taken_with_its_options_and_its_weights(hub_cache, fresh_store):
    folder = references.snapshot_of(hub_cache, "BAAI/bge-small-en-v1.5")
    embedder = bge_runtime.Embedder(max_length=32, truncation="silent")
    embedder.encode_queries([QUERY])
    scores = bge_runtime.Reranker(embedder).score(QUERY, DOCUMENTS)
    np.testing.assert_allclose(scores, expected_scores(folder, 32), atol=1e-5)
    assert len(bge_runtime.loaded_models()) == 1


def test_pairs_of_several_queries_score_as_each_query_alone(hub_cache):
    reranker = bge_runtime.Reranker("BAAI/bge-small-en-v1.5", truncation="silent")
    pairs = [(query, document) for document in DOCUMENTS for query in (QUERY, "Paris", QUERY)]
    alone = [reranker.score(query, [document])[0] for query, document in pairs]
    np.testing.assert_allclose(reranker.score_pairs(pairs), alone, atol=1e-5)


def test_dense_weight_mixes_standardised_scores_and_takes_no_threshold(hub_cache):
    reranker = bge_runtime.Reranker("BAAI/bge-small-en-v1.5", truncation="silent")
    embedder = bge_runtime.Embedder(truncation="silent")
    late = reranker.score(QUERY, DOCUMENTS).astype(float)
    dense = embedder.encode_documents(DOCUMENTS).astype(float) @ embedder.encode_queries([QUERY])[0]
    expected = 0.7 * (late - late.mean()) / late.std() + 0.3 * (dense - dense.mean()) / dense.std()
    ranking = reranker.rank(QUERY, DOCUMENTS, dense_weight=0.3)
    np.testing.assert_allclose([row.score for row in ranking], expected[[row.index for row in ranking]], atol=1e-3)
    np.testing.assert_allclose([row.score for row in ranking], -np.sort(-expected), atol=1e-3)
    with pytest.raises(bge_runtime.ConfigurationError, match="score_threshold"):
        reranker.rank(QUERY, DOCUMENTS, dense_weight=0.3, score_threshold=0.5)


@pytest.mark.parametrize("weight", [-0.1, 1.1, "half"])
def test_a_dense_weight_outside_0_to_1_is_refused(hub_cache, weight):
    with pytest.raises(bge_runtime.ConfigurationError, match="dense_weight"):
        bge_runtime.Reranker("BAAI/bge-small-en-v1.5").rank(QUERY, DOCUMENTS, dense_weight=weight)


def test_a_cross_encoder_has_no_dense_score_to_mix(hub_cache):
    with pytest.raises(bge_runtime.ConfigurationError, match="dense_weight"):
        bge_runtime.Reranker().rank(QUERY, DOCUMENTS, dense_weight=0.3)


BLANK = ["", " ", "\n\t", "\u200b", "\xa0\ufeff"]


@pytest.mark.parametrize("options", [{}, {"mode": "dense"}, {"mode": "hybrid"}, {"token_pooling": 2}], ids=str)
def test_nothing_is_found_where_nothing_is_asked(hub_cache, options):
    reranker = bge_runtime.Reranker("BAAI/bge-m3", max_length=64, truncation="silent", **options)
    for query in BLANK:
        scores = reranker.score(query, [*BLANK, "Paris"])
        assert scores[:-1].tolist() == [0.0] * len(BLANK)
        assert scores[-1] > 0.01
    assert reranker.rank("", ["", "Paris"], time_budget_s=60)[0].index == 1
    alone, nothing = reranker.score_pairs([("Paris", "Paris"), ("", " ")])
    assert (float(nothing), float(alone)) == (0, pytest.approx(float(reranker.score("Paris", ["Paris"])[0]), abs=1e-5))


@pytest.mark.parametrize("text", ["?", "\U0001f43c", "\u0301", "a"], ids=ascii)
def test_one_sign_is_not_blank(hub_cache, text):
    assert (bge_runtime.Reranker("BAAI/bge-small-en-v1.5").score(text, ["", text]) != 0).all()
