"""Encoders read from their own files: what transformers would have read, and nothing that it would have made up."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import bge_runtime
from bge_runtime.backends import encoder_files
from bge_runtime.backends import torch as plain
from bge_runtime.backends.base import LoadRequest
from bge_runtime.errors import BackendError, ModelNotFoundError
from tests.checkpoints.files import Checkpoint
from tests.checkpoints.hub_cache import write_checkpoint

TEXTS = ["panda dog", "What is a Panda? Ünïcode 熊猫 eats", "", "a <s> [SEP] b", "x" * 300]
BERT = Checkpoint(name="a/bert", family="bert", hidden=64, seed=51)
XLMR = Checkpoint(name="a/xlmr", family="xlmr", hidden=64, seed=52, positions=514)
RERANKER = Checkpoint(name="a/rank", family="xlmr", hidden=64, seed=53, positions=514, head=1, modules=False)
BERT_RERANKER = Checkpoint(name="a/bert-rank", family="bert", hidden=64, seed=54, head=2, modules=False)
ALL = (BERT, XLMR, RERANKER, BERT_RERANKER)


def request(folder: Path, checkpoint: Checkpoint, **changes: object) -> LoadRequest:
    task = "score" if checkpoint.head else "embed"
    return LoadRequest(name=str(folder), folder=folder, task=task, device="cpu", precision="float32", **changes)


def change_weights(folder: Path, change: Callable[[dict], dict]) -> Path:
    file = folder / "model.safetensors"
    # Copies: what safetensors reads may be views of the file that is written next.
    weights = {name: tensor.clone() for name, tensor in safetensors.torch.load_file(file).items()}
    safetensors.torch.save_file(change(weights), file, metadata={"format": "pt"})
    return folder


def change_json(folder: Path, name: str, **changes: object) -> Path:
    file = folder / name
    held = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**held, **changes}))
    return folder


def tensors_of(encoder: encoder_files.Encoder) -> list[torch.Tensor]:
    linears = [encoder.norm, *(encoder.head or ())]
    for layer in encoder.layers:
        linears += [getattr(layer, name) for name in layer.__dataclass_fields__]
    return [encoder.words, encoder.places, encoder.segments, *(tensor for pair in linears for tensor in pair)]


def use(folder: Path, checkpoint: Checkpoint, backend: str = "auto") -> np.ndarray:
    if checkpoint.head:
        return np.asarray(bge_runtime.Reranker(folder, backend=backend).score("panda", ["panda dog", "cat"]))
    return bge_runtime.Embedder(folder, backend=backend).encode_documents(["panda dog"])


@pytest.fixture(autouse=True)
def own_exports(tmp_path, monkeypatch):
    monkeypatch.setenv("BGE_CACHE_DIR", str(tmp_path / "exports"))
    yield
    bge_runtime.unload_models()


@pytest.mark.parametrize("checkpoint", ALL, ids=lambda each: each.name)
def test_the_files_give_what_transformers_reads(tmp_path, checkpoint):
    asked = request(write_checkpoint(tmp_path / "m", checkpoint), checkpoint)
    read, loaded = encoder_files.read_files(asked), encoder_files.take_apart(plain.load(asked), asked)
    for ours, theirs in zip(tensors_of(read), tensors_of(loaded), strict=True):
        torch.testing.assert_close(ours, theirs, atol=0, rtol=0)
    facts = ("heads", "eps", "pad_id", "own_pooling")
    assert [getattr(read, name) for name in facts] == [getattr(loaded, name) for name in facts]
    for method, inputs in (("texts", TEXTS), ("pairs", [(a, b) for a in TEXTS for b in TEXTS])):
        tokens = [getattr(each.tokenizing, method)(inputs, 200).sequences for each in (read, loaded)]
        assert tokens[0] == tokens[1]


@pytest.mark.parametrize("checkpoint", [BERT, XLMR], ids=lambda each: each.name)
def test_names_with_the_prefix_of_a_larger_model_are_understood(tmp_path, checkpoint):
    stem = "bert." if checkpoint.family == "bert" else "roberta."
    expected = use(write_checkpoint(tmp_path / "plain", checkpoint), checkpoint)
    folder = write_checkpoint(tmp_path / "inside", checkpoint)
    change_weights(folder, lambda weights: {f"{stem}{name}": tensor for name, tensor in weights.items()})
    assert encoder_files.read_files(request(folder, checkpoint)) is not None
    np.testing.assert_array_equal(use(folder, checkpoint), expected)


def test_layer_norms_under_their_old_names_are_understood(tmp_path):
    expected = use(write_checkpoint(tmp_path / "plain", BERT), BERT)

    def rename(name: str) -> str:
        return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    folder = change_weights(write_checkpoint(tmp_path / "old", BERT), lambda w: {rename(k): v for k, v in w.items()})
    np.testing.assert_array_equal(use(folder, BERT), expected)


ELSEWHERE = {
    "activation": lambda folder: change_json(folder, "config.json", hidden_act="relu"),
    "relative positions": lambda folder: change_json(folder, "config.json", position_embedding_type="relative_key"),
    "architecture": lambda folder: change_json(folder, "config.json", model_type="electra"),
    "pooling of two": lambda folder: change_json(folder, "1_Pooling/config.json", pooling_mode_max_tokens=True),
    "prompt left out": lambda folder: change_json(folder, "1_Pooling/config.json", include_prompt=False),
    "adapter beside": lambda folder: change_json(folder, "adapter_config.json"),
    "other output": lambda folder: change_json(folder, "sentence_bert_config.json", transformer_task="fill-mask"),
    "added token": lambda folder: change_json(
        folder, "tokenizer_config.json", added_tokens_decoder={"900": {"content": "<new>"}}
    ),
    "letter case": lambda folder: change_json(folder, "tokenizer_config.json", do_lower_case=False),
    "accents": lambda folder: change_json(folder, "tokenizer_config.json", strip_accents=False),
    "no tokenizer.json": lambda folder: (folder / "tokenizer.json").unlink(),
}


@pytest.mark.parametrize("change", ELSEWHERE)
def test_what_only_transformers_knows_is_left_to_it(tmp_path, change):
    folder = write_checkpoint(tmp_path / "m", BERT)
    assert encoder_files.read_files(request(folder, BERT)) is not None
    ELSEWHERE[change](folder)
    assert encoder_files.read_files(request(folder, BERT)) is None


@pytest.mark.parametrize("group", ["model_kwargs", "processor_kwargs", "config_kwargs"])
def test_arguments_for_transformers_reach_it(tmp_path, group):
    folder = write_checkpoint(tmp_path / "m", BERT)
    assert encoder_files.read_files(request(folder, BERT, **{group: {"any": 1}})) is None


@pytest.mark.parametrize("checkpoint", [BERT, XLMR, RERANKER], ids=lambda each: each.name)
def test_neither_transformers_nor_sentence_transformers_is_imported(tmp_path, checkpoint):
    folder = write_checkpoint(tmp_path / "m", checkpoint)
    call = "Reranker(F).score('panda', ['dog'])" if checkpoint.head else "Embedder(F).encode_queries(['panda'])"
    code = (
        f"import sys; from bge_runtime import *; F = {str(folder)!r}; {call}; "
        "print([name for name in ('transformers', 'sentence_transformers') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def without(*parts: str) -> Callable[[dict], dict]:
    return lambda weights: {name: tensor for name, tensor in weights.items() if not name.startswith(parts)}


MISSING = {
    "head": (RERANKER, without("classifier."), "classifier.dense.weight"),
    "one of the head": (BERT_RERANKER, without("bert.pooler.dense.bias"), "bert.pooler.dense.bias"),
    "all, under another prefix": (
        BERT,
        lambda weights: {f"model.{name}": tensor for name, tensor in weights.items()},
        "embeddings.word_embeddings.weight",
    ),
    "a layer": (XLMR, without("encoder.layer.1."), "encoder.layer.1.attention.self.query.weight"),
    "a bias": (BERT, without("encoder.layer.0.output.dense.bias"), "encoder.layer.0.output.dense.bias"),
}


@pytest.mark.parametrize("backend", ["packed", "torch", "onnx", "openvino"])
@pytest.mark.parametrize("missing", MISSING)
def test_weights_that_the_files_lack_are_never_invented(tmp_path, backend, missing):
    checkpoint, change, name = MISSING[missing]
    folder = change_weights(write_checkpoint(tmp_path / "m", checkpoint), change)
    for _ in range(2):  # a second try must not find what the first one made
        with pytest.raises(ModelNotFoundError, match=name):
            use(folder, checkpoint, backend)
    assert not list((tmp_path / "exports").rglob("*.bin")) + list((tmp_path / "exports").rglob("*.onnx"))


def test_weights_of_other_shapes_than_the_configuration_says_are_refused(tmp_path):
    folder = change_json(write_checkpoint(tmp_path / "m", BERT), "config.json", intermediate_size=64)
    with pytest.raises(ModelNotFoundError, match=r"intermediate\.dense\.weight \(128, 64\)"):
        use(folder, BERT)


@pytest.mark.slow
def test_a_vector_does_not_depend_on_torchs_default_number_format(tmp_path):
    # Another thread that loads a model changes it for the whole process.
    folder = write_checkpoint(tmp_path / "m", BERT)
    expected = use(folder, BERT)
    stop, dice = threading.Event(), random.Random(0)

    def meddle() -> None:
        while not stop.is_set():
            torch.set_default_dtype(torch.bfloat16)
            time.sleep(0.0005)  # a thread that never waits keeps the interpreter from those that load
            torch.set_default_dtype(torch.float32)
            time.sleep(dice.uniform(0, 0.02))  # some loads meet a change, some do not

    thread = threading.Thread(target=meddle)
    thread.start()
    try:
        for backend in ("packed", "packed", "torch", "torch", "torch"):
            bge_runtime.unload_models()
            for _ in range(100):  # an error says that another try cures it, and no number of them is sure to
                with suppress(BackendError):
                    np.testing.assert_allclose(use(folder, BERT, backend), expected, atol=1e-6)
                    break
            else:
                pytest.fail("no try succeeded")
    finally:
        stop.set()
        thread.join()
        torch.set_default_dtype(torch.float32)


def test_a_model_in_another_number_format_than_asked_is_refused(tmp_path):
    asked = request(write_checkpoint(tmp_path / "m", BERT), BERT)
    model = plain.load(asked).model
    plain.check_weights(model, asked)
    model.encoder.layer[1].output.dense.to(torch.bfloat16)
    with pytest.raises(BackendError, match=r"encoder\.layer\.1\.output\.dense\.weight.*Try again"):
        plain.check_weights(model, asked)
