"""The order that a search gives its candidates."""

from __future__ import annotations

import numpy as np
import pytest

from bge_runtime import Embedder
from bge_runtime.search.late_interaction import HEADING_SHARE, late_interaction
from bge_runtime.search.splitting import Chunk, readable


def chunk(body, heading=""):
    return Chunk(trail=(heading,) if heading else (), heading=heading, body=body)


def expected(embedder, question, texts, text):
    """The score of one text, computed token by token."""
    query = embedder.encode_tokens([question], role="query")[0][1:-1]
    words = [question[start:end].lower() for start, end in embedder.token_offsets(question)]
    rows = embedder.encode_tokens([text])[0]
    total, weights = 0.0, 0.0
    for vector, word in zip(query, words, strict=True):
        holders = sum(
            word in [each[start:end].lower() for start, end in embedder.token_offsets(each)] for each in texts
        )
        weight = np.log(1 + (len(texts) - holders + 0.5) / (holders + 0.5))
        total += weight * max(float(vector @ row) for row in rows)
        weights += weight
    return total / weights


def test_scores_are_weighted_means_of_the_best_cosines(embedder):
    bodies = ["The heart pumps blood.", "Blood is red.", "Paris is in France."]

    scores = late_interaction(embedder, "heart and blood", [chunk(body) for body in bodies])

    independent = [expected(embedder, "heart and blood", bodies, body) for body in bodies]
    np.testing.assert_allclose(scores, independent, atol=1e-5)
    assert scores.dtype == np.float32


def test_the_heading_has_its_share(embedder):
    chunks = [chunk("It pumps.", "Heart"), chunk("It pumps.", "Water works")]

    scores = late_interaction(embedder, "heart", chunks)

    texts = [each.text for each in chunks]
    independent = [
        (1 - HEADING_SHARE) * expected(embedder, "heart", texts, each.text)
        + HEADING_SHARE * expected(embedder, "heart", texts, each.heading)
        for each in chunks
    ]
    np.testing.assert_allclose(scores, independent, atol=1e-5)


def test_words_that_all_candidates_share_hardly_count(embedder):
    chunks = [chunk("The model reads the model file."), chunk("The model is freed from memory.")]

    scores = late_interaction(embedder, "the model memory", chunks)

    assert scores[1] > scores[0] + 0.2


def test_a_chunk_gets_the_same_score_wherever_it_stands(embedder):
    chunks = [chunk("The heart pumps blood."), chunk("Blood is red.", "Colours"), chunk("Paris is in France.")]

    scores = late_interaction(embedder, "heart", chunks)

    np.testing.assert_allclose(late_interaction(embedder, "heart", chunks[::-1]), scores[::-1], atol=1e-5)


def test_no_candidates(embedder):
    assert late_interaction(embedder, "heart", []).shape == (0,)


@pytest.mark.parametrize("question", ["heart " * 600, "\u200b", "🧑‍🚀"])
def test_odd_questions_have_scores(embedder, question):
    scores = late_interaction(embedder, question, [chunk("The heart pumps blood."), chunk("Paris")])

    assert np.isfinite(scores).all()


@pytest.mark.usefixtures("hub_cache")
def test_other_tokenizers_work(embedder):
    scores = late_interaction(Embedder("BAAI/bge-m3"), "heart", [chunk("The heart pumps blood."), chunk("Paris")])

    assert np.isfinite(scores).all()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("SentenceTransformerRerank", "Sentence Transformer Rerank"),
        ("query_instruction", "query instruction"),
        ("BGEEmbeddings", "BGEEmbeddings"),
        ("HTTP 404, a_1 and __init__", "HTTP 404, a_1 and __init__"),
    ],
)
def test_identifiers_are_read_as_words(text, words):
    assert readable(text) == words
