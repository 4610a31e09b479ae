"""The packaged all-MiniLM-L6-v2: vectors mean something, and retrieval on real text is as good as it should be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import bge_runtime
from bge_runtime.vectors.token_pooling import pool_tokens

DATA = Path(__file__).parents[1] / "data" / "scifact_small"
TOLERANCE = 0.001
CANDIDATES = 50
PARAPHRASES = [
    ("How do I cancel my order?", "What are the steps to undo a purchase?"),
    ("The giant panda lives in the mountains of China.", "Wild pandas are found in Chinese highland forests."),
    ("He was fired from his job.", "The company terminated his employment."),
    ("Aspirin reduces the risk of blood clots.", "Acetylsalicylic acid makes thrombosis less likely."),
]


@pytest.fixture(scope="module")
def embedder():
    return bge_runtime.Embedder(bge_runtime.DEFAULT_OFFLINE_MODEL, truncation="silent")


@pytest.fixture(scope="module")
def scifact():
    """Corpus as names and texts, queries as (name, text), and the judgements."""
    corpus = _read("corpus.jsonl")
    relevant: dict[str, set[str]] = {}
    for line in (DATA / "qrels.tsv").read_text().splitlines()[1:]:
        query, document, _ = line.split("\t")
        relevant.setdefault(query, set()).add(document)
    names = np.array([row["_id"] for row in corpus])
    texts = [f"{row['title']} {row['text']}" for row in corpus]
    return names, texts, [(row["_id"], row["text"]) for row in _read("queries.jsonl")], relevant


@pytest.fixture(scope="module")
def dense_orders(scifact_vectors):
    queries, documents = scifact_vectors
    return np.argsort(-queries @ documents.T, axis=1, kind="stable")


def test_the_offline_model_is_the_packaged_folder(embedder, minilm):
    embedder.warm_up()
    assert str(minilm) in {row.folder for row in bge_runtime.loaded_models()}


@pytest.mark.parametrize("pair", PARAPHRASES, ids=range(len(PARAPHRASES)))
def test_a_paraphrase_is_closer_than_every_unrelated_text(embedder, pair):
    unrelated = [text for other in PARAPHRASES if other != pair for text in other]
    vectors = embedder.encode_documents([*pair, *unrelated])
    similarity = vectors[1:] @ vectors[0]
    assert similarity[0] > similarity[1:].max() + 0.1


def test_late_interaction_puts_the_answer_first():
    reranker = bge_runtime.Reranker(bge_runtime.DEFAULT_OFFLINE_MODEL)
    documents = [
        "Bamboo makes up nearly the whole diet of the giant panda.",
        "The red panda is a small mammal of the eastern Himalayas.",
        "Interest rates rose for the third time this year.",
    ]
    assert [row.index for row in reranker.rank("What do giant pandas eat?", documents)] == [0, 1, 2]


@pytest.mark.slow
def test_dense_retrieval_on_scifact_is_as_good_as_plain_sentence_transformers(scifact, dense_orders):
    names, _, queries, relevant = scifact
    figures = [
        _ndcg_at_10(names[order], relevant[name]) for (name, _), order in zip(queries, dense_orders, strict=True)
    ]
    assert np.mean(figures) == pytest.approx(_reference("dense"), abs=TOLERANCE)


@pytest.mark.slow
def test_late_interaction_on_scifact_is_as_good_as_numpy_and_better_than_dense(embedder, scifact, dense_orders):
    names, texts, queries, relevant = scifact
    candidates = [order[:CANDIDATES] for order in dense_orders]
    pairs = [(text, texts[each]) for (_, text), order in zip(queries, candidates, strict=True) for each in order]
    scores = bge_runtime.Reranker(embedder).score_pairs(pairs).reshape(len(queries), CANDIDATES)
    figures = []
    for (name, _), order, row in zip(queries, candidates, scores, strict=True):
        ranking = [ranked.index for ranked in bge_runtime.order_scores(row)]
        figures.append(_ndcg_at_10(names[order[ranking]], relevant[name]))
    assert np.mean(figures) == pytest.approx(_reference("late_interaction"), abs=TOLERANCE)
    assert np.mean(figures) > _reference("dense") + 0.02


def test_pooled_token_vectors_rank_a_slice_of_scifact_about_as_well(scifact):
    names, texts, queries, relevant = scifact
    asked = queries[:12]
    wanted = set().union(*(relevant[name] for name, _ in asked))
    kept = [n for n, name in enumerate(names) if name in wanted or n % 16 == 0]
    embedder = bge_runtime.Embedder(bge_runtime.DEFAULT_OFFLINE_MODEL, max_length=96, truncation="silent")
    documents = embedder.encode_tokens([texts[n] for n in kept])
    query_tokens = embedder.encode_tokens([text for _, text in asked], role="query")
    means = {}
    for pooling in (1, 2, 3):
        pooled = [pool_tokens(vectors, pooling) for vectors in documents]
        figures = []
        for (name, _), query in zip(asked, query_tokens, strict=True):
            scores = np.array([(query @ vectors.T).max(axis=1).mean() for vectors in pooled])
            figures.append(_ndcg_at_10(names[kept][np.argsort(-scores)], relevant[name]))
        means[pooling] = np.mean(figures)
    assert means[1] > 0.6
    assert min(means[2], means[3]) > means[1] - 0.05


def _read(name):
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def _reference(name):
    return json.loads((DATA / "reference.json").read_text())["ndcg_at_10"][name]


def _ndcg_at_10(ranking, relevant):
    gains = sum(1 / np.log2(place + 2) for place, document in enumerate(ranking[:10]) if document in relevant)
    return gains / sum(1 / np.log2(place + 2) for place in range(min(len(relevant), 10)))
