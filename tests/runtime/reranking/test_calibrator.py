"""The calibrator as an object and as a file, and what a reranker does with it."""

from __future__ import annotations

import json
import pickle
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bge_runtime import (
    DEFAULT_OFFLINE_MODEL,
    ConfigurationError,
    Embedder,
    InputError,
    Reranker,
    ScoreCalibrator,
    ScoreThreshold,
    TokenIndex,
    score_facts,
)

DOCUMENTS = ["The heart pumps blood.", "Paris is the capital of France.", "Lungs take up oxygen."]
QUERY = "Which organ moves blood?"
KNOTS = ((-1.0, 0.01), (0.3, 0.2), (0.6, 0.9), (1.0, 0.99))
THRESHOLD = ScoreThreshold(
    purpose="precision",
    target=0.8,
    score=0.55,
    probability=0.78,
    score_interval=(0.5, 0.6),
    reached=0.81,
    interval=(0.7, 0.9),
    confidence=0.95,
    kept=40,
)


def made(scorer: Any, **options: Any) -> ScoreCalibrator:
    identity, words = score_facts(scorer)
    return ScoreCalibrator(**{"method": "isotonic", "knots": KNOTS, "identity": identity, "scorer": words, **options})


@pytest.fixture(scope="module")
def late() -> Reranker:
    return Reranker(DEFAULT_OFFLINE_MODEL)


def test_probabilities_lie_on_the_lines_between_knots_and_level_outside(late: Reranker) -> None:
    found = made(late).probabilities([[-2, 0.3], [0.45, 2], [0.6, float("nan")]])
    np.testing.assert_allclose(found, [[0.01, 0.2], [0.55, 0.99], [0.9, np.nan]])
    assert found.dtype == np.float64


def test_platt_is_the_logistic_curve_and_survives_extremes(late: Reranker) -> None:
    calibrator = made(late, method="platt", knots=(), slope=2.0, intercept=-1.0)
    with np.errstate(all="raise", under="ignore"):
        found = calibrator.probabilities([0.5, 1.5, -1e6, 1e6, float("nan")])
    np.testing.assert_allclose(found, [0.5, 1 / (1 + np.exp(-2)), 0, 1, np.nan])


def test_applying_costs_microseconds(late: Reranker) -> None:
    calibrator, scores = made(late), np.linspace(-1, 1, 100, dtype=np.float32)
    taken = []
    for _ in range(50):
        started = time.perf_counter()
        calibrator.probabilities(scores)
        taken.append(time.perf_counter() - started)
    assert min(taken) < 1e-3


def test_scores_that_are_no_numbers_are_refused(late: Reranker) -> None:
    with pytest.raises(InputError, match="'a'"):
        made(late).probabilities(["a"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"knots": ((0.0, 0.5),)}, "1 knots"),
        ({"knots": ((0.0, 0.5), (0.0, 0.6))}, "no map that rises"),
        ({"knots": ((0.0, 0.5), (1.0, 0.4))}, "no map that rises"),
        ({"knots": ((0.0, 0.5), (1.0, 1.4))}, "no map that rises"),
        ({"knots": ((0.0, 0.5), (float("nan"), 0.6))}, "no map that rises"),
        ({"method": "platt", "slope": -1.0}, "slope=-1.0"),
        ({"method": "beta"}, "method='beta'"),
        ({"identity": ""}, "identity=''"),
    ],
)
def test_what_is_no_map_is_refused(late: Reranker, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        made(late, **options)


def test_a_file_gives_back_an_equal_calibrator(late: Reranker, tmp_path: Path) -> None:
    calibrator = made(late, thresholds=(THRESHOLD,), fitted={"questions": 7}, weak=True)
    calibrator.save(tmp_path / "c.json")
    calibrator.save(tmp_path / "c.json")  # in the place of the one before
    assert [file.name for file in tmp_path.iterdir()] == ["c.json"]
    again = ScoreCalibrator.read(tmp_path / "c.json")
    assert again == calibrator == pickle.loads(pickle.dumps(calibrator))
    assert again.digest == calibrator.digest
    assert again.threshold("precision") == THRESHOLD
    with pytest.raises(ConfigurationError, match=r"'recall' has no threshold.*'precision'"):
        again.threshold("recall")


def content(late: Reranker) -> dict[str, Any]:
    return made(late, thresholds=(THRESHOLD,)).as_dict()


@pytest.mark.parametrize("name", ["knots", "identity", "thresholds", "scorer", "weak", "digest"])
def test_a_file_that_was_edited_by_hand_is_refused(late: Reranker, tmp_path: Path, name: str) -> None:
    edited = {"knots": [[0, 0], [1, 1]], "identity": "0" * 32, "thresholds": [], "scorer": {}, "weak": True}
    (tmp_path / "c.json").write_text(json.dumps({**content(late), name: edited.get(name, "0" * 64)}))
    with pytest.raises(ConfigurationError, match=r"c\.json' was changed after it was saved"):
        ScoreCalibrator.read(tmp_path / "c.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no calibrator"),
        ("[1]", "is no calibrator"),
        ("{}", "is no calibrator"),
        ("[" * 100_000, "is no calibrator"),
        ('{"format": 2, "digest": "0"}', "format 2; this version reads 1"),
    ],
    ids=["empty", "list", "nothing", "deep", "newer"],
)
def test_a_file_that_is_no_calibrator_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        ScoreCalibrator.read(tmp_path / "c.json")


