"""Vectors and scores equal those of plain transformers, for checkpoints loaded by hub name."""

from __future__ import annotations

import numpy as np
import pytest

import bge_runtime
from tests.checkpoints.hub_cache import fine_tuned_folder, two_label_folder
from tests.runtime import references

TOLERANCE = 1e-5
SENTENCE = "The heart pumps blood through the body, and aspirin thins the blood. "
TEXTS = [
    "panda",
    "",
    SENTENCE * 40,
    "How do I turn the query instruction off?",
    "大熊猫是中国特有的熊类动物：主要以竹子为食。",
    SENTENCE * 3,
    "zymurgy, quixotry & 42 \N{SNOWMAN}",
    SENTENCE * 12,
]
ENGLISH = "Represent this sentence for searching relevant passages: "
CHINESE = "为这个句子生成表示以用于检索相关文章\uff1a"
LLM_QUERY = "Represent this query for retrieving relevant documents: "
LLM_DOCUMENT = "Represent this document for retrieval: "
PAIRS = [
    ("What is a panda?", "The giant panda is a bear species endemic to China."),
    ("What is a panda?", ""),
    ("", "cat"),
    ("What is a panda?", SENTENCE * 40),
    (SENTENCE * 40, "cat"),
    (SENTENCE * 40, SENTENCE * 40),
    ("大熊猫", SENTENCE * 4),
]


@pytest.mark.parametrize("backend", ["packed", "torch"])
@pytest.mark.parametrize(
    ("name", "query_prefix", "document_prefix", "max_length"),
    [
        ("BAAI/bge-small-en-v1.5", ENGLISH, "", 512),
        ("BAAI/bge-small-zh-v1.5", CHINESE, "", 512),
        ("BAAI/llm-embedder", LLM_QUERY, LLM_DOCUMENT, 512),
        ("BAAI/bge-m3", "", "", 8192),
    ],
)
def test_vectors_equal_the_normalised_cls_row(hub_cache, name, query_prefix, document_prefix, max_length, backend):
    folder = references.snapshot_of(hub_cache, name)
    embedder = bge_runtime.Embedder(name, truncation="silent", backend=backend)
    queries = [references.vector(folder, query_prefix + text, max_length=max_length) for text in TEXTS]
    documents = [references.vector(folder, document_prefix + text, max_length=max_length) for text in TEXTS]
    np.testing.assert_allclose(embedder.encode_queries(TEXTS), queries, atol=TOLERANCE)
    np.testing.assert_allclose(embedder.encode_documents(TEXTS), documents, atol=TOLERANCE)


@pytest.mark.parametrize("task", ["qa", "icl", "chat", "lrlm", "tool", "convsearch"])
def test_each_llm_embedder_task_uses_its_pair_of_instructions(hub_cache, task):
    from tests.runtime.models.test_table import LLM_EMBEDDER

    folder = references.snapshot_of(hub_cache, "BAAI/llm-embedder")
    query, document = LLM_EMBEDDER[task]
    embedder = bge_runtime.Embedder("BAAI/llm-embedder", task=task)
    expected = [references.vector(folder, prefix + "panda", max_length=512) for prefix in (query, document)]
    vectors = np.concatenate([embedder.encode_queries(["panda"]), embedder.encode_documents(["panda"])])
    np.testing.assert_allclose(vectors, expected, atol=TOLERANCE)


def test_8192_tokens_are_read_and_no_more(hub_cache):
    folder = references.snapshot_of(hub_cache, "BAAI/bge-reranker-v2-m3")
    reranker = bge_runtime.Reranker("BAAI/bge-reranker-v2-m3", truncation="silent")
    expected = references.pair_logit(folder, "panda", "dog " * 9000, max_length=8192)
    np.testing.assert_allclose(reranker.score("panda", ["dog " * 9000]), expected, atol=TOLERANCE)
    assert reranker.truncated_count == 1
    assert bge_runtime.Embedder("BAAI/bge-m3").max_length == 8192


def test_a_literal_padding_token_in_a_text_is_read_as_transformers_reads_it(hub_cache):
    folder = references.snapshot_of(hub_cache, "BAAI/bge-m3")
    texts = ["a <pad> in <pad><pad> the middle", "<pad>", "panda", "<s> </s> <mask>"]
    expected = [references.vector(folder, text, max_length=512) for text in texts]
    vectors = bge_runtime.Embedder("BAAI/bge-m3").encode_documents(texts)
    np.testing.assert_allclose(vectors, expected, atol=TOLERANCE)


