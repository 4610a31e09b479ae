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
    inputs, residual = torch.randn(rows, 32).to(dtype), torch.randn(rows, 48).to(dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    with torch.inference_mode():
        plain = layer(inputs)
        for ours, theirs in (
            (Linear(layer)(inputs), plain),
            (Linear(layer)(inputs, "gelu"), torch.nn.functional.gelu(plain)),
            (Linear(layer)(inputs, residual=residual), plain + residual),
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


def test_bfloat16_stays_within_its_stated_error():
    # docs/devices.md states cosine 0.9999.
    with open(EXTRACT, encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines][:60]
    exact, half = (
        bge_runtime.Embedder(bge_runtime.DEFAULT_OFFLINE_MODEL, precision=dtype, truncation="silent").encode_documents(
            texts
        )
        for dtype in ("float32", "bfloat16")
    )
    cosines = (exact * half).sum(axis=1)
    assert cosines.min() >= 0.9999
    assert np.abs(exact - half).max() > 1e-6  # half precision did run


def test_an_architecture_that_the_executor_does_not_know_keeps_the_plain_forward(tmp_path):
    from transformers import AutoTokenizer, DistilBertConfig, DistilBertModel

    tokenizer = AutoTokenizer.from_pretrained(two_label_folder(tmp_path / "tokenizer"))
    config = DistilBertConfig(vocab_size=len(tokenizer), dim=32, n_heads=2, n_layers=1, hidden_dim=64)
    DistilBertModel(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    vectors = [
        bge_runtime.Embedder(tmp_path / "model", backend=name).encode_documents(["the dog", "a house"])
        for name in ("packed", "torch")
    ]
    np.testing.assert_array_equal(*vectors)
