"""int8 in the packed executor: exact sums, scores, other architectures, memory; its vectors are in test_packed."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import bge_runtime
from bge_runtime.backends.packed.int8 import QuantizedLinear, check_int8
from bge_runtime.backends.packed.linear import Linear
from tests.checkpoints.hub_cache import two_label_folder
from tests.runtime.fakes import skip_where_int8_cannot_run

EXTRACT = "tests/data/scifact_small/corpus.jsonl"


def passages(count):
    with open(EXTRACT, encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines][:count]


@pytest.fixture
def vnni():
    """The tests of results need a processor that runs int8."""
    skip_where_int8_cannot_run("int8")


@pytest.mark.parametrize("activation", ["none", "gelu"])
@pytest.mark.parametrize("rows", [1, 8, 13, 200])
def test_each_row_has_a_scale_and_an_offset_of_its_own(vnni, rows, activation):
    torch.manual_seed(rows)
    layer = torch.nn.Linear(64, 48)
    with torch.no_grad():  # weights that 8 bits hold exactly
        layer.weight.copy_(torch.randint(-127, 128, layer.weight.shape) / 1024)
        layer.weight[:, 0] = 127 / 1024
    inputs = torch.randn(rows, 64) * torch.logspace(-3, 3, rows)[:, None] + torch.linspace(-5, 50, rows)[:, None]
    before = inputs.clone()
    with torch.inference_mode():
        exact, near = (
            Linear(layer.weight, layer.bias)(inputs, activation),
            QuantizedLinear(layer.weight, layer.bias)(inputs, activation),
        )
    steps = (inputs.amax(1) - inputs.amin(1)) / 255
    assert ((near - exact).abs().amax(1) <= 3 * steps + 1e-4).all()
    torch.testing.assert_close(inputs, before, atol=0, rtol=0)


def test_sums_that_overflow_16_bits_are_exact(vnni):
    """Pairs of 255 * 127 overflow 16 bits, in which processors without VNNI would add them."""
    layer = torch.nn.Linear(64, 8)
    inputs = torch.ones(8, 64)
    inputs[:, 0] = 0.0
    with torch.inference_mode():
        layer.weight.fill_(1.0)
        layer.bias.zero_()
        torch.testing.assert_close(
            QuantizedLinear(layer.weight, layer.bias)(inputs), torch.full((8, 8), 63.0), atol=1e-3, rtol=0
        )


def test_xlm_roberta_and_classifiers_run_in_int8(vnni, hub_cache):
    scores, vectors = (
        [make(precision) for precision in ("float32", "int8")]
        for make in (
            lambda each: bge_runtime.Reranker("BAAI/bge-reranker-base", precision=each, backend="packed").score(
                "panda", ["a bear", ""]
            ),
            lambda each: bge_runtime.Embedder("BAAI/bge-m3", precision=each, backend="packed").encode_documents(
                ["the dog slept", "panda"]
            ),
        )
    )
    np.testing.assert_allclose(scores[1], scores[0], atol=0.05)
    assert (vectors[0] * vectors[1]).sum(axis=1).min() > 0.99


def test_scores_of_a_cross_encoder_stay_within_the_stated_error(vnni, minilm, tmp_path):
    """Trained weights under a seeded head, scaled to spread its scores; no training made this head robust."""
    from transformers import AutoTokenizer, BertForSequenceClassification

    model = BertForSequenceClassification.from_pretrained(minilm, num_labels=1)
    torch.manual_seed(2)
    with torch.no_grad():
        model.classifier.weight.normal_()
    AutoTokenizer.from_pretrained(minilm).save_pretrained(tmp_path)
    pairs = [("what moves the blood", text) for text in passages(40)]

    def scores(precision):
        model.save_pretrained(tmp_path)
        bge_runtime.unload_models()
        reranker = bge_runtime.Reranker(tmp_path, precision=precision, backend="packed", truncation="silent")
        return reranker.score_pairs(pairs)

    raw = scores("float32")
    with torch.no_grad():
        model.classifier.weight.mul_(2 / raw.std())
        model.classifier.bias.fill_(-2 * raw.mean() / raw.std())
    exact, near = (1 / (1 + np.exp(-scores(each))) for each in ("float32", "int8"))
    assert exact.std() > 0.2
    assert np.abs(exact - near).max() <= 0.15
    assert np.corrcoef(exact, near)[0, 1] > 0.99


def test_the_size_in_memory_is_that_of_eight_bits(vnni, fresh_store):
    for precision in ("float32", "int8"):
        bge_runtime.Embedder(bge_runtime.DEFAULT_OFFLINE_MODEL, precision=precision, backend="packed").warm_up()
    rows = {row.precision: row for row in bge_runtime.loaded_models()}
    assert rows["int8"].parameters == rows["float32"].parameters
    # Linear layers in 8 bits, the word table in 16, the rest in 32.
    assert 0.25 < rows["int8"].bytes / rows["float32"].bytes < 0.45


@pytest.mark.parametrize("op", ["qlinear_prepack", "qlinear_pointwise"])
def test_a_torch_without_the_kernels_is_noticed(op, monkeypatch):
    names = {"qlinear_prepack", "qlinear_pointwise"} - {op}
    monkeypatch.setattr("torch.ops.onednn", SimpleNamespace(**dict.fromkeys(names)))
    with pytest.raises(bge_runtime.ConfigurationError, match="8-bit linear layers"):
        check_int8()


def test_an_unknown_architecture_is_an_error_and_not_float32(vnni, tmp_path):
    from transformers import AutoTokenizer, DistilBertConfig, DistilBertModel

    tokenizer = AutoTokenizer.from_pretrained(two_label_folder(tmp_path / "tokenizer"))
    config = DistilBertConfig(vocab_size=len(tokenizer), dim=32, n_heads=2, n_layers=1, hidden_dim=64)
    DistilBertModel(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    embedder = bge_runtime.Embedder(tmp_path / "model", precision="int8", backend="packed")
    with pytest.raises(bge_runtime.UnsupportedModelError, match="does not compute in int8"):
        embedder.encode_documents(["the dog"])
