"""`bge doctor --verify`: seeded checkpoints stand for the hub's, and made-up values for the authors'."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

import bge_runtime
from bge_runtime import ConfigurationError
from bge_runtime.evaluation import verification
from bge_runtime.evaluation.published import PublishedValue
from tests.runtime import references

QUERIES = ("What is the weather today?", "How do I turn the query instruction off?")
PASSAGES = ("Water boils at 100 degrees.", "Pass an empty string as the instruction.", "red green")
INSTRUCTION = "Represent this sentence for searching relevant passages: "


def published(model, quantity, expected, **facts):
    """A published value that nobody published."""
    values = {"tolerance": 1e-4, "printed_in": "float32", "source": "made up", "title": quantity, **facts}
    return PublishedValue(
        model=model, quantity=quantity, expected=tuple(float(number) for number in expected), **values
    )


@pytest.fixture
def publish(monkeypatch):
    """Put values in the place of the published ones."""
    return lambda *values: monkeypatch.setattr(verification, "PUBLISHED", values)


@pytest.fixture
def small(hub_cache):
    """The true values of the seeded bge-small-en-v1.5, from plain transformers."""
    folder = references.snapshot_of(hub_cache, "BAAI/bge-small-en-v1.5")
    queries = [references.vector(folder, INSTRUCTION + text, max_length=512) for text in QUERIES]
    passages = [references.vector(folder, text, max_length=512) for text in PASSAGES]
    texts = {"queries": QUERIES, "passages": PASSAGES}
    name = "BAAI/bge-small-en-v1.5"
    return (
        published(name, "similarity", (np.stack(queries) @ np.stack(passages).T).ravel(), **texts),
        published(name, "vector", passages[0][:4], passages=PASSAGES[:1]),
    )


@pytest.fixture
def scores(hub_cache):
    """The true scores of the seeded bge-reranker-base."""
    folder = references.snapshot_of(hub_cache, "BAAI/bge-reranker-base")
    pairs = list(zip(QUERIES, PASSAGES, strict=False))
    logits = [float(references.pair_logit(folder, *pair, max_length=512)[0]) for pair in pairs]
    name, texts = "BAAI/bge-reranker-base", {"queries": QUERIES, "passages": PASSAGES[:2]}
    return (
        published(name, "score", logits, **texts),
        published(
            name,
            "score",
            [1 / (1 + np.exp(-logit)) for logit in logits],
            **texts,
            options={"normalize": True},
            title="s",
        ),
    )


def test_right_values_pass(bge, publish, small, scores):
    publish(*small, *scores)

    embedder, reranker = bge("doctor", "--verify", "bge-small-EN-v1.5"), bge("doctor", "--verify", scores[0].model)

    assert (embedder.exit_code, reranker.exit_code) == (0, 0), embedder.output + reranker.output
    titles, *rows = embedder.stdout.splitlines()
    assert titles.split() == ["VALUE", "OF", "EXPECTED", "GOT", "TOLERANCE", "OK"]
    assert len(rows) == 6 + 4
    assert all(row.endswith(" ok") for row in (*rows, *reranker.stdout.splitlines()[1:]))
    assert "What is the weather t... | red green" in embedder.stdout


@pytest.mark.parametrize("wrong", [0.01, float("nan")])
def test_a_wrong_value_fails_and_is_shown(bge, publish, scores, wrong):
    expected = (scores[0].expected[0] + wrong, scores[0].expected[1])
    publish(published(scores[0].model, "score", expected, queries=QUERIES, passages=PASSAGES[:2]))

    shown = bge("doctor", "--verify", scores[0].model)
    as_json = bge("doctor", "--verify", scores[0].model, "--json")

    assert (shown.exit_code, as_json.exit_code) == (1, 1)
    _, first, second = shown.stdout.splitlines()
    assert first.endswith(" WRONG")
    assert f"{scores[0].expected[0]:.4g}"[:5] in first
    assert second.endswith(" ok")
    result = json.loads(as_json.stdout)
    assert result["ok"] is False
    assert [check["ok"] for check in result["checks"]] == [False, True]
    assert result["checks"][0]["got"] == pytest.approx(scores[0].expected[0], abs=1e-4)
    assert result["checks"][0]["tolerance"] == 1e-4


@pytest.mark.parametrize("change", [{"query_instruction": ""}, {"truncate_dim": 8}], ids=str)
def test_the_options_of_a_value_are_used(publish, small, change):
    publish(
        published(small[0].model, "similarity", small[0].expected, queries=QUERIES, passages=PASSAGES, options=change)
    )

    assert not verification.verify(small[0].model).ok


def test_a_model_without_published_values_is_an_error_that_names_those_with_some(bge, publish, small):
    publish(*small)

    result = bge("doctor", "--verify", "BAAI/bge-reranker-base")

    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("Error: No published values are known of 'BAAI/bge-reranker-base'.")
    assert result.stderr.count("BAAI/bge-small-en-v1.5") == 1


def test_a_model_that_cannot_be_loaded_gives_the_ordinary_error(bge):
    result = bge("doctor", "--verify", "BAAI/bge-base-en")

    assert result.exit_code == 2
    assert "the hub cannot be reached" in result.stderr


def test_the_list_shows_every_value_and_loads_nothing(bge, monkeypatch):
    monkeypatch.setattr(bge_runtime, "Embedder", None)
    monkeypatch.setattr(bge_runtime, "Reranker", None)

    shown = bge("doctor", "--verify", "list")
    listed = json.loads(bge("doctor", "--verify", "list", "--json").stdout)["values"]

    assert shown.exit_code == 0
    titles, *rows = shown.stdout.splitlines()
    assert titles.split()[:2] == ["MODEL", "VALUE"]
    assert len(rows) == len(listed) == len(verification.PUBLISHED)
    panda = [value for value in listed if "what is panda?" in value["queries"]]
    assert {"BAAI/bge-reranker-base", "BAAI/bge-reranker-large", "BAAI/bge-reranker-v2-m3"} == {
        value["model"] for value in panda
    }
    assert all(value["source"] and value["tolerance"] >= 0 for value in listed)


class ThreeOutputs:
    """Stands for an embedder with three outputs: two weighted tokens and one vector for each word."""

    def __init__(self, model, **options):
        assert (model, options) == ("BAAI/bge-m3", {"precision": "float32"})

    def __enter__(self):
        return self

    def __exit__(self, *error):
        """Nothing is held."""

    def encode_all(self, texts, *, outputs):
        vectors = [np.zeros((len(text.split()), 3), dtype=np.float32) for text in texts]
        return SimpleNamespace(
            sparse=[{5: 0.25, 7: 0.5}] if outputs == ("sparse",) else None,
            multi_vector=vectors if outputs == ("multi_vector",) else None,
        )


@pytest.mark.parametrize(
    ("value", "verdict"),
    [
        (
            published("BAAI/bge-m3", "lexical_weights", (0.5, 0.25, 2), queries=("a",), tokens=(("x", 7), ("y", 5))),
            [1, 1, 1],
        ),
        (
            published("BAAI/bge-m3", "lexical_weights", (0.5, 0.25, 2), queries=("a",), tokens=(("x", 7), ("y", 6))),
            [1, 0, 1],
        ),
        (published("BAAI/bge-m3", "lexical_weights", (0.5, 1), queries=("a",), tokens=(("x", 7),)), [1, 0]),
        (published("BAAI/bge-m3", "token_vectors", (1, 3, 2, 3), passages=("a", "b c"), tolerance=0.0), [1, 1, 1, 1]),
        (published("BAAI/bge-m3", "token_vectors", (1, 3, 3, 3), passages=("a", "b c"), tolerance=0.0), [1, 1, 0, 1]),
    ],
    ids=["weights", "another token", "a token too many", "shapes", "another shape"],
)
def test_sparse_weights_and_token_vectors_are_compared(monkeypatch, publish, value, verdict):
    monkeypatch.setattr(bge_runtime, "Embedder", ThreeOutputs)
    publish(value)

    assert [check.ok for check in verification.verify("bge-m3").checks] == list(map(bool, verdict))


def test_values_printed_from_half_precision_are_computed_as_this_machine_chooses(monkeypatch, publish):
    asked = []

    def stop(model, **options):
        asked.append(options)
        raise ConfigurationError("enough")

    monkeypatch.setattr(bge_runtime, "Reranker", stop)
    for printed in ("float32", "float16"):
        publish(published("BAAI/bge-reranker-base", "score", (1,), queries=("a",), passages=("b",), printed_in=printed))
        with pytest.raises(ConfigurationError, match="enough"):
            verification.verify("bge-reranker-base")

    assert asked == [{"precision": "float32"}, {"precision": None}]
