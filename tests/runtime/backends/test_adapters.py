"""LoRA adapters: peft's own numbers on every backend, part of the identity, refused before weights are read."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import bge_runtime
from bge_runtime.models.lora import adapter_digest, check_adapter
from tests.checkpoints.hub_cache import place_in_hub_cache
from tests.checkpoints.lora import (
    adapted_answer,
    adapted_score,
    adapted_states,
    adapted_text,
    clip_adapter,
    embedder_adapter,
    language_model_adapter,
    reranker_adapter,
)
from tests.checkpoints.pictures import picture
from tests.runtime.llm_references import YES_OR_NO, ids_of, joined
from tests.runtime.references import snapshot_of, unit

EMBEDDER, RERANKER = "BAAI/bge-small-en-v1.5", "BAAI/bge-reranker-base"
TEXTS = ["panda", "the dog slept in the garden", "The giant panda is a bear species endemic to China. " * 4, "a b"]
QUERY = "what is panda?"
# all-MiniLM-L6-v2 as it was named before there were adapters: embedder, documents, tokens, reranker.
IDENTITIES = (
    "9c03d4f3918762741c4a0454978dfe42",
    "8c44549d25a41d440b0f8197fc120d25",
    "1d08e7bfdfdf7e9884e3fe04422a7621",
    "d7dcb8e666c31d4bf9304b7091faacf4",
)


@pytest.fixture(scope="module")
def base(hub_cache):
    return snapshot_of(hub_cache, EMBEDDER)


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    return embedder_adapter(tmp_path_factory.mktemp("adapter"), base)


@pytest.fixture(scope="module")
def head(hub_cache, tmp_path_factory):
    return reranker_adapter(tmp_path_factory.mktemp("head"), snapshot_of(hub_cache, RERANKER))


@pytest.fixture(scope="module")
def expected(base, adapter):
    return np.stack([unit(adapted_states(base, adapter, text)[0]) for text in TEXTS])


def files_of(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def changed(folder, target, **settings):
    """Copy an adapter with other settings."""
    shutil.copytree(folder, target)
    config = json.loads((target / "adapter_config.json").read_text())
    (target / "adapter_config.json").write_text(json.dumps({**config, **settings}))
    return target


# Numbers


@pytest.mark.parametrize("backend", ["packed", "torch", "onnx", "openvino"])
def test_vectors_are_those_of_peft_on_every_backend(adapter, expected, backend, tmp_path, monkeypatch):
    monkeypatch.setenv("BGE_CACHE_DIR", str(tmp_path))
    for package in {"onnx": ["onnxruntime"], "openvino": ["openvino"]}.get(backend, []):
        pytest.importorskip(package)
    with bge_runtime.Embedder(EMBEDDER, adapter=adapter, backend=backend) as embedder:
        together = embedder.encode_documents(TEXTS)
        alone = np.concatenate([embedder.encode_documents([text]) for text in TEXTS])
    np.testing.assert_allclose(together, expected, atol=1e-4)
    np.testing.assert_allclose(alone, expected, atol=1e-4)
    plain = bge_runtime.Embedder(EMBEDDER).encode_documents(TEXTS)
    assert (np.abs(plain - expected).max(axis=1) > 1e-2).all()


@pytest.mark.parametrize("backend", ["packed", "torch"])
def test_scores_are_those_of_peft_head_included(hub_cache, head, backend):
    base = snapshot_of(hub_cache, RERANKER)
    expected = [adapted_score(base, head, QUERY, text) for text in TEXTS]
    reranker = bge_runtime.Reranker(RERANKER, adapter=head, backend=backend)
    np.testing.assert_allclose(reranker.score(QUERY, TEXTS), expected, atol=1e-4)
    np.testing.assert_allclose([reranker.score(QUERY, [text])[0] for text in TEXTS], expected, atol=1e-4)
    assert np.abs(bge_runtime.Reranker(RERANKER).score(QUERY, TEXTS) - expected).min() > 1e-2


def test_late_interaction_compares_the_adapted_token_vectors(base, adapter):
    rows = [unit(adapted_states(base, adapter, text)) for text in (QUERY, TEXTS[1])]
    expected = np.mean((rows[0] @ rows[1].T).max(axis=1))
    for model in (EMBEDDER, bge_runtime.Embedder(EMBEDDER, adapter=adapter)):
        own = {} if isinstance(model, bge_runtime.Embedder) else {"adapter": adapter}
        assert bge_runtime.Reranker(model, **own).score(QUERY, TEXTS[1:2])[0] == pytest.approx(expected, abs=1e-4)


def test_scaling_by_the_root_of_the_rank_is_peft_s(base, tmp_path):
    adapter = embedder_adapter(tmp_path / "rs", base, use_rslora=True, target_modules=["query"], bias="all")
    found = bge_runtime.Embedder(EMBEDDER, adapter=adapter).encode_documents(TEXTS[:1])[0]
    np.testing.assert_allclose(found, unit(adapted_states(base, adapter, TEXTS[0])[0]), atol=1e-4)


def test_an_adapter_that_sentence_transformers_saved_is_read_too(base, tmp_path, monkeypatch):
    import transformers.integrations.peft
    from peft import LoraConfig
    from sentence_transformers import SentenceTransformer

    # transformers 5.24 asks for a peft that is not published; to go when there is one.
    monkeypatch.setattr(transformers.integrations.peft, "MIN_PEFT_VERSION", "0.20.0")
    model = SentenceTransformer(str(base), device="cpu")
    model.add_adapter(LoraConfig(target_modules=["query", "value"], init_lora_weights=False))
    model.save_pretrained(str(tmp_path))
    found = bge_runtime.Embedder(EMBEDDER, adapter=tmp_path).encode_documents(TEXTS)
    np.testing.assert_allclose(found, model.encode(TEXTS), atol=1e-4)
    assert np.abs(bge_runtime.Embedder(EMBEDDER).encode_documents(TEXTS) - found).max() > 1e-2


# Identity and the store


def test_without_an_adapter_identities_are_what_they_were(minilm):
    name = bge_runtime.DEFAULT_OFFLINE_MODEL
    embedder, reranker = bge_runtime.Embedder(name), bge_runtime.Reranker(name)
    found = (embedder.identity, embedder.document_identity, embedder.token_identity, reranker.identity)
    assert found == IDENTITIES


def test_the_adapter_is_part_of_every_identity_wherever_it_is_stored(hub_cache, adapter, head, tmp_path):
    place_in_hub_cache(tmp_path / "hub", "somebody/lora", files_of(adapter))
    shutil.copytree(hub_cache / "models--BAAI--bge-small-en-v1.5", tmp_path / "hub/models--BAAI--bge-small-en-v1.5")
    plain, adapted = bge_runtime.Embedder(EMBEDDER), bge_runtime.Embedder(EMBEDDER, adapter=adapter)
    copies = [
        bge_runtime.Embedder(EMBEDDER, adapter=str(shutil.copytree(adapter, tmp_path / "copy"))),
        bge_runtime.Embedder(EMBEDDER, adapter="somebody/lora", cache_folder=str(tmp_path / "hub")),
        bge_runtime.Embedder(EMBEDDER, adapter=changed(adapter, tmp_path / "moved", base_model_name_or_path=None)),
    ]
    for name in ("identity", "document_identity", "token_identity"):
        assert getattr(plain, name) != getattr(adapted, name)
        assert {getattr(copy, name) for copy in copies} == {getattr(adapted, name)}
    stronger = bge_runtime.Embedder(EMBEDDER, adapter=changed(adapter, tmp_path / "stronger", lora_alpha=16))
    assert stronger.identity != adapted.identity
    reordered = changed(adapter, tmp_path / "reordered", target_modules=["value", "query", "key", "dense"])
    other_order = changed(adapter, tmp_path / "order", target_modules=["dense", "key", "query", "value"])
    assert adapter_digest(reordered) == adapter_digest(other_order) == adapter_digest(adapter)
    assert bge_runtime.Reranker(RERANKER).identity != bge_runtime.Reranker(RERANKER, adapter=head).identity


def test_each_adapter_is_a_copy_of_the_weights_and_two_paths_share_one(adapter, expected, tmp_path, fresh_store):
    plain, adapted = bge_runtime.Embedder(EMBEDDER), bge_runtime.Embedder(EMBEDDER, adapter=adapter)
    copy = bge_runtime.Embedder(EMBEDDER, adapter=shutil.copytree(adapter, tmp_path / "copy"))
    other = bge_runtime.Embedder(EMBEDDER, adapter=changed(adapter, tmp_path / "other", lora_alpha=16))
    before = plain.encode_documents(TEXTS)
    for embedder in (adapted, copy):
        np.testing.assert_allclose(embedder.encode_documents(TEXTS), expected, atol=1e-4)
    assert np.abs(other.encode_documents(TEXTS) - expected).max() > 1e-2
    np.testing.assert_array_equal(plain.encode_documents(TEXTS), before)
    assert [row.adapter for row in bge_runtime.loaded_models()] == [None, str(adapter), str(tmp_path / "other")]


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_an_export_of_the_base_model_is_never_served_for_an_adapter(
    adapter, expected, backend, tmp_path, monkeypatch, fresh_store
):
    pytest.importorskip({"onnx": "onnxruntime", "openvino": "openvino"}[backend])
    monkeypatch.setenv("BGE_CACHE_DIR", str(tmp_path))
    plain = bge_runtime.Embedder(EMBEDDER, backend="torch").encode_documents(TEXTS)
    for turn in range(2):  # cold, then warm
        bge_runtime.unload_models()
        if turn:
            monkeypatch.setattr("bge_runtime.backends.lora._merge", None)  # an export needs no peft
        for own, wanted in (({}, plain), ({"adapter": adapter}, expected)):
            found = bge_runtime.Embedder(EMBEDDER, backend=backend, **own).encode_documents(TEXTS)
            np.testing.assert_allclose(found, wanted, atol=1e-4)
        assert len(list((tmp_path / "exports").iterdir())) == 2


def test_options_and_pickles_keep_the_adapter(adapter):
    embedder = bge_runtime.Embedder(EMBEDDER, adapter=adapter)
    assert embedder.options()["adapter"] == str(adapter)
    assert pickle.loads(pickle.dumps(embedder)).identity == embedder.identity
    with pytest.raises(bge_runtime.ConfigurationError, match="embedder's own options"):
        bge_runtime.Reranker(embedder, adapter=adapter)


# Where it comes from


def test_an_adapter_on_the_hub_is_taken_from_the_cache(hub_cache, adapter, expected, tmp_path):
    cache = tmp_path / "hub"
    place_in_hub_cache(cache, "somebody/lora", files_of(adapter))
    shutil.copytree(hub_cache / "models--BAAI--bge-small-en-v1.5", cache / "models--BAAI--bge-small-en-v1.5")
    options = {"cache_folder": str(cache), "local_files_only": True}
    found = bge_runtime.Embedder(EMBEDDER, adapter="somebody/lora", **options).encode_documents(TEXTS)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert bge_runtime.locate("somebody/lora", cache_folder=str(cache)).parent.parent.name == "models--somebody--lora"
    with pytest.raises(bge_runtime.HubUnreachableError, match="bge download somebody/other"):
        bge_runtime.Embedder(EMBEDDER, adapter="somebody/other", **options).encode_documents(TEXTS)


def test_pickled_adapters_are_refused_without_reading_the_model(hub_cache, adapter, tmp_path, fresh_store):
    files = {**files_of(adapter), "adapter_model.bin": b"pickle"}
    del files["adapter_model.safetensors"]
    place_in_hub_cache(tmp_path / "hub", "somebody/pickled", files)
    shutil.copytree(hub_cache / "models--BAAI--bge-small-en-v1.5", tmp_path / "hub/models--BAAI--bge-small-en-v1.5")
    embedder = bge_runtime.Embedder(EMBEDDER, adapter="somebody/pickled", cache_folder=str(tmp_path / "hub"))
    before = bge_runtime.stats()["loads"]
    for call in (lambda: embedder.identity, lambda: embedder.encode_documents(TEXTS)):
        with pytest.raises(bge_runtime.UnsafeWeightsError, match="safetensors"):
            call()
    assert bge_runtime.stats()["loads"] == before
    (folder,) = (tmp_path / "hub/models--somebody--pickled/snapshots").iterdir()
    with pytest.raises(bge_runtime.UnsafeWeightsError, match="safetensors"):
        bge_runtime.Embedder(EMBEDDER, adapter=folder)


@pytest.mark.parametrize(
    ("adapter_name", "error", "message"),
    [
        ("", bge_runtime.ConfigurationError, "is not a name"),
        (7, bge_runtime.ConfigurationError, "is not a name"),
        ("no-slash", bge_runtime.ModelNotFoundError, "'no-slash' does not exist"),
        ("./no/such/folder", bge_runtime.ModelNotFoundError, "does not exist"),
    ],
)
def test_a_name_that_cannot_be_an_adapter_is_refused_at_construction(adapter_name, error, message):
    with pytest.raises(error, match=message):
        bge_runtime.Embedder(EMBEDDER, adapter=adapter_name)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"base_model_name_or_path": "BAAI/bge-m3"},
            bge_runtime.ConfigurationError,
            "'BAAI/bge-m3', not on 'BAAI/bge-",
        ),
        ({"base_model_name_or_path": "/data/bge-m3/"}, bge_runtime.ConfigurationError, "/data/bge-m3/"),
        ({"task_type": "SEQ_CLS"}, bge_runtime.ConfigurationError, "'SEQ_CLS'.*'FEATURE_EXTRACTION'"),
        ({"peft_type": "PREFIX_TUNING"}, bge_runtime.ConfigurationError, "'PREFIX_TUNING'.*merge_and_unload"),
        ("{", bge_runtime.ModelNotFoundError, "cannot be read"),
        ("[]", bge_runtime.ModelNotFoundError, "holds no settings"),
        (None, bge_runtime.ModelNotFoundError, r"no adapter_config\.json"),
    ],
)
def test_an_adapter_that_does_not_belong_is_refused_at_construction(adapter, tmp_path, settings, error, message):
    folder = changed(adapter, tmp_path / "adapter", **(settings if isinstance(settings, dict) else {}))
    if settings is None:
        (folder / "adapter_config.json").unlink()
    elif isinstance(settings, str):
        (folder / "adapter_config.json").write_text(settings)
    with pytest.raises(error, match=message):
        bge_runtime.Embedder(EMBEDDER, adapter=folder)
    with pytest.raises(error, match=message):
        bge_runtime.Reranker(EMBEDDER, adapter=folder)


def test_an_adapter_without_weights_is_refused_at_construction(adapter, tmp_path):
    (changed(adapter, tmp_path / "adapter") / "adapter_model.safetensors").unlink()
    with pytest.raises(bge_runtime.ModelNotFoundError, match=r"no adapter_model\.safetensors"):
        bge_runtime.Embedder(EMBEDDER, adapter=tmp_path / "adapter")


@pytest.mark.parametrize(
    ("trained_on", "model", "names", "fits"),
    [
        ("BAAI/bge-small-en-v1.5", "BAAI/bge-small-en-v1.5", [], True),
        ("someone/BGE-small-en-v1.5", "BAAI/bge-small-en-v1.5", [], True),
        ("/cache/models--BAAI--bge-small-en-v1.5/snapshots/abc", "BAAI/bge-small-en-v1.5", [], True),
        ("/cache/models--BAAI--bge-m3/snapshots/abc", "BAAI/bge-small-en-v1.5", [], False),
        (None, "BAAI/bge-small-en-v1.5", [], True),
        ("/home/me/checkpoint-500", "BAAI/bge-small-en-v1.5", [], True),
        ("me/tuned", "BAAI/bge-small-en-v1.5", [], False),
        ("me/tuned", "me/tuned", [], True),
        ("BAAI/bge-m3", ".", [], True),
        ("BAAI/bge-m3", ".", ["BAAI/bge-small-en-v1.5"], False),
        ("BAAI/bge-small-en-v1.5", ".", ["BAAI/bge-small-en-v1.5"], True),
    ],
)
def test_only_another_model_s_name_is_a_reason_to_refuse(adapter, tmp_path, trained_on, model, names, fits):
    folder = changed(adapter, tmp_path / "adapter", base_model_name_or_path=trained_on)
    spec = replace(bge_runtime.get_spec(EMBEDDER), id=model)
    if fits:
        check_adapter(folder, spec, names)
        return
    with pytest.raises(bge_runtime.ConfigurationError, match="was trained on"):
        check_adapter(folder, spec, names)


@pytest.mark.parametrize(
    ("model", "task", "fits"),
    [
        ("bge-reranker-base", "SEQ_CLS", True),
        ("bge-reranker-base", "FEATURE_EXTRACTION", False),
        ("bge-reranker-v2-gemma", "CAUSAL_LM", True),
        ("bge-reranker-v2-gemma", "SEQ_CLS", False),
        ("bge-small-en-v1.5", "CAUSAL_LM", False),
        ("bge-small-en-v1.5", None, True),
    ],
)
def test_the_task_has_to_be_the_model_s(adapter, tmp_path, model, task, fits):
    folder = changed(adapter, tmp_path / "adapter", task_type=task, base_model_name_or_path=model)
    if fits:
        check_adapter(folder, bge_runtime.get_spec(model), [])
        return
    with pytest.raises(bge_runtime.ConfigurationError, match="task_type"):
        check_adapter(folder, bge_runtime.get_spec(model), [])


# What shows only when it is applied


def test_an_adapter_whose_weights_find_no_place_is_an_error_and_not_silence(base, tmp_path):
    adapter = reranker_adapter(tmp_path / "classifier", base, task_type=None)
    with pytest.raises(
        bge_runtime.ConfigurationError, match=r"no place for.*bert\.encoder.*another class than BertModel"
    ):
        bge_runtime.Embedder(EMBEDDER, adapter=adapter).encode_documents(TEXTS)


def test_an_adapter_that_lacks_weights_is_an_error(adapter, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = changed(adapter, tmp_path / "adapter")
    weights = load_file(folder / "adapter_model.safetensors")
    save_file(
        {key: value for key, value in weights.items() if "layer.1" not in key}, folder / "adapter_model.safetensors"
    )
    with pytest.raises(bge_runtime.ConfigurationError, match="lacks weights"):
        bge_runtime.Embedder(EMBEDDER, adapter=folder).encode_documents(TEXTS)


def test_an_adapter_of_another_size_is_an_error_that_says_so(hub_cache, tmp_path):
    other = embedder_adapter(tmp_path / "other", snapshot_of(hub_cache, "BAAI/bge-small-zh-v1.5"))
    folder = changed(other, tmp_path / "adapter", base_model_name_or_path=None)
    with pytest.raises(bge_runtime.ConfigurationError, match="does not fit BertModel"):
        bge_runtime.Embedder(EMBEDDER, adapter=folder).encode_documents(TEXTS)


def test_without_peft_the_extra_is_named_before_the_weights_are_read(adapter, monkeypatch, fresh_store):
    monkeypatch.setattr("bge_runtime.backends.lora.find_module", lambda name: None)
    monkeypatch.setattr("bge_runtime.backends.torch.SentenceTransformer", None)
    with pytest.raises(bge_runtime.ConfigurationError, match=r'pip install "bge-integrations\[lora\]"'):
        bge_runtime.Embedder(EMBEDDER, adapter=adapter).encode_documents(TEXTS)


def test_applying_an_adapter_leaves_no_trace_of_peft_in_the_model(base, adapter):
    from transformers import AutoModel

    from bge_runtime.backends.lora import apply_adapter

    model = AutoModel.from_pretrained(base, local_files_only=True)
    names = list(model.state_dict())
    apply_adapter(model, Path(adapter))
    assert list(model.state_dict()) == names
    assert not any(type(module).__module__.startswith("peft") for module in model.modules())


def test_an_llm_reranker_takes_the_adapter_of_its_language_model(hub_cache, tmp_path):
    base = snapshot_of(hub_cache, "BAAI/bge-reranker-v2-gemma")
    adapter = language_model_adapter(tmp_path, base)
    reranker = bge_runtime.Reranker("BAAI/bge-reranker-v2-gemma", adapter=adapter)
    (yes,) = ids_of(base, "Yes")
    expected = [
        adapted_answer(base, adapter, joined(base, QUERY, text, YES_OR_NO, reranker.max_length)[0], yes)
        for text in TEXTS
    ]
    scores = reranker.score(QUERY, TEXTS)
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    assert np.abs(scores - bge_runtime.Reranker("BAAI/bge-reranker-v2-gemma").score(QUERY, TEXTS)).min() > 1e-3


def test_a_layerwise_reranker_does_not_pass_over_an_adapter(hub_cache, tmp_path):
    name, gemma = "BAAI/bge-reranker-v2.5-gemma2-lightweight", snapshot_of(hub_cache, "BAAI/bge-reranker-v2-gemma")
    other = changed(
        language_model_adapter(tmp_path / "gemma", gemma), tmp_path / "adapter", base_model_name_or_path=name
    )
    with pytest.raises(bge_runtime.ConfigurationError, match="does not fit"):
        bge_runtime.Reranker(name, adapter=other).score(QUERY, TEXTS)


def test_a_vision_model_takes_the_adapter_of_clip(hub_cache, tmp_path):
    name = "BAAI/BGE-VL-large"
    adapter = clip_adapter(tmp_path, snapshot_of(hub_cache, name))
    expected = unit(adapted_text(snapshot_of(hub_cache, name), adapter, TEXTS[1]))
    adapted = bge_runtime.VisionEmbedder(name, adapter=adapter)
    np.testing.assert_allclose(adapted.encode_texts(TEXTS[1:2])[0], expected, atol=1e-4)
    left, right = (each.encode_images([picture(1)])[0] for each in (adapted, bge_runtime.VisionEmbedder(name)))
    assert np.linalg.norm(left - right) > 1e-2
