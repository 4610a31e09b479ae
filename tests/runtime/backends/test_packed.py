"""The packed executor's kernels, and what half precision costs."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

import bge_runtime
from bge_runtime.backends.base import LoadRequest
from bge_runtime.backends.packed.encoder import load
from bge_runtime.backends.packed.linear import Linear, has_onednn, rounded
from bge_runtime.inputs.tokenizing import TokenSequence
from tests.checkpoints.hub_cache import two_label_folder
from tests.runtime import references
from tests.runtime.fakes import skip_where_int8_cannot_run

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
            (Linear(layer.weight, layer.bias)(inputs), plain),
            (Linear(layer.weight, layer.bias)(inputs, "gelu"), torch.nn.functional.gelu(plain)),
        ):
            torch.testing.assert_close(ours.float(), theirs.float(), atol=tolerance, rtol=tolerance)


def test_without_onednn_the_layer_still_computes(monkeypatch):
    layer = torch.nn.Linear(16, 16)
    inputs = torch.randn(5, 16)
    monkeypatch.setattr("bge_runtime.backends.packed.linear.has_onednn", lambda dtype: False)
    with torch.inference_mode():
        torch.testing.assert_close(Linear(layer.weight, layer.bias)(inputs), layer(inputs))


def test_few_numbers_of_rows_reach_the_kernels():
    assert len({rounded(rows) for rows in range(1, 4097)}) <= 100
    assert all(rows <= rounded(rows) <= rows * 1.0625 + 8 for rows in range(1, 4097))


@pytest.mark.parametrize(("precision", "least"), [("bfloat16", 0.9999), ("int8", 0.995)])
def test_a_faster_precision_stays_within_its_stated_error(precision, least):
    skip_where_int8_cannot_run(precision)
    # docs/backends.md states these cosines.
    texts = texts_for(precision, 30)
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
    skip_where_int8_cannot_run(precision)
    texts = texts_for(precision, 12)
    embedder = bge_runtime.Embedder(
        bge_runtime.DEFAULT_OFFLINE_MODEL, backend="packed", precision=precision, truncation="silent"
    )
    alone = np.concatenate([embedder.encode_documents([text]) for text in texts])
    assert (alone * embedder.encode_documents(texts)).sum(axis=1).min() >= least


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


@pytest.mark.parametrize("missing", ["_has_kernel", "_has_vnni"])
def test_int8_without_its_kernels_is_refused_with_what_to_use(missing, monkeypatch, hub_cache, fresh_store):
    monkeypatch.setattr(f"bge_runtime.backends.packed.int8.{missing}", lambda: False)
    with pytest.raises(bge_runtime.BGEError, match="Use precision='bfloat16' or 'float32'"):
        bge_runtime.Embedder(backend="packed", precision="int8").warm_up()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_memory_does_not_grow_with_the_variety_of_shapes(precision, hub_cache):
    if precision == "bfloat16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("oneDNN has no bfloat16 kernels for this processor (AVX-512 is missing), so none are kept")
    backend = load(
        LoadRequest(
            name="BAAI/bge-small-en-v1.5",
            folder=references.snapshot_of(hub_cache, "BAAI/bge-small-en-v1.5"),
            task="embed",
            device="cpu",
            precision=precision,
        )
    )
    dice = random.Random(0)

    def run(shapes):
        for _ in range(shapes):
            lengths = [dice.randint(2, 60)] * dice.randint(1, 40) + [dice.randint(2, 120)] * dice.randint(1, 3)
            backend.forward([TokenSequence([5] * length, [0] * length) for length in lengths], "cls")

    run(200)  # meets nearly every rounded number of rows
    before = resident_bytes()
    run(200)
    assert resident_bytes() - before < 100e6


def texts_for(precision, count):
    """Abstracts; fewer and shorter ones where torch has to emulate bfloat16."""
    with open(EXTRACT, encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines][:count]
    if precision == "bfloat16" and not has_onednn(torch.bfloat16):
        return [text[: 40 + 30 * number] for number, text in enumerate(texts[:8])]
    return texts


def resident_bytes():
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
