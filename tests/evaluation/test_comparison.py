"""`compare`: a grid, what it costs, what chance can do, and what to take."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bge_runtime import ConfigurationError, VectorCache
from bge_runtime.evaluation.comparison import compare, compare_evaluations
from bge_runtime.evaluation.evaluation import Evaluation
from bge_runtime.evaluation.judgements import Judgements
from bge_runtime.evaluation.settings import parse_axes, settings_of
from bge_runtime.evaluation.subjects import Costs, ModelSubject

MODEL = "BAAI/bge-small-en-v1.5"
QUESTIONS = [f"q{number}" for number in range(60)]


def evaluation(values, milliseconds, size=1536, rerank=0.0):
    values = values if isinstance(values, list) else [values] * len(QUESTIONS)
    return Evaluation(
        label="x",
        data="made",
        data_digest="d",
        metrics={"nDCG@10": sum(values) / len(values)},
        per_query={"nDCG@10": dict(zip(QUESTIONS, values, strict=True))},
        run={query: [("a", 1.0)] for query in QUESTIONS},
        best_scores={},
        queries=len(QUESTIONS),
        identity="i",
        costs=Costs(query_ms=milliseconds, rerank_ms=rerank, bytes_per_vector=size),
    )


def test_the_best_is_recommended_where_it_is_significantly_better():
    found = compare_evaluations({"plain": evaluation(0.5, 1), "reranked": evaluation(0.9, 100)})
    assert found.pairs[0].is_significant
    assert found.recommendation.label == "reranked"
    assert "significantly better" in found.recommendation.reason


def test_the_cheapest_is_recommended_where_the_questions_cannot_tell():
    noisy = [0.5 + (0.3 if number % 2 else -0.3) for number in range(len(QUESTIONS))]
    found = compare_evaluations({"dear": evaluation(noisy[::-1], 100), "cheap": evaluation([0.499, *noisy[1:]], 1)})
    assert not found.pairs[0].is_significant
    assert found.recommendation.label == "cheap"
    assert "cannot tell" in found.recommendation.reason
    assert any("Nothing here is significant" in line for line in found.warnings)
    assert any(line.startswith("60 questions can tell") for line in found.warnings)


def test_the_front_holds_what_nothing_beats_in_quality_time_and_size():
    found = compare_evaluations(
        {
            "quick": evaluation(0.5, 1),
            "small": evaluation(0.4, 2, size=48),
            "good": evaluation(0.9, 9),
            "beaten": evaluation(0.5, 3),
        }
    )
    assert [each.label for each in found.entries if each.on_front] == ["quick", "small", "good"]


def test_reranking_that_lowers_quality_is_said_aloud():
    found = compare_evaluations(
        {"plain": evaluation(0.9, 1), "reranked": evaluation(0.5, 1, rerank=50)}, reranks={"reranked": "plain"}
    )
    assert any("Reranking lowers quality: reranked" in line and "significantly" in line for line in found.warnings)


def test_other_questions_cannot_be_compared():
    other = evaluation(0.5, 1)
    shorter = {"nDCG@10": dict(list(other.per_query["nDCG@10"].items())[1:])}
    with pytest.raises(ConfigurationError, match="was not measured by"):
        compare_evaluations({"a": other, "b": replace(other, per_query=shorter)})


def test_a_grid_runs_every_combination_once_and_goes_on_where_it_was_cut_off(data, tmp_path, monkeypatch, hub_cache):
    cache = VectorCache(tmp_path / "vectors.sqlite")
    axes = parse_axes(["bits=float32,binary", "rerank=none,late_interaction", "depth=4,8"])
    told = []

    def run():
        return compare(MODEL, data, axes, vector_cache=cache, folder=tmp_path / "runs", notify=told.append)

    found = run()
    # Without a reranker its depth has no meaning: 2 x (1 + 2), not 2 x 2 x 2.
    assert [each.label for each in found.entries] == [
        "bits=float32 rerank=none",
        "bits=float32 rerank=late_interaction depth=4",
        "bits=float32 rerank=late_interaction depth=8",
        "bits=binary rerank=none",
        "bits=binary rerank=late_interaction depth=4",
        "bits=binary rerank=late_interaction depth=8",
    ]
    assert len(found.pairs) == 15
    assert [line.partition(":")[0] for line in told] == [f"{number} of 6" for number in range(1, 7)]
    assert all(each.evaluation.costs.query_ms > 0 and each.evaluation.costs.texts_per_s > 0 for each in found.entries)
    assert found.entries[1].reranks == found.entries[0].label
    assert "BGERerank(" in found.entries[1].code
    monkeypatch.setattr(ModelSubject, "rank", lambda *_: pytest.fail("it was done already"))
    assert run().as_dict()["pairs"] == found.as_dict()["pairs"]


@pytest.mark.parametrize(("axis", "in_memory"), [("precision=float32,bfloat16", True), ("backend=auto,torch", False)])
def test_each_precision_and_backend_computes_its_own_vectors_whatever_the_cache_holds(
    data, tmp_path, axis, in_memory, hub_cache
):
    cache = VectorCache(None if in_memory else tmp_path / "vectors.sqlite")
    found = compare(MODEL, data, parse_axes([axis]), vector_cache=cache)
    texts = len(data.documents) + len(data.queries) + len(data.unanswerable)
    assert [each.evaluation.costs.texts_embedded for each in found.entries] == [texts] * 2
    scores = [[hits[0][1] for hits in each.evaluation.run.values()] for each in found.entries]
    assert scores[0] != scores[1]


def test_chunks_of_three_sizes_are_compared_on_the_same_documents(data, hub_cache):
    found = compare(MODEL, data, parse_axes(["chunk_size=whole,32,64"]))
    assert [each.label for each in found.entries] == ["chunk_tokens=whole", "chunk_tokens=32", "chunk_tokens=64"]
    for each in found.entries:
        assert all({name for name, _ in ranked} <= set(data.documents) for ranked in each.evaluation.run.values())
        assert each.evaluation.metrics["R@100"] == 1


def test_the_weights_of_bge_m3_are_fitted_on_the_other_half(hub_cache):
    words = ("heart", "city", "bread", "lungs", "river", "flour")
    data = Judgements(
        name="words",
        queries={word: f"{word}?" for word in words},
        grades={word: {word: 1} for word in words},
        documents={word: f"about {word}" for word in words},
    )
    found = compare("BAAI/bge-m3", data, parse_axes(["weights=fit,0.4/0.2/0.4", "depth=6"]))
    assert [each.label for each in found.entries] == ["weights=fit depth=6", "weights=0.4/0.2/0.4 depth=6"]
    assert all(len(each.evaluation.run) == len(data.queries) for each in found.entries)
    assert "weights=(0.4, 0.2, 0.4)" in found.entries[1].code


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["nonsense=1"], "nonsense=1.*instruction"),
        (["precision"], "AXIS=VALUE"),
        (["precision=float32,float32"], "twice"),
        (["precision=float32", "precision=int8"], "twice"),
        (["depth=0"], "depth='0'"),
        (["bits=int4"], "bits='int4'"),
        (["weights=1/2"], "weights='1/2'"),
        (["depth=10,20"], "depth=... applies to nothing"),
        (["token_pooling=2", "rerank=BAAI/bge-reranker-base"], "token_pooling=... applies to nothing"),
    ],
)
def test_a_wrong_axis_is_an_error_that_says_what_is_allowed(given, message):
    with pytest.raises(ConfigurationError, match=message):
        settings_of("m", parse_axes(given))


def test_an_instruction_may_hold_commas():
    axes = parse_axes(["instruction=default|none|Find what, if anything, answers: "])
    assert [each.instruction for each in settings_of("m", axes)] == [None, "", "Find what, if anything, answers:"]


def test_a_combination_that_cannot_run_fails_before_any_runs(data, monkeypatch):
    monkeypatch.setattr(ModelSubject, "rank", lambda *_: pytest.fail("something ran"))
    with pytest.raises(ConfigurationError, match="truncate_dim"):
        compare("BAAI/bge-small-en-v1.5", data, parse_axes(["truncate_dim=all,9999"]))
