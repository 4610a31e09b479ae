"""A weighted mean of fine-tunes: the right numbers, whole folders, and no mean of what does not go together."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from huggingface_hub import metadata_load
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification

from bge_runtime import ConfigurationError, Embedder, ModelNotFoundError, Reranker, UnsafeWeightsError
from bge_runtime.training import mixing
from bge_runtime.training.mixing import mix, weights_by_loss
from tests.checkpoints.files import to_json
from tests.checkpoints.hub_cache import Checkpoint, fine_tuned_folder, write_checkpoint

TEXTS = ["The heart pumps blood.", "Paris is the capital of France."]
SMALL = {"name": "a/b", "family": "bert", "hidden": 32, "positions": 64, "max_length": 64, "layers": 1}
THIRDS = [0.5, 0.3, 0.2]


def small(folder, seed, *, files=None, **changes):
    """A small BERT embedder; `files` replaces files, or drops those given as `None`."""
    return write_checkpoint(folder, Checkpoint(**{**SMALL, "seed": seed, **changes}), **(files or {}))


def rewritten(folder, change):
    """Change the tensors of a folder."""
    weights = load_file(folder / "model.safetensors")
    weights = change(weights) or weights
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def three(tmp_path):
    return [small(tmp_path / f"model{seed}", seed) for seed in (1, 2, 3)]


def cocktail(kind, folders, weights):
    """What LM-Cocktail's merge_param computes: over the state dicts of loaded models, in order."""
    states = [kind.from_pretrained(folder, dtype=torch.float32).state_dict() for folder in folders]
    return {name: sum(w * state[name] for w, state in zip(weights, states, strict=True)) for name in states[0]}


def assert_same(folder, kind, wanted):
    found = kind.from_pretrained(folder, dtype=torch.float32).state_dict()
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert torch.allclose(found[name], wanted[name].float(), atol=1e-6, rtol=0), name


def test_the_mean_of_embedders_is_that_of_lm_cocktail(three, tmp_path):
    out = mix(three, tmp_path / "out", weights=THIRDS)
    assert out == tmp_path / "out"
    assert_same(out, AutoModel, cocktail(AutoModel, three, THIRDS))
    assert {file.name for file in out.iterdir()} == {file.name for file in three[0].iterdir()} | {
        "README.md",
        "bge_model.json",
    }
    vectors, first = Embedder(out).encode_documents(TEXTS), Embedder(three[0])
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert not np.allclose(vectors, first.encode_documents(TEXTS), atol=1e-2)
    same = mix([three[0], three[0]], tmp_path / "same", weights=[0.25, 0.75])
    assert np.allclose(Embedder(same).encode_documents(TEXTS), first.encode_documents(TEXTS), atol=1e-6)


def test_a_reranker_with_its_head_and_a_name_of_the_hub(hub_cache, tmp_path):
    name = "BAAI/bge-reranker-base"
    tuned = Checkpoint(name=name, family="xlmr", hidden=128, seed=51, positions=514, head=1, modules=False)
    models = [name, write_checkpoint(tmp_path / "tuned", tuned)]
    out = mix(models, tmp_path / "out", weights=[0.6, 0.4])
    folders = [Reranker(name).source.folder, models[1]]
    kind = AutoModelForSequenceClassification
    assert_same(out, kind, cocktail(kind, folders, [0.6, 0.4]))
    assert Reranker(out).spec.kind == "reranker"
    assert metadata_load(out / "README.md") == {"tags": ["bge-integrations", "merge"], "base_model": [name]}


def test_the_card_tells_what_was_mixed_and_the_family_s_facts_stay(tmp_path):
    models = [fine_tuned_folder(tmp_path / f"t{seed}", seed=seed) for seed in (31, 32)]
    (models[0] / "README.md").write_text("---\nlicense: mit\n---\nThe first one's own card.\n")
    (models[0] / "training.json").write_text("{}")
    out = mix([str(each) for each in models], tmp_path / "out", weights=[0.75, 0.25])
    card = (out / "README.md").read_text()
    assert metadata_load(out / "README.md")["base_model"] == ["BAAI/bge-small-en-v1.5"]
    for model, weight in zip(models, ("0.75", "0.25"), strict=True):
        assert f"| {model} | {weight} | {Embedder(model).source.weights_digest} |" in card
    assert "own card" not in card
    assert not (out / "training.json").exists()
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_bytes(to_json({**config, "_name_or_path": ""}))
    shutil.move(out, tmp_path / "moved")
    first, found = Embedder(models[0]), Embedder(tmp_path / "moved")
    assert found.query_instruction == first.query_instruction != ""
    assert (found.spec.pooling, found.spec.max_length, found.normalize) == ("cls", first.max_length, True)