@pytest.mark.parametrize("max_length", [16, 200])
def test_max_length_cuts_the_end_of_the_text(hub_cache, max_length):
    folder = references.snapshot_of(hub_cache, "BAAI/bge-small-en-v1.5")
    embedder = bge_runtime.Embedder(max_length=max_length, truncation="silent")
    expected = [references.vector(folder, text, max_length=max_length) for text in TEXTS]
    np.testing.assert_allclose(embedder.encode_documents(TEXTS), expected, atol=TOLERANCE)


@pytest.mark.parametrize("backend", ["packed", "torch"])
def test_minilm_gets_mean_pooling_and_256_tokens(minilm, backend):
    embedder = bge_runtime.Embedder(bge_runtime.DEFAULT_OFFLINE_MODEL, truncation="silent", backend=backend)
    expected = [references.vector(minilm, text, max_length=256, pooling="mean") for text in TEXTS]
    np.testing.assert_allclose(embedder.encode_documents(TEXTS), expected, atol=TOLERANCE)
    np.testing.assert_allclose(embedder.encode_queries(TEXTS), expected, atol=TOLERANCE)


def test_a_fine_tuned_folder_without_modules_json_gets_its_familys_cls_pooling(tmp_path):
    folder = fine_tuned_folder(tmp_path / "my-tuned-model")
    embedder = bge_runtime.Embedder(folder, truncation="silent")
    expected = [references.vector(folder, ENGLISH + text, max_length=512) for text in TEXTS]
    np.testing.assert_allclose(embedder.encode_queries(TEXTS), expected, atol=TOLERANCE)


def test_token_vectors_are_the_normalised_states_special_tokens_included(hub_cache):
    folder = references.snapshot_of(hub_cache, "BAAI/bge-small-en-v1.5")
    rows = bge_runtime.Embedder(truncation="silent").encode_tokens(TEXTS)
    for text, row in zip(TEXTS, rows, strict=True):
        expected = references.unit(references.token_states(folder, text, 512))
        np.testing.assert_allclose(row, expected, atol=2 * TOLERANCE)


@pytest.mark.parametrize("backend", ["packed", "torch"])
@pytest.mark.parametrize(
    ("name", "max_length"),
    [("BAAI/bge-reranker-base", 512), ("BAAI/bge-reranker-base", 64), ("BAAI/bge-reranker-v2-m3", 1024)],
)
def test_scores_equal_the_classifiers_logit(hub_cache, name, max_length, backend):
    folder = references.snapshot_of(hub_cache, name)
    reranker = bge_runtime.Reranker(name, max_length=max_length, truncation="silent", backend=backend)
    expected = [references.pair_logit(folder, *pair, max_length=max_length).item() for pair in PAIRS]
    scores = reranker.score_pairs(PAIRS)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, atol=TOLERANCE)
    squashed = bge_runtime.Reranker(name, max_length=max_length, truncation="silent", normalize=True)
    np.testing.assert_allclose(squashed.score_pairs(PAIRS), 1 / (1 + np.exp(-np.array(expected))), atol=TOLERANCE)


@pytest.mark.parametrize("backend", ["packed", "torch"])
def test_two_labels_give_the_log_odds_of_the_second(tmp_path, backend):
    folder = two_label_folder(tmp_path)
    logits = np.array([references.pair_logit(folder, *pair, max_length=512) for pair in PAIRS])
    scores = bge_runtime.Reranker(folder, truncation="silent", backend=backend).score_pairs(PAIRS)
    np.testing.assert_allclose(scores, logits[:, 1] - logits[:, 0], atol=TOLERANCE)


def test_pairs_of_many_queries_score_as_each_query_alone(hub_cache):
    reranker = bge_runtime.Reranker(truncation="silent")
    alone = [reranker.score(query, [document])[0] for query, document in PAIRS]
    np.testing.assert_allclose(reranker.score_pairs(PAIRS), alone, atol=TOLERANCE)


@pytest.mark.parametrize("batch_tokens", [1, 300, 100_000])
def test_a_texts_vector_does_not_depend_on_its_batch_mates(hub_cache, batch_tokens):
    embedder = bge_runtime.Embedder(truncation="silent", batch_tokens=batch_tokens)
    alone = np.concatenate([embedder.encode_documents([text]) for text in TEXTS])
    together = embedder.encode_documents(TEXTS)
    assert 1 - (alone * together).sum(axis=1).min() < TOLERANCE
    np.testing.assert_allclose(together, alone, atol=TOLERANCE)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_near_float32(hub_cache, dtype):
    exact = bge_runtime.Embedder().encode_documents(TEXTS[3:7])
    half = bge_runtime.Embedder(precision=dtype, backend="packed").encode_documents(TEXTS[3:7])
    assert half.dtype == np.float32
    assert (exact * half).sum(axis=1).min() > 0.995
    assert np.abs(exact - half).max() > 1e-6
    np.testing.assert_allclose(np.linalg.norm(half, axis=1), 1, atol=TOLERANCE)
