"""What the files of a folder say about its model, and what becomes of folders whose files are damaged or none."""

from __future__ import annotations

import json
import logging
import os
import shutil

import pytest

import bge_runtime
from bge_runtime import Embedder, ModelNotFoundError, Reranker, VisionEmbedder
from bge_runtime.models.describe import describe_folder
from bge_runtime.models.hub import HEADS
from tests.checkpoints.files import to_json
from tests.checkpoints.hub_cache import BY_NAME, Checkpoint, config_of, write_checkpoint

BASE = "BAAI/bge-small-en-v1.5"
OTHER = "BAAI/bge-small-zh-v1.5"
SMALL = Checkpoint(name="somebody/small", family="bert", hidden=64, seed=41)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A fine-tune of BGE as transformers saves it: weights, configuration and tokenizer."""
    from transformers import AutoModel, AutoTokenizer

    root = tmp_path_factory.mktemp("tuned")
    base = write_checkpoint(root / "base", BY_NAME[BASE])
    for each in (AutoModel, AutoTokenizer):
        each.from_pretrained(base).save_pretrained(root / "mine")
    assert "_name_or_path" not in json.loads((root / "mine/config.json").read_text())
    return root / "mine"


@pytest.fixture
def tuned(saved, tmp_path):
    """A copy to change."""
    return shutil.copytree(saved, tmp_path / "mine")


def facts(folder):
    embedder = Embedder(folder)
    return embedder.spec.pooling, embedder.normalize, embedder.query_instruction


def family(name):
    spec = bge_runtime.get_spec(name)
    return spec.pooling, spec.normalize, spec.query_instruction


@pytest.mark.parametrize(
    "card",
    [
        f"base_model: {BASE}",
        f"base_model: '{BASE}'",
        f'base_model:   "{BASE}"  # the base',
        f"base_model: [{BASE}]",
        f"base_model: ['{BASE}', somebody/else]",
        f"base_model:\n- {BASE}",
        f"base_model:\n    - {BASE}\n    - {BASE}",
        f"base_model: >-\n  {BASE}",
        f"base_model: !!str {BASE}",
        f'"base_model": {BASE}',
        f"{{base_model: {BASE}, license: mit}}",
        f"x: &base {BASE}\nbase_model: *base",
        f"license: mit\ntags: [a, b]\nbase_model: {BASE}\nmodel-index: []",
        "model-index:\n- name: bge-small-en-v1.5\n  results: []",
        "model-index:\n  -   {name: 'bge-small-en-v1.5'}",
        "filler: " + "x" * 10_000 + f"\nbase_model: {BASE}",
    ],
)
@pytest.mark.parametrize("ends", ["\n", "\r\n"], ids=["unix", "windows"])
def test_the_base_is_read_from_every_spelling_of_a_card(tuned, card, ends):
    text = f"---\n{card}\n---\n# My model\nbase_model: {OTHER}\n".replace("\n", ends)
    (tuned / "README.md").write_bytes(b"\xef\xbb\xbf" * (ends != "\n") + text.encode())
    assert facts(tuned) == family(BASE)


@pytest.mark.parametrize(
    "text",
    [
        f"base_model: {BASE}\n",  # prose
        f"# Title\n---\nbase_model: {BASE}\n---\n",
        f"---\n# base_model: {BASE}\n---\n",
        f"---\ntext: |\n  base_model: {BASE}\n---\n",
        "---\nbase_model: 5\n---\n",
        "---\nbase_model: {a: b}\n---\n",
        "---\nbase_model: [[1], null, 2024-13-45]\n---\n",
        f"---\nbase_model: [{BASE}\n---\n",
        "---\n" + "[" * 100_000 + "\n---\n",
        "---\n",
        "",
    ],
    ids=range(11),
)
def test_what_is_no_base_in_a_card_is_none_and_the_warning_says_what_to_name(tuned, text, caplog):
    (tuned / "README.md").write_text(text)
    with caplog.at_level(logging.WARNING, "bge_runtime"):
        assert facts(tuned) == ("mean", False, "")
    (told,) = caplog.messages
    assert "base_model=" in told
    assert BASE in told


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", {"_name_or_path": f"/data/models/{BASE.replace('/', '_')}/"}),
        ("config.json", {"_name_or_path": "C:\\models\\bge-small-en-v1.5"}),
        ("tokenizer_config.json", {"name_or_path": BASE}),
        ("adapter_config.json", {"peft_type": "LORA", "base_model_name_or_path": BASE}),
    ],
)
def test_the_base_is_read_from_what_tools_write(tuned, file, content):
    known = json.loads((tuned / file).read_text()) if (tuned / file).exists() else {}
    (tuned / file).write_text(json.dumps({**known, **content}))
    assert facts(tuned) == family(BASE)


def test_a_checkpoint_of_a_trainer_is_called_after_its_output_folder(saved, tmp_path):
    assert facts(shutil.copytree(saved, tmp_path / "bge-small-en-v1.5/checkpoint-500")) == family(BASE)


def test_a_fine_tune_saved_by_sentence_transformers_is_recognised_by_its_card(tmp_path):
    from sentence_transformers import SentenceTransformer

    base = write_checkpoint(tmp_path / "bge-small-en-v1.5", BY_NAME[BASE])
    model = SentenceTransformer(str(base), device="cpu")
    model.model_card_data.base_model = BASE
    model.save(str(tmp_path / "mine"))
    assert facts(tmp_path / "mine") == family(BASE)


def test_an_encoder_with_the_heads_of_m3_is_one(tmp_path):
    checkpoint = Checkpoint(
        name="x", family="xlmr", hidden=64, seed=3, positions=514, modules=False, m3_heads=True, pickled=True
    )
    folder = write_checkpoint(tmp_path, checkpoint)
    spec = describe_folder(folder, str(folder))
    assert (spec.pooling, spec.normalize) == ("cls", True)
    assert spec.outputs == ("dense", "sparse", "multi_vector")
    (folder / f"{HEADS[0]}.pt").unlink()
    assert describe_folder(folder, str(folder)).pooling == "mean"


@pytest.mark.parametrize(
    ("settings", "pooling"),
    [
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": "lasttoken"}, "last"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_mean_tokens": True}, "mean"),
    ],
)
def test_the_folder_of_a_pooling_counts_without_the_list_of_modules(tuned, settings, pooling):
    (tuned / "1_Pooling").mkdir()
    (tuned / "2_Normalize").mkdir()
    (tuned / "1_Pooling/config.json").write_text(json.dumps(settings))
    assert facts(tuned) == (pooling, True, "")


def test_the_pooling_is_read_where_the_list_of_modules_says_that_it_is(tmp_path):
    modules = [
        {"type": "sentence_transformers.models.Transformer", "path": ""},
        {"type": "sentence_transformers.models.Pooling", "path": "pool"},
    ]
    settings = {"pool/config.json": to_json({"pooling_mode": "cls"}), "modules.json": to_json(modules)}
    folder = write_checkpoint(tmp_path, SMALL, **settings)
    assert facts(folder)[0] == "cls"


DAMAGED = {
    "modules.json": [b"[{}]", b'[{"type": null}]', b'{"a": 1}', b"[1]", b"{", b"5", b'"x"', b"[" * 100_000],
    "config.json": [
        b"[" * 100_000,
        b"[]",
        b'"x"',
        b"{}",
        b"\xff\xfe",
        b"",
        b'{"model_type": "bert", "hidden_size": "x"}',
        b'{"model_type": "bert", "hidden_size": -1}',
        b'{"model_type": "bert", "hidden_size": true}',
        b'{"model_type": "bert", "hidden_size": [64]}',
        b'{"model_type": "bert", "hidden_size": 64, "max_position_embeddings": Infinity}',
        b'{"model_type": "bert", "hidden_size": 64, "max_position_embeddings": NaN}',
        b'{"model_type": "xlm-roberta", "hidden_size": 64, "max_position_embeddings": 1}',
        b'{"model_type": "clip", "projection_dim": "x"}',
        b'{"model_type": "clip", "text_config": 5}',
        b'{"architectures": ["CostWiseGemmaForCausalLM"]}',
        b'{"architectures": ["CostWiseGemmaForCausalLM"], "num_hidden_layers": "x"}',
        b'{"model_type": "bert", "hidden_size": ' + b"9" * 5000 + b"}",
    ],
    "config_sentence_transformers.json": [b'{"prompts": "x"}', b'{"prompts": {"query": 5}}', b"[]", b'{"a": '],
    "sentence_bert_config.json": [b'{"max_seq_length": "x"}', b'{"max_seq_length": -5}', b"[]", b"x"],
    "tokenizer_config.json": [b'{"model_max_length": "x"}', b'{"model_max_length": {}}', b"[]", b"x"],
    "1_Pooling/config.json": [b"[]", b"x", b"[" * 100_000],
}


@pytest.mark.parametrize(
    ("file", "content"),
    [(file, content) for file, contents in DAMAGED.items() for content in contents],
    ids=lambda value: repr(value)[:60],
)
def test_a_damaged_description_is_an_error_of_ours(tmp_path, file, content):
    folder = write_checkpoint(tmp_path, SMALL, **{file: content})
    for kind in (Embedder, Reranker):
        with pytest.raises(bge_runtime.BGEError) as caught:
            kind(folder)
        assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"architectures": "BertModel"},
        {"architectures": None},
        {"architectures": [5, None]},
        {"_name_or_path": 5},
        {"model_type": ["bert"]},
        {"hidden_size": None},
    ],
    ids=repr,
)
def test_what_a_description_may_leave_open_is_no_error(tmp_path, change):
    folder = write_checkpoint(tmp_path, SMALL, **{"config.json": to_json({**config_of(SMALL), **change})})
    assert Embedder(folder).spec.kind == "embedder"


@pytest.mark.parametrize(
    "file", ["config.json", "modules.json", "README.md", "tokenizer.json", "model.safetensors", "chat_template.jinja"]
)
def test_nobody_waits_for_a_pipe(tmp_path, file):
    folder = write_checkpoint(tmp_path, SMALL, **{file: None, **({"vocab.txt": None} if "tokenizer" in file else {})})
    os.mkfifo(folder / file)
    for kind in (Embedder, Reranker):
        with pytest.raises(ModelNotFoundError):
            kind(folder)


def test_a_description_of_unlikely_size_is_not_read(tmp_path):
    folder = write_checkpoint(tmp_path, SMALL)
    os.truncate(folder / "config.json", 2**40)
    with pytest.raises(ModelNotFoundError, match="MB"):
        Embedder(folder)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 90868376\n"


@pytest.mark.parametrize(
    "file", ["model.safetensors", "tokenizer.json", "vocab.txt", "sparse_linear.pt", "pytorch_model.bin"]
)
def test_a_pointer_of_git_lfs_is_not_the_file(tmp_path, file):
    changes = {"model.safetensors": None} if file == "pytorch_model.bin" else {}
    folder = write_checkpoint(tmp_path, SMALL, **changes, **{file: POINTER})
    spec = bge_runtime.get_spec("bge-m3")  # whose pickles may be read
    for build in (
        lambda: Embedder(folder),
        lambda: Reranker(folder),
        lambda: Embedder(type(spec)(**{**spec.as_dict(), "id": str(folder)})),
    ):
        with pytest.raises(ModelNotFoundError) as caught:
            build()
        told = str(caught.value)
        assert "bge download" not in told
        assert "Git LFS" in told or "pickle" in told


def test_weights_that_become_a_pointer_have_no_identity(tmp_path):
    embedder = Embedder(write_checkpoint(tmp_path, SMALL))
    (tmp_path / "model.safetensors").write_bytes(POINTER)
    with pytest.raises(ModelNotFoundError, match="Git LFS"):
        _ = embedder.identity


def test_an_adapter_that_is_a_pointer_is_refused(tmp_path):
    folder = write_checkpoint(tmp_path / "model", SMALL)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (adapter / "adapter_model.safetensors").write_bytes(POINTER)
    with pytest.raises(ModelNotFoundError, match="Git LFS"):
        Embedder(folder, adapter=adapter)


@pytest.mark.parametrize("content", [b"", None], ids=["empty", "folder"])
def test_what_only_has_the_name_of_weights_is_none(tmp_path, content):
    folder = write_checkpoint(tmp_path, SMALL, **{"model.safetensors": content})
    if content is None:
        (folder / "model.safetensors").mkdir()
    with pytest.raises(ModelNotFoundError, match=r"weights|empty"):
        Embedder(folder)


def test_a_folder_with_some_of_its_shards_says_how_many(tmp_path):
    shard = {"model.safetensors": None, "model-00002-of-00003.safetensors": b"weights"}
    with pytest.raises(ModelNotFoundError, match="1 of the 3 files"):
        Embedder(write_checkpoint(tmp_path, SMALL, **shard))


@pytest.mark.parametrize("content", [b"[]", b'{"size": "x"}', b"{", b'{"image_mean": 5}'])
def test_a_damaged_description_of_pictures_is_an_error_of_ours(hub_cache, tmp_path, content):
    from tests.runtime import references

    source = references.snapshot_of(hub_cache, "BAAI/BGE-VL-base")
    folder = shutil.copytree(source, tmp_path / "BGE-VL-base")
    (folder / "preprocessor_config.json").write_bytes(content)
    with pytest.raises(bge_runtime.BGEError):
        VisionEmbedder(folder).encode_images([b"GIF89a"])
