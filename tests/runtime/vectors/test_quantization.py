"""Vectors in bytes and bits: sentence-transformers' numbers, and a search that stays close to float32."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from packaging.version import Version

import bge_runtime
from bge_runtime import quantization_ranges, quantize_embeddings, rescore, search_quantized

DATA = Path(__file__).parents[2] / "data" / "scifact_small"
PRECISIONS = ("int8", "uint8", "binary", "ubinary")
# Of the ten abstracts that float32 finds first, the share that is found too, measured with all-MiniLM-L6-v2:
# bits alone 0.7925, rescored by their signs 0.880, by float32 vectors 0.985; bytes 0.9975.
FLOORS = {"signs": 0.87, "vectors": 0.975, "bytes": 0.99}


@pytest.fixture
def vectors():
    rows = np.random.default_rng(1).normal(size=(300, 37)).astype(np.float32)
    rows[:, 5] = 0.25  # a dimension that says nothing
    return rows


@pytest.fixture(scope="module")
def scifact(scifact_vectors):
    """Query and document vectors, and the rows of each query's relevant documents."""
    corpus, queries = ([json.loads(line) for line in _lines(name)] for name in ("corpus.jsonl", "queries.jsonl"))
    rows = {each["_id"]: row for row, each in enumerate(corpus)}
    relevant: dict[str, set[int]] = {}
    for line in _lines("qrels.tsv")[1:]:
        query, document, _ = line.split("\t")
        relevant.setdefault(query, set()).add(rows[document])
    return *scifact_vectors, [relevant[each["_id"]] for each in queries]


def _lines(name):
    return (DATA / name).read_text(encoding="utf-8").splitlines()


# The same as sentence-transformers


@pytest.mark.skipif(
    Version(version("sentence-transformers")) < Version("6.2"), reason="sentence-transformers rounds so since 6.2"
)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_results_are_those_of_sentence_transformers(vectors, precision, dtype):
    from sentence_transformers.util import quantize_embeddings as theirs

    rows = vectors.astype(dtype)
    more = np.random.default_rng(2).normal(scale=2, size=(50, 37)).astype(dtype)  # values outside of the ranges
    ranges = quantization_ranges(rows)
    for given, options in (
        (rows, {}),
        (more, {"ranges": ranges}),
        (more, {"calibration_embeddings": rows}),
        (more[0], {"ranges": ranges}),
        (more[:0], {"ranges": ranges}),
        (more[:0], {}),
    ):
        ours, expected = quantize_embeddings(given, precision, **options), theirs(given, precision, **options)
        assert ours.dtype == expected.dtype == (np.int8 if precision in ("int8", "binary") else np.uint8)
        np.testing.assert_array_equal(ours, expected)