def test_real_weights_and_a_copy_that_transformers_5_has_saved(minilm, tmp_path):
    from sentence_transformers import SentenceTransformer

    assert "embeddings.position_ids" in load_file(minilm / "model.safetensors")
    SentenceTransformer(str(minilm)).save(str(tmp_path / "copy"))
    assert "embeddings.position_ids" not in load_file(tmp_path / "copy" / "model.safetensors")
    out = mix([minilm, tmp_path / "copy"], tmp_path / "out", weights=[0.3, 0.7])
    assert "embeddings.position_ids" not in load_file(out / "model.safetensors")
    with Embedder(out) as mixed, Embedder(minilm) as real:
        assert np.allclose(mixed.encode_queries(TEXTS), real.encode_queries(TEXTS), atol=1e-5)


def test_files_in_parts_stay_in_parts(three, tmp_path):
    parts = tmp_path / "parts"
    shutil.copytree(three[0], parts)
    (parts / "model.safetensors").unlink()
    AutoModel.from_pretrained(three[0]).save_pretrained(parts, max_shard_size="40KB")
    names = sorted(file.name for file in parts.glob("model-*.safetensors"))
    assert len(names) > 1
    for order in ([parts, three[1]], [three[1], parts]):
        out = mix(order, tmp_path / f"out {order[0].name}", weights=[0.5, 0.5])
        assert_same(out, AutoModel, cocktail(AutoModel, three[:2], [0.5, 0.5]))
        wanted = names if order[0] == parts else []
        assert sorted(file.name for file in out.glob("model-*.safetensors")) == wanted
        assert (out / "model.safetensors.index.json").exists() == bool(wanted)
        assert Embedder(out).encode_documents(TEXTS).shape == (2, 32)


def test_the_first_model_s_number_format_is_written_and_rounded_once(three, tmp_path):
    half = rewritten(three[0], lambda weights: {name: tensor.to(torch.bfloat16) for name, tensor in weights.items()})
    out = mix([half, *three[1:]], tmp_path / "out", weights=THIRDS)
    found = load_file(out / "model.safetensors")
    wanted = cocktail(AutoModel, three, THIRDS)
    for name in wanted:
        assert found[name].dtype == torch.bfloat16
        assert torch.allclose(found[name].float(), wanted[name], rtol=2**-8, atol=1e-6)  # half a unit in the last place


def test_integers_are_copied_and_must_be_the_same(three, tmp_path):
    numbers = torch.arange(64)[None]

    def with_numbers(weights):
        weights["embeddings.position_ids"] = numbers.clone()

    models = [rewritten(each, with_numbers) for each in three[:2]]
    out = mix(models, tmp_path / "out", weights=[0.5, 0.5])
    assert torch.equal(load_file(out / "model.safetensors")["embeddings.position_ids"], numbers)
    numbers += 1
    rewritten(models[1], with_numbers)
    with pytest.raises(ConfigurationError, match=r"position_ids, which is no weight, holds other numbers"):
        mix(models, tmp_path / "other", weights=[0.5, 0.5])


def test_bge_m3_with_its_heads_from_pickles_that_its_family_may_have(tmp_path):
    facts = {"name": "BAAI/bge-m3", "family": "xlmr", "pickled": True, "m3_heads": True}
    models = [small(tmp_path / f"m3-{seed}", seed, **facts) for seed in (41, 42)]
    out = mix(models, tmp_path / "out", weights=[0.9, 0.1])
    assert not list(out.glob("*.bin"))
    assert not list(out.glob("*.pt"))
    for head in ("sparse_linear", "colbert_linear"):
        stored = [torch.load(model / f"{head}.pt", weights_only=True) for model in models]
        found = load_file(out / f"{head}.safetensors")
        for name in ("weight", "bias"):
            assert torch.allclose(found[name], 0.9 * stored[0][name] + 0.1 * stored[1][name], atol=1e-6)
    assert_same(out, AutoModel, cocktail(AutoModel, models, [0.9, 0.1]))
    assert len(Embedder(out).encode_sparse(TEXTS)) == 2
    shutil.copytree(out, tmp_path / "without")
    (tmp_path / "without" / "sparse_linear.safetensors").unlink()
    with pytest.raises(ConfigurationError, match=r"weights are in \['\.', 'colbert_linear'\], not in"):
        mix([out, tmp_path / "without"], tmp_path / "other", weights=[0.9, 0.1])


