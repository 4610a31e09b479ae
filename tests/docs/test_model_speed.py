"""The speed of model shapes: small stand-ins are measured, figures are kept, the shapes are the published ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import model_speed
from benchmarks.model_speed import SHAPES, TOKENS, Shape
from bge_runtime import get_spec, list_models

TINY = tuple(
    replace(shape, layers=1, width=32, heads=4, vocabulary=30_522)
    for shape in SHAPES
    if shape.name in ("minilm", "reranker-base")
)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Measure small stand-ins; returns the results and the shapes that were measured now."""
    measured: list[str] = []
    measure = model_speed.measure
    monkeypatch.setattr(model_speed, "SHAPES", TINY)
    monkeypatch.setattr(model_speed, "draw", lambda path: None)

    def noted(folder: Path, **options: int):
        measured.append(json.loads((folder / "config.json").read_text())["model_type"])
        return measure(folder, **options)

    def call(*arguments: str):
        measured.clear()
        file = tmp_path / "model_speed.json"
        monkeypatch.setattr(model_speed, "measure", noted)
        model_speed.main(["--results", str(file), "--rounds", "2", "--count", "2", *arguments])
        return json.loads(file.read_text(encoding="utf-8")), list(measured)

    return call


def test_a_run_that_was_interrupted_goes_on_and_other_machines_are_dropped(
    run, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, measured = run("--shapes", "reranker-base")
    assert measured == ["xlm-roberta"]
    assert list(results["shapes"]) == ["reranker-base"]
    entry = results["shapes"]["reranker-base"]
    assert entry["models"] == ["BAAI/bge-reranker-base"]
    assert set(entry["texts_per_s"]) | set(entry["reasons"]) == {"float32", "int8"}
    low, high = entry["range"]["float32"]
    assert 0 < low <= entry["texts_per_s"]["float32"] <= high

    results, measured = run()
    assert measured == ["bert"]
    assert list(results["shapes"]) == ["minilm", "reranker-base"]

    monkeypatch.setattr(model_speed, "machine", lambda: {"processor": "another"})
    results, _ = run("--shapes", "minilm")
    assert list(results["shapes"]) == ["minilm"]


def test_the_texts_have_the_length_that_is_stated(tmp_path: Path) -> None:
    from bge_runtime import Embedder

    with Embedder(model_speed.write(tmp_path, TINY[0])) as embedder:
        assert set(embedder.count_tokens(model_speed._texts(4, 0))) == {TOKENS}
    assert not set(model_speed._texts(4, 0)) & set(model_speed._texts(4, 1))


def test_every_runnable_bert_and_xlm_r_model_has_one_shape() -> None:
    named = [model for shape in SHAPES for model in shape.models]
    expected = [s.id for s in list_models() if s.architecture in ("bert", "xlm-roberta") and s.unsupported is None]
    assert sorted(named) == sorted(expected)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_a_shape_has_the_parameters_of_its_models(shape: Shape) -> None:
    layers = shape.layers * (12 * shape.width**2 + 13 * shape.width)
    for model in shape.models:
        spec = get_spec(model)
        # The models of one shape differ in vocabulary and positions.
        vocabulary = 21_128 if "zh" in spec.languages and spec.architecture == "bert" else shape.vocabulary
        embeddings = (vocabulary + (spec.positions or spec.max_length)) * shape.width
        assert spec.architecture == shape.family
        assert spec.dimension in (None, shape.width)
        assert layers + embeddings == pytest.approx(spec.parameters, rel=0.02)