def test_nothing_heavy_is_imported():
    import subprocess
    import sys

    script = (
        "import sys, numpy as np, bge_runtime\n"
        "rows = np.eye(8, dtype=np.float32)\n"
        "bge_runtime.search_quantized(rows, bge_runtime.quantize_embeddings(rows, 'binary'))\n"
        "assert not {'torch', 'sentence_transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=DATA.parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "columns"), [("int8", 384), ("uint8", 384), ("binary", 48), ("ubinary", 48)])
def test_a_vector_takes_a_byte_or_a_bit_per_dimension(scifact, precision, columns):
    _, documents, _ = scifact
    found = quantize_embeddings(documents, precision)
    assert found.nbytes == len(documents) * columns
    assert documents.nbytes == len(documents) * 384 * 4


def test_ranges_of_few_vectors_are_taken_and_said(vectors, caplog):
    found = quantization_ranges(vectors[:20])
    np.testing.assert_array_equal(found, [vectors[:20].min(0), vectors[:20].max(0)])
    assert "20 vectors only" in caplog.text


# Search


@pytest.mark.parametrize("precision", ["binary", "ubinary"])
def test_bits_are_found_by_hamming_distance_and_ordered_by_the_query_s_values(vectors, precision):
    queries, corpus = vectors[:40], quantize_embeddings(vectors, precision)
    indices, scores = search_quantized(queries, corpus, top_k=5, rescore_multiplier=2)
    signs = np.where(vectors > 0, 1.0, -1.0)
    for query, found, score in zip(queries, indices, scores, strict=True):
        distance = (np.where(query > 0, 1, -1) != signs).sum(axis=1)
        candidates = np.argsort(distance, kind="stable")[:10]
        cosines = signs[candidates] @ query / 37**0.5
        order = np.lexsort((candidates, -cosines.astype(np.float32)))[:5]
        np.testing.assert_array_equal(found, candidates[order])
        np.testing.assert_allclose(score, cosines[order], atol=1e-5)
    assert (indices.dtype, scores.dtype, indices.shape) == (np.int64, np.float32, (40, 5))


@pytest.mark.parametrize("precision", ["int8", "uint8"])
def test_bytes_are_scored_by_the_middle_of_their_part_of_the_range(vectors, precision):
    ranges = quantization_ranges(vectors)
    corpus = quantize_embeddings(vectors, precision, ranges=ranges)
    widths = (ranges[1] - ranges[0]) / 255
    level = corpus.astype(int) + (128 if precision == "int8" else 0)
    middle = ranges[0] + (level + 0.5) * np.where(widths == 0, 1, widths)
    indices, scores = search_quantized(vectors[3], corpus, top_k=300, ranges=ranges)
    expected = middle @ vectors[3]
    np.testing.assert_allclose(scores[0], expected[indices[0]], atol=1e-4)
    np.testing.assert_allclose(rescore(vectors[3], corpus, ranges=ranges), expected, atol=1e-4)
    assert (np.diff(scores[0]) <= 0).all()


def test_vectors_of_a_file_score_the_candidates(vectors, tmp_path):
    np.save(tmp_path / "vectors.npy", vectors)
    on_disk = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    corpus = quantize_embeddings(vectors, "ubinary")
    indices, scores = search_quantized(vectors[:7], corpus, top_k=300, vectors=on_disk)
    products = vectors[:7] @ vectors.T
    # Not the order of the indices: scores that differ in their last digit change places with the matrix library.
    np.testing.assert_allclose(scores, -np.sort(-products, axis=1), atol=1e-5)
    np.testing.assert_allclose(scores, np.take_along_axis(products, indices, axis=1), atol=1e-5)
    assert all(len(set(row)) == 300 for row in indices)


def test_equal_scores_keep_the_order_of_the_rows(vectors):
    corpus = quantize_embeddings(np.tile(vectors[:3], (100, 1)), "binary")
    (indices,), (scores,) = search_quantized(vectors[1], corpus, top_k=250)
    np.testing.assert_array_equal(indices, [row for _, row in sorted(zip(-scores, indices, strict=True))])
    np.testing.assert_array_equal(indices[:100], range(1, 300, 3))


def test_a_corpus_of_more_blocks_and_queries_of_more_groups_give_the_same(vectors, monkeypatch):
    ranges = quantization_ranges(vectors)
    for precision in PRECISIONS:
        corpus = quantize_embeddings(vectors, precision, ranges=ranges)
        whole = search_quantized(vectors[:50], corpus, ranges=ranges)
        with monkeypatch.context() as patch:
            patch.setattr("bge_runtime.vectors.quantization.BLOCK", 70)
            patch.setattr("bge_runtime.vectors.quantization.GROUP", 7)
            parts = search_quantized(vectors[:50], corpus, ranges=ranges)
        np.testing.assert_array_equal(whole[0], parts[0])
        np.testing.assert_allclose(whole[1], parts[1], atol=1e-4)


def test_an_empty_corpus_and_a_small_one_give_what_there_is(vectors):
    for rows in (0, 3):
        indices, scores = search_quantized(vectors[:2], quantize_embeddings(vectors[:rows], "binary"), top_k=10)
        assert indices.shape == scores.shape == (2, rows)


# Quality


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "way", "recall"),
    [("binary", "signs", 0.80), ("binary", "vectors", 0.81), ("int8", "bytes", 0.81), ("uint8", "bytes", 0.81)],
)
def test_recall_on_scifact_stays_close_to_float32(scifact, precision, way, recall):
    asked, documents, relevant = scifact
    ranges = quantization_ranges(documents)
    corpus = quantize_embeddings(documents, precision, ranges=ranges)
    exact = np.argsort(-asked @ documents.T, axis=1, kind="stable")[:, :10]
    found, _ = search_quantized(asked, corpus, ranges=ranges, vectors=documents if way == "vectors" else None)
    assert np.mean([len({*row} & {*best}) / 10 for row, best in zip(found, exact, strict=True)]) >= FLOORS[way]
    # float32 itself: 0.8125
    assert np.mean([len({*row} & known) / len(known) for row, known in zip(found, relevant, strict=True)]) >= recall