def test_a_place_that_cannot_be_read_or_written_is_named(late: Reranker, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nowhere"):
        ScoreCalibrator.read(tmp_path / "nowhere")
    with pytest.raises(ConfigurationError, match="cannot be saved"):
        made(late).save(tmp_path / "nowhere" / "c.json")
    with pytest.raises(ConfigurationError, match="calibrator=3 "):
        Reranker(DEFAULT_OFFLINE_MODEL, calibrator=3)  # type: ignore[arg-type]


def test_the_scorer_it_was_fitted_on_passes_whatever_changes_no_scores(late: Reranker) -> None:
    made(late).check(Reranker(DEFAULT_OFFLINE_MODEL, normalize=True, device="cpu", batch_size=2))
    made(late).check(Reranker(Embedder(DEFAULT_OFFLINE_MODEL)))


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (Embedder(DEFAULT_OFFLINE_MODEL), "score 'late_interaction' there, 'cosine' here"),
        (Reranker(DEFAULT_OFFLINE_MODEL, precision="int8"), "precision 'float' there, 'int8' here"),
        (Reranker(DEFAULT_OFFLINE_MODEL, max_length=64), "max_length '256' there, '64' here"),
        (Reranker(DEFAULT_OFFLINE_MODEL, token_pooling=2), "token_pooling None there, '2' here"),
        (Reranker(DEFAULT_OFFLINE_MODEL, long_document="max_passage"), "long_document None there, 'max_passage' here"),
    ],
    ids=["cosine", "int8", "length", "pooling", "passages"],
)
def test_another_scorer_is_refused_with_both_named(late: Reranker, other: Any, difference: str) -> None:
    with pytest.raises(ConfigurationError, match=difference) as caught:
        made(late).check(other)
    assert str(caught.value).count(repr(DEFAULT_OFFLINE_MODEL)) == 2


def test_another_instruction_is_refused() -> None:
    one, other = (Embedder(DEFAULT_OFFLINE_MODEL, query_instruction=text) for text in ("query: ", ""))
    with pytest.raises(ConfigurationError, match="query_instruction 'query: ' there, '' here"):
        made(one).check(other)


@pytest.mark.usefixtures("hub_cache")
@pytest.mark.parametrize("options", [{"prompt": "Is B about A?"}, {"cutoff_layers": 2}])
def test_another_prompt_or_layer_is_refused(options: dict[str, Any]) -> None:
    model = "BAAI/bge-reranker-v2-gemma" if "prompt" in options else "BAAI/bge-reranker-v2-minicpm-layerwise"
    spec = Reranker(model).spec
    options = options if spec.layers is None else {"cutoff_layers": spec.layers[0]}
    (name,) = options
    with pytest.raises(ConfigurationError, match=f"{name.removesuffix('s')}\\w* None there"):
        made(Reranker(model)).check(Reranker(model, **options))


def test_a_calibrated_reranker_has_another_identity(late: Reranker) -> None:
    calibrated, other = (Reranker(late.embedder, calibrator=made(late, weak=weak)) for weak in (False, True))
    assert len({late.identity, calibrated.identity, other.identity}) == 3
    assert late.identity == late.score_identity == calibrated.score_identity
    assert Reranker(**calibrated.options()).identity == calibrated.identity


def test_ties_of_probabilities_keep_the_order_of_raw_scores(late: Reranker) -> None:
    level = made(late, knots=((0.99, 0.5), (1.0, 0.6)))
    ranking = Reranker(late.embedder, calibrator=level).rank(QUERY, DOCUMENTS)
    assert {each.score for each in ranking} == {0.5}
    assert [each.index for each in ranking] == [each.index for each in late.rank(QUERY, DOCUMENTS)]


def test_a_token_index_gives_the_probabilities_of_its_reranker(late: Reranker) -> None:
    calibrated = Reranker(late.embedder, calibrator=made(late))
    index = TokenIndex(calibrated)
    index.add(DOCUMENTS, ["a", "b", "c"])
    hits = index.search(QUERY)
    assert hits[0].id == "a"
    np.testing.assert_allclose([hit.score for hit in hits], sorted(calibrated.score(QUERY, DOCUMENTS))[::-1], atol=2e-3)


def test_what_a_calibrator_was_not_fitted_on_is_refused(late: Reranker) -> None:
    with pytest.raises(ConfigurationError, match=r"dense_weight=0\.5 makes a mixture"):
        Reranker(late.embedder, calibrator=made(late)).rank(QUERY, DOCUMENTS, dense_weight=0.5)
