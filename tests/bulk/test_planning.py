"""What a plan says follows from what was measured."""

from __future__ import annotations

import pytest

from bge_runtime import ConfigurationError, Embedder, VectorCache
from bge_runtime.bulk import plan_embedding
from bge_runtime.bulk.embedding import checked_settings
from bge_runtime.bulk.planning import _encoded, _row_bytes
from bge_runtime.bulk.sources import Row, Source
from tests.bulk.corpora import MODEL, sentences, write_lines


@pytest.fixture
def sample(tmp_path):
    return write_lines(tmp_path / "sample.jsonl", sentences(200))


def test_hours_and_bytes_follow_from_the_measurement(embedder, sample):
    plan = plan_embedding(10**9, embedder, sample=sample, seconds=0.3)
    one, eight, many = plan.estimates
    assert [each.devices for each in plan.estimates] == [1, 8, 64]
    assert plan.texts_per_second == pytest.approx(plan.measured_texts / plan.measured_seconds)
    computing = 10**9 / plan.texts_per_second / 3600
    assert computing < one.hours < computing * 1.5
    # What is left of the hours of one device is what no second device takes off.
    assert one.hours - eight.hours == pytest.approx(computing * 7 / 8)
    assert eight.hours - many.hours == pytest.approx(computing * 7 / 64)
    assert one.disk_bytes == many.disk_bytes == pytest.approx(10**9 * (384 * 4 + 10), rel=0.02)
    assert many.memory_bytes == pytest.approx(64 * one.memory_bytes, abs=64)
    assert one.moved_bytes > one.disk_bytes
    assert many.moved_bytes > one.moved_bytes
    assert plan.assumptions


def test_a_measurement_takes_about_as_long_as_it_was_given(embedder, sample):
    for seconds in (0.2, 1.0):
        measured = plan_embedding(10, embedder, sample=sample, seconds=seconds).measured_seconds
        assert seconds / 3 < measured < 3 * seconds + 0.3


@pytest.mark.parametrize(("format", "bytes_of_a_row"), [("float16", 768), ("int8", 384), ("binary", 48)])
def test_the_format_decides_the_disk(embedder, sample, format, bytes_of_a_row):
    plan = plan_embedding(10**6, embedder, sample=sample, format=format, seconds=0.2)
    # In a slow moment few rows are measured, and what a file has beside them weighs the more.
    assert bytes_of_a_row * 10**6 < plan.estimates[0].disk_bytes < (bytes_of_a_row * 1.4 + 80) * 10**6


def test_few_rows_tell_as_much_of_the_disk_as_many(embedder):
    texts = sentences(512)
    sizes = []
    for count in (64, 512):
        rows = [Row(f"id:{number}", text, number) for number, text in enumerate(texts[:count], start=1)]
        settings = checked_settings(embedder, Source((), "text", ""), "document", "binary", ("dense",), None)
        sizes.append(_row_bytes(settings, *_encoded(embedder, rows, settings)))
    assert sizes[0] == pytest.approx(sizes[1], rel=0.25)


def test_without_a_sample_texts_are_made_up_and_it_says_so(embedder):
    plan = plan_embedding(10**6, embedder, seconds=0.2)
    assert "made up" in plan.assumptions[0]
    assert 90 < plan.tokens_per_text <= 512


def test_vectors_that_are_remembered_are_measured_all_the_same(hub_cache, sample, tmp_path):
    with Embedder(MODEL, vector_cache=VectorCache(tmp_path / "vectors.sqlite")) as embedder:
        embedder.encode_documents(sentences(200))
        stored = embedder.vector_cache.stats
        plan_embedding(10, embedder, sample=sample, seconds=0.2)
        assert embedder.vector_cache.stats == stored


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"rows": 0}, "rows=0"), ({"rows": 5, "seconds": 0}, "seconds=0"), ({"rows": 5, "format": "f"}, "format='f'")],
)
def test_arguments_of_a_plan_that_cannot_be_are_refused(embedder, arguments, message):
    rows = arguments.pop("rows")
    with pytest.raises(ConfigurationError, match=message):
        plan_embedding(rows, embedder, **arguments)