@pytest.mark.slow
def test_rescoring_is_what_makes_bits_good_enough(scifact):
    asked, documents, _ = scifact
    corpus = quantize_embeddings(documents, "binary")
    exact = np.argsort(-asked @ documents.T, axis=1, kind="stable")[:, :10]
    shares = []
    for options in ({"rescore_multiplier": 1}, {}, {"vectors": documents}):
        found, _ = search_quantized(asked, corpus, **options)
        shares.append(np.mean([len({*row} & {*best}) / 10 for row, best in zip(found, exact, strict=True)]))
    assert shares[0] + 0.05 < shares[1] < shares[2] - 0.05


# Refusals

NAN_IN_ROW_1 = np.eye(3, 16) / [[1], [np.nan], [1]]


@pytest.mark.parametrize(
    ("embeddings", "options", "error", "message"),
    [
        (np.eye(4), {"precision": "int4"}, bge_runtime.ConfigurationError, "'int4' is not allowed. Use 'int8'"),
        (np.eye(4), {"precision": "float32"}, bge_runtime.ConfigurationError, "'float32' is not allowed"),
        (np.eye(4, dtype=np.int8), {}, bge_runtime.InputError, "array of int8"),
        (np.ones((2, 2, 2)), {}, bge_runtime.InputError, r"shape \(2, 2, 2\)"),
        (np.array([[0.1, np.nan]]), {"precision": "binary"}, bge_runtime.InputError, "NaN"),
        (np.array([[0.1, 1e39], [0.1, 0.2]]), {}, bge_runtime.InputError, "beyond float32"),
        (np.ones((1, 4)), {}, bge_runtime.InputError, r"\(1, 4\).*at least two"),
        (np.ones(4), {}, bge_runtime.InputError, "at least two"),
        (np.eye(4), {"ranges": np.ones((2, 3))}, bge_runtime.ConfigurationError, r"\(2, 3\).*\(2, 4\)"),
        (np.eye(4), {"calibration_embeddings": np.eye(5)}, bge_runtime.ConfigurationError, r"\(2, 4\)"),
    ],
)
def test_what_cannot_be_quantised_is_refused(embeddings, options, error, message):
    with pytest.raises(error, match=message):
        quantize_embeddings(embeddings, **options)


@pytest.mark.parametrize(
    ("corpus", "options", "error", "message"),
    [
        (np.zeros((3, 16), np.int8), {}, bge_runtime.ConfigurationError, "ranges="),
        (np.zeros((3, 3), np.uint8), {}, bge_runtime.InputError, "3 columns.*16 dimensions"),
        (np.zeros((3, 16), np.float32), {}, bge_runtime.InputError, "float32"),
        ([[0, 0]], {}, bge_runtime.InputError, "list"),
        (np.zeros((3, 2), np.uint8), {"top_k": 0}, bge_runtime.ConfigurationError, "top_k"),
        (np.zeros((3, 2), np.uint8), {"rescore_multiplier": 0}, bge_runtime.ConfigurationError, "rescore_multiplier"),
        (np.zeros((3, 2), np.uint8), {"vectors": np.zeros((3, 8))}, bge_runtime.InputError, r"\(3, 16\)"),
        (np.zeros((3, 2), np.uint8), {"vectors": NAN_IN_ROW_1}, bge_runtime.InputError, "row 1"),
    ],
)
def test_a_search_that_does_not_fit_is_refused(corpus, options, error, message):
    with pytest.raises(error, match=message):
        search_quantized(np.ones((2, 16), np.float32), corpus, **options)


def test_rescoring_takes_one_query():
    with pytest.raises(bge_runtime.InputError, match="one vector"):
        rescore(np.ones((2, 16)), np.zeros((3, 2), np.uint8))
