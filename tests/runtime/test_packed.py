"""The packed executor's kernels, and what half precision costs."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import bge_runtime
from bge_runtime.backends.linear import Linear, rounded
from tests.checkpoints import two_label_folder

EXTRACT = "tests/data/scifact_small/corpus.jsonl"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 8, 13, 200])
def test_linear_layers_equal_torchs_own(dtype, rows):
    torch.manual_seed(rows)
    layer = torch.nn.Linear(32, 48).to(dtype)
    inputs = torch.randn(rows, 32).to(dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    with torch.inference_mode():
        plain = layer(inputs)
        for ours, theirs in (
            (Linear(layer)(inputs), plain),
            (Linear(layer)(inputs, "gelu"), torch.nn.functional.gelu(plain)),
        ):
            torch.testing.assert_close(ours.float(), theirs.float(), atol=tolerance, rtol=tolerance)


def test_without_onednn_the_layer_still_computes(monkeypatch):
    layer = torch.nn.Linear(16, 16)
    inputs = torch.randn(5, 16)
    monkeypatch.setattr("bge_runtime.backends.linear.has_onednn", lambda dtype: False)
    with torch.inference_mode():
        torch.testing.assert_close(Linear(layer)(inputs), layer(inputs))


def test_few_numbers_of_rows_reach_the_kernels():
    assert len({rounded(rows) for rows in range(1, 4097)}) <= 100
    assert all(rows <= rounded(rows) <= rows * 1.0625 + 8 for rows in range(1, 4097))


@pytest.mark.parametrize(("precision", "least"), [("bfloat16", 0.9999), ("int8", 0.995)])
def test_a_faster_precision_stays_within_its_stated_error(precision, least):
    # docs/backends.md states these cosines.
    with open(EXTRACT, encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines][:60]
    exact, fast = (
        bge_runtime.Embedder(
            bge_runtime.DEFAULT_OFFLINE_MODEL, backend="packed", precision=each, truncation="silent"
        ).encode_documents(texts)
        for each in ("float32", precision)
    )
    assert (exact * fast).sum(axis=1).min() >= least
    assert np.abs(exact - fast).max() > 1e-6  # the precision did run


@pytest.mark.parametrize(("precision", "least"), [("float32", 0.99999), ("bfloat16", 0.9999), ("int8", 0.995)])
def test_a_vector_does_not_depend_on_its_batch_mates(precision, least):
    with open(EXTRACT, encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines][:24]
    embedder = bge_runtime.Embedder(
        bge_runtime.DEFAULT_OFFLINE_MODEL, backend="packed", precision=precision, truncation="silent"
    )
    alone = np.concatenate([embedder.encode_documents([text]) for text in texts])
    assert (alone * embedder.encode_documents(texts)).sum(axis=1).min() >= least


def test_int8_scores_stay_near_the_exact_ones(hub_cache):
    texts = [f"{word} " * count for count, word in enumerate(("the dog", "a red house", "water", "glass"), 3)]
    exact, fast = (
        bge_runtime.Reranker("BAAI/bge-reranker-base", backend="packed", precision=each, normalize=True).score(
            "where is the dog", texts
        )
        for each in ("float32", "int8")
    )
    np.testing.assert_allclose(fast, exact, atol=0.02)
    assert np.abs(fast - exact).max() > 0


@pytest.mark.parametrize("missing", ["_has_kernel", "_has_vnni"])
def test_int8_without_its_kernels_is_refused_with_what_to_use(missing, monkeypatch, hub_cache, fresh_store):
    monkeypatch.setattr(f"bge_runtime.backends.quantized.{missing}", lambda: False)
    with pytest.raises(bge_runtime.BGEError, match="bfloat16|float32"):
        bge_runtime.Embedder(backend="packed", precision="int8").warm_up()