def test_a_dense_layer_after_the_pooling_is_mixed_too(tmp_path):
    models = []
    for seed in (1, 2):
        folder = small(tmp_path / f"dense{seed}", seed)
        rows = json.loads((folder / "modules.json").read_text())
        rows[2] |= {"path": "2_Dense", "type": "sentence_transformers.models.Dense"}
        (folder / "modules.json").write_bytes(to_json(rows))
        (folder / "2_Dense").mkdir()
        settings = {"in_features": 32, "out_features": 8, "bias": True}
        settings["activation_function"] = "torch.nn.modules.linear.Identity"
        (folder / "2_Dense" / "config.json").write_bytes(to_json(settings))
        weights = {"linear.weight": torch.full((8, 32), float(seed)), "linear.bias": torch.ones(8) * seed}
        save_file(weights, folder / "2_Dense" / "model.safetensors", metadata={"format": "pt"})
        models.append(folder)
    out = mix(models, tmp_path / "out", weights=[0.25, 0.75])
    assert torch.allclose(load_file(out / "2_Dense" / "model.safetensors")["linear.weight"], torch.tensor(1.75))
    assert Embedder(out).encode_documents(TEXTS).shape == (2, 8)
    settings = json.loads((models[1] / "2_Dense" / "config.json").read_text())
    (models[1] / "2_Dense" / "config.json").write_bytes(to_json({**settings, "bias": False}))
    with pytest.raises(ConfigurationError, match=r"in 2_Dense bias is False, not True"):
        mix(models, tmp_path / "other", weights=[0.25, 0.75])


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ([0.5, 0.4], r"have the sum 0\.9, not 1"),
        ([0.5, 0.5 + 2e-6], r"have the sum 1\.000002, not 1"),
        ([1.0], r"not allowed for 2 models"),
        ([float("nan"), 1.0], r"not allowed for 2 models"),
        ([True, 0.0], r"not allowed for 2 models"),
        (["0.5", "0.5"], r"not allowed for 2 models"),
    ],
)
def test_weights_that_are_none(three, tmp_path, weights, said):
    with pytest.raises(ConfigurationError, match=said):
        mix(three[:2], tmp_path / "out", weights=weights)


def test_models_and_places_that_cannot_be(three, tmp_path):
    with pytest.raises(ConfigurationError, match=r"Pass two or more"):
        mix(three[:1], tmp_path / "out", weights=[1.0])
    with pytest.raises(ConfigurationError, match=r"Pass two or more"):
        mix(str(three[0]), tmp_path / "out", weights=[1.0])
    with pytest.raises(ConfigurationError, match=r"is there already"):
        mix(three, three[0], weights=THIRDS)
    with pytest.raises(ConfigurationError, match=r"is inside a model's folder"):
        mix(three, three[2] / "mix", weights=THIRDS)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert mix(three, empty, weights=THIRDS) == empty
    with pytest.raises(ModelNotFoundError):
        mix([three[0], tmp_path / "nowhere"], tmp_path / "out", weights=[0.5, 0.5])


def other_tokenizer(folder):
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace('"panda":', '"pandu":'))


