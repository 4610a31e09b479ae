"""Decoder embedders: the wrong paths are not taken, whatever the batch, the padding side and the length."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import bge_runtime
from tests.checkpoints.decoders import decoder_files
from tests.checkpoints.hub_cache import BY_NAME, write_checkpoint
from tests.contracts.decoder_contract import AROUND, EXAMPLES, ICL, INSTRUCT, RENDERED, TEXTS, WEB_SEARCH
from tests.runtime import references

GEMMA, CODE, REASONER = (next(name for name in AROUND if part in name) for part in ("gemma2", "code", "reasoner"))
LONG = "panda bear: 大熊猫：the opinions of bear " * 12


@pytest.fixture(params=AROUND, ids=lambda name: name.rsplit("/")[-1])
def name(request, hub_cache):
    return request.param


@pytest.fixture
def folder(name, hub_cache):
    return references.snapshot_of(hub_cache, name)


def different(left, right):
    """Whether two unit vectors are further apart than any rounding."""
    return np.linalg.norm(left - right) > 0.05


def test_a_batch_of_mixed_lengths_gives_what_each_text_gives_alone(name):
    embedder = bge_runtime.Embedder(name)
    texts = [*TEXTS, "Yes", "1 2 3\n\nno", LONG]
    together = embedder.encode_queries(texts)
    np.testing.assert_allclose(together, [embedder.encode_queries([text])[0] for text in texts], atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_padding_side_of_the_tokenizer_does_not_matter(tmp_path, hub_cache, side):
    files = decoder_files(BY_NAME[CODE])
    settings = {**json.loads(files["tokenizer_config.json"]), "padding_side": side}
    target = tmp_path / "bge-code-v1"
    write_checkpoint(target, BY_NAME[CODE], **{"tokenizer_config.json": json.dumps(settings).encode()})
    found = bge_runtime.Embedder(target).encode_documents(TEXTS)
    folder = references.snapshot_of(hub_cache, CODE)
    np.testing.assert_allclose(found, [references.last_token_vector(folder, text) for text in TEXTS], atol=1e-4)


def test_another_pooling_gives_another_vector(name, folder):
    spec = bge_runtime.get_spec(name)
    expected = references.last_token_vector(folder, TEXTS[0])
    for pooling in ("mean", "cls"):
        assert different(bge_runtime.Embedder(replace(spec, pooling=pooling)).encode_documents(TEXTS[:1])[0], expected)


def test_another_format_gives_another_vector(name, hub_cache):
    spec = bge_runtime.get_spec(name)
    right = bge_runtime.Embedder(name).encode_queries(TEXTS[:1])[0]
    formats = ["{instruction}{text}", spec.query_format.replace("\n", " ", 1), spec.query_format + "\n"]
    if name == REASONER:  # Qwen3-Embedding's own
        formats.append("Instruct: {instruction}\nQuery:{text}")
    if name == ICL:
        formats.append("<instruct>{instruction}\n<query>{text}")
    for query_format in formats:
        wrong = bge_runtime.Embedder(replace(spec, query_format=query_format)).encode_queries(TEXTS[:1])[0]
        assert different(wrong, right), query_format


def test_documents_get_no_instruction(name, hub_cache):
    embedder = bge_runtime.Embedder(name)
    assert different(embedder.encode_documents(TEXTS[:1])[0], embedder.encode_queries(TEXTS[:1])[0])


@pytest.mark.parametrize("default", [None, "query"])
def test_prompts_of_sentence_transformers_are_not_added_a_second_time(tmp_path, hub_cache, default):
    target = tmp_path / "bge-code-v1"
    settings = {"prompts": {"query": INSTRUCT}, "default_prompt_name": default}
    write_checkpoint(target, BY_NAME[CODE], **{"config_sentence_transformers.json": json.dumps(settings).encode()})
    folder = references.snapshot_of(hub_cache, CODE)
    once = references.last_token_vector(folder, INSTRUCT + TEXTS[0])
    assert different(references.last_token_vector(folder, INSTRUCT * 2 + TEXTS[0]), once)
    for model in (target, CODE):
        embedder = bge_runtime.Embedder(model)
        np.testing.assert_allclose(embedder.encode_queries(TEXTS[:1])[0], once, atol=1e-4)
        bare = references.last_token_vector(folder, TEXTS[0])
        np.testing.assert_allclose(embedder.encode_documents(TEXTS[:1])[0], bare, atol=1e-4)


def test_a_prompt_in_a_copy_of_bge_en_icl_does_not_take_its_suffix_away(tmp_path, hub_cache):
    settings = {"prompts": {"query": INSTRUCT}}
    target = write_checkpoint(
        tmp_path / "bge-en-icl",
        BY_NAME[ICL],
        **{"config_sentence_transformers.json": json.dumps(settings).encode()},
    )
    found = bge_runtime.Embedder(target).encode_queries(TEXTS[:1])[0]
    folder = references.snapshot_of(hub_cache, ICL)
    np.testing.assert_allclose(found, references.icl_vector(folder, INSTRUCT + TEXTS[0], max_length=512), atol=1e-4)


def test_a_fine_tune_without_sentence_transformers_files_pools_its_last_token(tmp_path, hub_cache):
    target = write_checkpoint(tmp_path / "tuned", replace(BY_NAME[REASONER], modules=False))
    embedder = bge_runtime.Embedder(target, base_model=REASONER)
    folder = references.snapshot_of(hub_cache, REASONER)
    expected = references.last_token_vector(folder, AROUND[REASONER][0] + TEXTS[0])
    np.testing.assert_allclose(embedder.encode_queries(TEXTS[:1])[0], expected, atol=1e-4)


def test_a_long_document_loses_its_end_and_keeps_the_tokens_around_it(name, folder):
    embedder = bge_runtime.Embedder(name, max_length=24, truncation="silent")
    expected = references.last_token_vector(folder, LONG, max_length=24)
    np.testing.assert_allclose(embedder.encode_documents([LONG])[0], expected, atol=1e-4)
    assert different(expected, references.last_token_vector(folder, LONG))
    assert embedder.truncated_count == 1


def test_a_long_query_is_cut_as_the_authors_cut_it(name, folder):
    embedder = bge_runtime.Embedder(name, max_length=60, truncation="silent")
    head, tail = AROUND[name]
    expected = [
        references.icl_vector(folder, head + text, max_length=60)
        if tail
        else references.last_token_vector(folder, head + text, max_length=60)
        for text in (*TEXTS, LONG)
    ]
    np.testing.assert_allclose(embedder.encode_queries([*TEXTS, LONG]), expected, atol=1e-4)
    assert embedder.truncated_count == 2


@pytest.mark.parametrize("max_length", [20, 32, 35, 36, 80])
def test_the_suffix_and_the_examples_outlive_truncation(hub_cache, max_length):
    folder = references.snapshot_of(hub_cache, ICL)
    embedder = bge_runtime.Embedder(ICL, examples=EXAMPLES, max_length=max_length, truncation="silent")
    texts = [*TEXTS, LONG]
    expected = [references.icl_vector(folder, INSTRUCT + text, RENDERED, max_length=max_length) for text in texts]
    np.testing.assert_allclose(embedder.encode_queries(texts), expected, atol=1e-4)


def test_losing_the_suffix_would_be_seen(hub_cache):
    folder = references.snapshot_of(hub_cache, ICL)
    right = references.icl_vector(folder, INSTRUCT + LONG, max_length=60)
    assert different(references.last_token_vector(folder, f"{INSTRUCT}{LONG}\n<response>", max_length=60), right)


def test_without_an_instruction_the_suffix_stays(hub_cache):
    folder = references.snapshot_of(hub_cache, ICL)
    found = bge_runtime.Embedder(ICL, query_instruction="").encode_queries(TEXTS)
    expected = [references.last_token_vector(folder, f"{text}\n<response>") for text in TEXTS]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_an_example_without_an_instruction_takes_that_of_the_queries(hub_cache):
    folder = references.snapshot_of(hub_cache, ICL)
    task = "Predict whether queries A and B are asking the same thing."
    embedder = bge_runtime.Embedder(ICL, query_instruction=task, examples=EXAMPLES[1:])
    instruct = f"<instruct>{task}\n<query>"
    examples = f"{instruct}bear {{response}}\n<response>panda {{query}} {{text}}\n\n"
    expected = references.icl_vector(folder, instruct + TEXTS[0], examples, max_length=512)
    np.testing.assert_allclose(embedder.encode_queries(TEXTS[:1])[0], expected, atol=1e-4)


def test_examples_before_documents_would_be_seen(hub_cache):
    folder = references.snapshot_of(hub_cache, ICL)
    bare = references.last_token_vector(folder, TEXTS[0])
    assert different(references.last_token_vector(folder, RENDERED + TEXTS[0]), bare)


def test_an_empty_text_embeds_the_same_in_any_batch(name, hub_cache):
    embedder = bge_runtime.Embedder(name)
    alone = embedder.encode_documents([""])[0]
    assert np.linalg.norm(alone) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(embedder.encode_documents([*TEXTS, ""])[-1], alone, atol=1e-5)


def test_backslash_and_n_in_a_format_are_a_newline():
    spec = bge_runtime.get_spec(REASONER)
    assert replace(spec, query_format="Instruct: {instruction}\\nQuery: {text}") == spec


def test_decoders_run_on_torch_and_are_known_without_their_weights(name, hub_cache, fresh_store):
    embedder = bge_runtime.Embedder(name)
    spec = bge_runtime.get_spec(name)
    assert (embedder.dimension, embedder.max_length) == (spec.dimension, spec.max_length)
    assert embedder.query_instruction == WEB_SEARCH
    embedder.warm_up()
    (info,) = bge_runtime.loaded_models()
    assert (info.backend, info.precision) == ("torch", "float32")


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_a_backend_that_cannot_run_a_decoder_says_so(hub_cache, backend):
    pytest.importorskip("onnxruntime" if backend == "onnx" else backend)
    with pytest.raises(bge_runtime.UnsupportedModelError, match=r"'qwen2'.*backend='torch'"):
        bge_runtime.Embedder(CODE, backend=backend).warm_up()
