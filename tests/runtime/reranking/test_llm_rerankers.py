"""LLM rerankers against their authors' definitions, and the wrong paths that are near."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import bge_runtime
from bge_runtime import Reranker
from bge_runtime.backends.base import LayerScore, LoadRequest
from bge_runtime.backends.registry import load_backend
from tests.checkpoints.hub_cache import BY_NAME, write_checkpoint
from tests.checkpoints.llm_rerankers import llm_files
from tests.runtime.llm_references import PREDICT, YES_OR_NO, joined, reference_score, yes_logits
from tests.runtime.references import snapshot_of

GEMMA = "BAAI/bge-reranker-v2-gemma"
MINICPM = "BAAI/bge-reranker-v2-minicpm-layerwise"
LIGHT = "BAAI/bge-reranker-v2.5-gemma2-lightweight"
MODELS = (GEMMA, MINICPM, LIGHT)
QUERY = "what is panda?"
PANDA = (
    "The giant panda (Ailuropoda melanoleuca), sometimes called a panda bear or simply panda, is a bear species "
    "endemic to China."
)
DOCUMENTS = ["hi", PANDA, "大熊猫是中国特有的熊类动物"]
SIMILAR = "Predict whether passages A and B have the same meaning."
CLOSE = {"atol": 1e-4, "rtol": 0}


@pytest.fixture(scope="module", autouse=True)
def kept(hub_cache):
    """The models stay in memory from one test to the next."""
    rerankers = [Reranker(name).warm_up() for name in MODELS]
    yield rerankers
    for reranker in rerankers:
        reranker.close()


@pytest.fixture
def folder(hub_cache):
    return lambda name: snapshot_of(hub_cache, name)


def references(folder, documents=DOCUMENTS, **options):
    return [reference_score(folder, QUERY, document, **options) for document in documents]


@pytest.mark.parametrize("name", MODELS)
def test_scores_are_those_of_the_authors_definition(folder, name):
    reranker = Reranker(name)
    scores = reranker.score(QUERY, DOCUMENTS)
    np.testing.assert_allclose(scores, references(folder(name)), **CLOSE)
    assert scores.dtype == np.float32
    assert np.std(scores) > 0.1


@pytest.mark.parametrize("name", MODELS)
def test_a_pair_alone_scores_as_in_a_batch_of_mixed_lengths(hub_cache, name):
    reranker = Reranker(name)
    alone = [reranker.score(QUERY, [document])[0] for document in DOCUMENTS]
    np.testing.assert_allclose(reranker.score(QUERY, DOCUMENTS), alone, **CLOSE)
    pairs = [(f"{QUERY} {'very ' * number}", document) for number, document in enumerate(DOCUMENTS)]
    np.testing.assert_allclose(
        reranker.score_pairs(pairs), [reranker.score(query, [document])[0] for query, document in pairs], **CLOSE
    )


@pytest.mark.parametrize("name", MODELS)
def test_the_query_keeps_three_quarters_and_the_prompt_comes_on_top(folder, name, caplog):
    long = [(QUERY * 20, "A short document."), (QUERY, PANDA * 9), (QUERY * 20, PANDA * 9), (QUERY, "hi")]
    reranker = Reranker(name, max_length=40)
    expected = [reference_score(folder(name), query, document, max_length=40) for query, document in long]
    np.testing.assert_allclose(reranker.score_pairs(long), expected, **CLOSE)
    assert reranker.truncated_count == 3
    assert "3 of 4" in caplog.text
    with pytest.raises(bge_runtime.InputTooLongError):
        Reranker(name, max_length=40, truncation="error").score(QUERY, [PANDA * 9])


@pytest.mark.parametrize(("name", "own"), [(GEMMA, YES_OR_NO), (MINICPM, YES_OR_NO), (LIGHT, PREDICT)])
def test_the_prompt_is_the_models_own_or_the_callers(folder, name, own):
    scores = Reranker(name).score(QUERY, DOCUMENTS)
    np.testing.assert_allclose(Reranker(name, prompt=own).score(QUERY, DOCUMENTS), scores, atol=1e-5)
    other = Reranker(name, prompt=SIMILAR).score(QUERY, DOCUMENTS)
    np.testing.assert_allclose(other, references(folder(name), prompt=SIMILAR), **CLOSE)
    for prompt in (SIMILAR, ""):
        assert np.abs(Reranker(name, prompt=prompt).score(QUERY, DOCUMENTS) - scores).max() > 1e-2


@pytest.mark.parametrize("name", MODELS)
def test_a_long_document_is_read_in_passages_that_each_begin_as_documents_do(folder, name):
    reranker = Reranker(name, max_length=48, long_document="max_passage", passage_overlap=8)
    whole = reranker.score(QUERY, [PANDA * 3, "hi"])
    tokenizing = reranker._runner.hold().tokenizing
    (short,), parts = (tokenizing.pairs([(QUERY, each)], 48, 8).sequences for each in ("hi", PANDA * 3))
    head = short.type_ids.count(0)
    mark = short.ids[head : head + len(tokenizing._mark)]
    assert len(parts) > 2
    assert all(part.ids[head : head + len(mark)] == mark for part in parts)
    assert all(part.ids[:head] == short.ids[:head] for part in parts)
    backend = reranker._runner.hold().engine.replicas[0].backend
    best = max(float(value) for value in backend.forward(parts, "score"))
    np.testing.assert_allclose(whole, [best, reference_score(folder(name), QUERY, "hi", max_length=48)], **CLOSE)
    assert reranker.truncated_count == 0


def test_the_score_is_the_logit_of_yes_and_no_other_path(folder):
    score = float(Reranker(GEMMA).score(QUERY, [PANDA])[0])
    ids, _, _ = joined(folder(GEMMA), QUERY, PANDA, YES_OR_NO, 8192)
    yes, no, lower, lower_no = yes_logits(folder(GEMMA), ids, ["Yes", "No", "yes", "no"])
    assert score == pytest.approx(yes, abs=1e-4)
    for wrong in (yes - no, lower, lower - lower_no):
        assert abs(score - wrong) > 1e-2


def test_no_chat_template_is_applied_and_sentence_transformers_does_not_score(folder, tmp_path, monkeypatch):
    import sentence_transformers

    def refuse(*args, **options):
        raise AssertionError("sentence-transformers was asked for a score")

    monkeypatch.setattr(sentence_transformers.CrossEncoder, "__init__", refuse)
    checkpoint = BY_NAME[GEMMA]
    tokenizer = json.loads(llm_files(checkpoint)["tokenizer_config.json"])
    template = {"chat_template": "{{ bos_token }}<start_of_turn>{{ messages }}<end_of_turn>", **tokenizer}
    path = write_checkpoint(
        tmp_path / "bge-reranker-v2-gemma", checkpoint, **{"tokenizer_config.json": json.dumps(template).encode()}
    )
    np.testing.assert_allclose(Reranker(path).score(QUERY, DOCUMENTS), references(folder(GEMMA)), **CLOSE)


@pytest.mark.parametrize("name", MODELS)
def test_the_sigmoid_is_taken_in_float32_even_of_half_precision_weights(hub_cache, name):
    options = {"precision": "bfloat16", "normalize": True}
    scores = Reranker(name, **options).score(QUERY, DOCUMENTS)
    raw = Reranker(name, precision="bfloat16").score(QUERY, DOCUMENTS)
    exact = 1 / (1 + np.exp(-raw.astype(np.float64)))
    np.testing.assert_allclose(scores, exact, atol=1e-6)
    import torch

    half = torch.sigmoid(torch.from_numpy(raw).bfloat16()).float().numpy()
    assert np.abs(half - exact).max() > 1e-4
    full = Reranker(name).score(QUERY, DOCUMENTS)
    assert np.abs(raw - full).max() > 1e-3  # the weights are bfloat16 indeed


@pytest.mark.parametrize(("name", "last"), [(MINICPM, 40), (LIGHT, 42)])
def test_the_cut_off_layer_scores_and_those_above_are_not_computed(folder, name, last):
    scores = {layer: Reranker(name, cutoff_layers=layer).score(QUERY, DOCUMENTS) for layer in (8, 28, last)}
    for layer, found in scores.items():
        np.testing.assert_allclose(found, references(folder(name), layer=layer), **CLOSE)
    assert np.abs(scores[8] - scores[28]).max() > 1e-2
    assert np.abs(scores[28] - scores[last]).max() > 1e-2
    np.testing.assert_array_equal(Reranker(name, cutoff_layers=[28]).score(QUERY, DOCUMENTS), scores[28])
    np.testing.assert_array_equal(Reranker(name).score(QUERY, DOCUMENTS), scores[last])
    reranker = Reranker(name, cutoff_layers=28)
    layers = reranker._runner.hold().engine.replicas[0].backend._model.layers
    calls = []
    hooks = [
        layer.register_forward_hook(lambda *_, index=index: calls.append(index)) for index, layer in enumerate(layers)
    ]
    try:
        reranker.score(QUERY, ["one forward pass"])
    finally:
        for hook in hooks:
            hook.remove()
    assert calls == list(range(28))


@pytest.mark.parametrize(("name", "last"), [(MINICPM, 40), (LIGHT, 42)])
async def test_several_layers_come_from_one_forward_pass(folder, name, last):
    reranker = Reranker(name)
    reranker.warm_up()
    before = bge_runtime.stats()["batches"]
    scores = reranker.score_layers(QUERY, DOCUMENTS, layers=[28, 8, last])
    assert bge_runtime.stats()["batches"] == before + 1
    assert list(scores) == [8, 28, last]
    for layer, found in scores.items():
        np.testing.assert_allclose(found, references(folder(name), layer=layer), **CLOSE)
    everything = await reranker.ascore_layers(QUERY, iter(DOCUMENTS))
    assert list(everything) == list(range(8, last + 1))
    np.testing.assert_allclose(everything[28], scores[28], atol=1e-5)
    unit = Reranker(name, normalize=True).score_layers(QUERY, DOCUMENTS, layers=[8])[8]
    np.testing.assert_allclose(unit, 1 / (1 + np.exp(-scores[8].astype(np.float64))), atol=1e-6)
    assert reranker.score_layers(QUERY, [], layers=[8])[8].shape == (0,)


@pytest.mark.parametrize(("ratio", "layers"), [(2, [24, 40]), (4, [8, 16]), (8, None)])
def test_documents_are_compressed_before_the_layers_named(folder, ratio, layers):
    plain = Reranker(LIGHT, cutoff_layers=28).score(QUERY, DOCUMENTS)
    reranker = Reranker(LIGHT, cutoff_layers=28, compress_ratio=ratio, compress_layers=layers)
    expected = references(folder(LIGHT), layer=28, ratio=ratio, compress=tuple(layers or [8]))
    found = reranker.score(QUERY, DOCUMENTS)
    np.testing.assert_allclose(found, expected, **CLOSE)
    np.testing.assert_allclose(found, [reranker.score(QUERY, [document])[0] for document in DOCUMENTS], **CLOSE)
    assert np.abs(found - plain).max() > 1e-2
    none = Reranker(LIGHT, cutoff_layers=28, compress_ratio=1, compress_layers=[8]).score(QUERY, DOCUMENTS)
    np.testing.assert_array_equal(none, plain)


def test_gemma2_looks_back_as_far_as_its_window_and_caps_what_it_is_told_to(tmp_path):
    checkpoint = replace(BY_NAME[LIGHT], layers=12)
    path = tmp_path / "narrow"
    path.mkdir()
    for name, content in llm_files(checkpoint, sliding_window=12).items():
        (path / name).write_bytes(content)
    reranker = Reranker(path)
    found = reranker.score(QUERY, DOCUMENTS)
    np.testing.assert_allclose(found, references(path), **CLOSE)
    assert reranker.spec.layers == (8, 12)
    eager = Reranker(path, model_kwargs={"attn_implementation": "eager"}).score(QUERY, DOCUMENTS)
    np.testing.assert_allclose(eager, references(path, cap_attention=True), **CLOSE)
    assert np.abs(eager - found).max() > 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_padding_on_either_side_would_leave_the_score_or_change_it(hub_cache, folder, name):
    """Right padding changes nothing; padding on the left, read with positions from 0 and no mask, would."""
    backend = _backend(folder(name), name)
    short, long = backend.tokenizing.pairs([(QUERY, "hi"), (QUERY, PANDA)], 512).sequences
    alone, beside = backend.forward([short], "score")[0], backend.forward([short, long], "score")[0]
    assert alone == pytest.approx(beside, abs=1e-4)
    left = short._replace(ids=[0] * 8 + short.ids, type_ids=[0] * 8 + short.type_ids)
    assert abs(float(backend.forward([left], "score")[0]) - float(alone)) > 1e-2


def test_calls_with_other_layers_share_the_weights_but_not_the_batch(hub_cache, fresh_store):
    rerankers = [Reranker(LIGHT, cutoff_layers=layer, prompt=prompt) for layer in (8, 42) for prompt in (None, SIMILAR)]
    assert len({tuple(reranker.score(QUERY, DOCUMENTS)) for reranker in rerankers}) == 4
    assert len(bge_runtime.loaded_models()) == 1
    assert bge_runtime.loaded_models()[0].backend == "llm"
    backend = rerankers[0]._runner.hold().engine.replicas[0].backend
    assert backend.parameters == bge_runtime.loaded_models()[0].parameters > 100_000


def test_weights_that_are_missing_are_not_invented(tmp_path):
    import safetensors.torch

    files = llm_files(replace(BY_NAME[MINICPM], layers=10))
    for dropped in ("model.layers.9.mlp.up_proj.weight", "lm_head.2.linear_head.weight"):
        path = tmp_path / dropped
        path.mkdir()
        for name, content in files.items():
            if name.endswith(".safetensors"):
                kept = {key: value for key, value in safetensors.torch.load(content).items() if key != dropped}
                content = safetensors.torch.save(kept, metadata={"format": "pt"})
            (path / name).write_bytes(content)
        index = json.loads(files["model.safetensors.index.json"])
        del index["weight_map"][dropped]
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(bge_runtime.ModelNotFoundError, match=r"lack 1 tensors"):
            Reranker(path).score(QUERY, DOCUMENTS)


@pytest.mark.parametrize("change", [{"head_type": "raw"}, {"head_multi": False}, {"rope_scaling": {"type": "linear"}}])
def test_unpublished_variants_are_refused(tmp_path, change):
    for name, content in llm_files(replace(BY_NAME[MINICPM], layers=10)).items():
        (tmp_path / name).write_bytes(content)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(bge_runtime.UnsupportedModelError, match=next(iter(change))):
        Reranker(tmp_path).score(QUERY, DOCUMENTS)


def test_a_fine_tuned_folder_is_known_by_its_configuration(tmp_path, folder):
    path = write_checkpoint(tmp_path / "mine", BY_NAME[LIGHT])
    reranker = Reranker(path, cutoff_layers=9, trust_remote_code=True)
    assert (reranker.spec.score, reranker.spec.layers, reranker.method) == ("layerwise", (8, 42), "cross_encoder")
    np.testing.assert_allclose(reranker.score(QUERY, ["hi"]), references(folder(LIGHT), ["hi"], layer=9), **CLOSE)
    with pytest.raises(bge_runtime.ConfigurationError, match="8 to 42"):
        Reranker(path, cutoff_layers=7)


def test_the_table_says_what_was_checked():
    for name in MODELS:
        spec = bge_runtime.get_spec(name)
        assert spec.unsupported is None
        assert "4.46.0" in spec.checked


def test_a_model_without_layers_refuses_a_layer_score(hub_cache, folder):
    for name, backend in (("BAAI/bge-reranker-base", "packed"), ("BAAI/bge-reranker-base", "torch"), (GEMMA, "llm")):
        loaded = _backend(folder(name), name, backend)
        sequences = loaded.tokenizing.pairs([(QUERY, "hi")], 64).sequences
        with pytest.raises(bge_runtime.ConfigurationError, match="no score heads"):
            loaded.forward(sequences, LayerScore(layers=(8,)))


def _backend(folder, name, backend="llm"):
    request = LoadRequest(name=name, folder=folder, task="score", device="cpu", precision="float32")
    return load_backend(backend, request)