def other_heads(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_bytes(to_json({**config, "num_attention_heads": 2}))


def other_pooling(folder):
    (folder / "1_Pooling" / "config.json").write_bytes(to_json({"pooling_mode": "mean"}))


def lost_tensor(folder):
    rewritten(folder, lambda weights: {name: each for name, each in weights.items() if "pooler" not in name})


def more_tensors(folder):
    rewritten(folder, lambda weights: {**weights, "projection.weight": torch.zeros(2, 2)})


def adapter(folder):
    (folder / "adapter_config.json").write_text("{}")
    (folder / "config.json").unlink()


def query_map(folder):
    save_file({"weight": torch.eye(32)}, folder / "query_map.safetensors")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (other_tokenizer, r"its vocabulary differs, for example in 'pand[au]'"),
        (other_heads, r"num_attention_heads is 2, not 4"),
        (other_pooling, r"pooling is 'mean', not 'cls'"),
        (lost_tensor, r"it lacks pooler\.dense\.bias, pooler\.dense\.weight"),
        (more_tensors, r"it has also projection\.weight"),
        (adapter, r"is an adapter .* Merge it into its base first"),
        (query_map, r"has a query_map\.safetensors, which fits its own vectors only"),
    ],
)
def test_what_does_not_go_together_is_refused(three, tmp_path, change, said):
    change(three[1])
    with pytest.raises(ConfigurationError, match=said):
        mix(three, tmp_path / "out", weights=THIRDS)
    assert not (tmp_path / "out").exists()


def test_other_architectures_and_shapes_and_pickles(three, tmp_path):
    others = {
        "wide": ({"hidden": 64}, r"dimension is 64, not 32"),
        "deep": ({"layers": 2}, r"num_hidden_layers is 2, not 1"),
        "inner": ({"inner": 32}, r"intermediate_size is 32, not 64"),
        "xlmr": ({"family": "xlmr"}, r"model_type is 'xlm-roberta', not 'bert'"),
        "scorer": ({"head": 1, "modules": False}, r"kind is 'reranker', not 'embedder'"),
    }
    for name, (facts, said) in others.items():
        with pytest.raises(ConfigurationError, match=said):
            mix([three[0], small(tmp_path / name, 9, **facts)], tmp_path / "out", weights=[0.5, 0.5])
    with pytest.raises(UnsafeWeightsError, match=r"pickle format only"):
        mix([three[0], small(tmp_path / "pickled", 9, pickled=True)], tmp_path / "out", weights=[0.5, 0.5])


def test_a_tensor_of_another_shape_is_named(three, tmp_path):
    rewritten(three[1], lambda weights: {**weights, "pooler.dense.bias": torch.zeros(7)})
    with pytest.raises(ConfigurationError, match=r"pooler\.dense\.bias is of the shape \(7,\), not \(32,\)"):
        mix(three, tmp_path / "out", weights=THIRDS)


def test_what_fails_on_the_way_leaves_nothing_behind(three, tmp_path, monkeypatch):
    place = tmp_path / "place"
    place.mkdir()
    damaged = rewritten(three[2], lambda weights: {**weights, "pooler.dense.bias": torch.full((32,), float("nan"))})
    with pytest.raises(ModelNotFoundError, match=r"mean of pooler\.dense\.bias holds numbers that are not finite"):
        mix([*three[:2], damaged], place / "out", weights=THIRDS)
    assert not list(place.iterdir())

    def full(*_, **__):
        raise RuntimeError("I/O error: No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(ConfigurationError, match=r"cannot be written \(.*No space left.*\)\. Make room"):
        mix(three[:2], place / "out", weights=[0.5, 0.5])
    assert not list(place.iterdir())

    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(mixing, "_card", stopped)
    monkeypatch.setattr("safetensors.torch.save_file", lambda *_, **__: None)
    with pytest.raises(KeyboardInterrupt):
        mix(three[:2], place / "out", weights=[0.5, 0.5])
    assert not list(place.iterdir())


def test_weights_by_loss_are_lm_cocktail_s():
    losses = [1.2, 0.4, 3.0]
    wanted = torch.softmax(-torch.tensor(losses, dtype=torch.float64) / 5.0, -1).tolist()
    assert weights_by_loss(losses) == pytest.approx(wanted, abs=1e-12)
    assert sum(weights_by_loss([1e308, -1e308, 0.0], temperature=1e-3)) == 1
    assert weights_by_loss([2.0]) == [1.0]
    assert weights_by_loss([1.0, 1.0], 0.1) == [0.5, 0.5]
    for losses in ([], [float("inf")], "12", [None]):
        with pytest.raises(ConfigurationError, match=r"Pass a finite number for each model"):
            weights_by_loss(losses)
    for temperature in (0, -1.0, float("nan"), True):
        with pytest.raises(ConfigurationError, match=r"temperature=.* is not allowed"):
            weights_by_loss([1.0], temperature)
