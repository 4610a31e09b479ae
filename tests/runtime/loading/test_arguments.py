"""Arguments are checked when an object is made: wrong ones are errors of ours, quickly, without torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import bge_runtime
from bge_runtime import ConfigurationError, Embedder, ModelNotFoundError, ModelSpec, Reranker, VisionEmbedder
from bge_runtime.loading.source import ModelSource
from tests.checkpoints.hub_cache import Checkpoint, write_checkpoint

ROOT = Path(__file__).parents[3]
BUILDERS = {"Embedder": Embedder, "Reranker": Reranker, "VisionEmbedder": VisionEmbedder}
MODELS = {"Embedder": "bge-small-en-v1.5", "Reranker": "bge-reranker-base", "VisionEmbedder": "BGE-VL-base"}
every_class = pytest.mark.parametrize("kind", BUILDERS)

NO_FLAGS = ["False", "no", "0", 0, 1, 1.0, [], b"x", np.True_]
NO_TEXTS = [5, 1.5, b"main", [], {}, True, object()]
NO_NUMBERS = ["5", float("nan"), float("inf"), -1, True, [], 10**400]
NO_GROUPS = ["abc", 5, [], [("a", 1)], {1: 2}, True, ""]
WRONG = {
    "local_files_only": NO_FLAGS,
    "trust_remote_code": NO_FLAGS,
    "show_progress": NO_FLAGS,
    "normalize": NO_FLAGS,
    "revision": [*NO_TEXTS, "", "a\0b"],
    "token": [*NO_TEXTS, "hf_a\nhf_b", "ключ"],
    "cache_folder": [5, b"x", [], True, "", "a\0b", "~nosuchuser/x"],
    "base_model": [*NO_TEXTS, "", "unknown", "x" * 5000],
    "adapter": [5, "", [], "~nosuchuser/x", "a/b/c", "x" * 5000, "a b/c"],
    "device": [5, "", "gpu", "cpu:0", [], b"cpu"],
    "devices": [5, "cpu", [], {}, {"cpu": 1}, [5], ["gpu"]],
    "precision": [5, "float8", [], object()],
    "backend": [5, "", [], {}, None, "nobody's", b"torch"],
    "calibration": [5, "", "nowhere", "a\0b", "~nosuchuser/x", []],
    "keep_alive_s": NO_NUMBERS,
    "model_kwargs": NO_GROUPS,
    "processor_kwargs": NO_GROUPS,
    "config_kwargs": NO_GROUPS,
    "truncation": [5, "", "cut", [], None, np.array([1, 2])],
    "max_length": [0, -1, "5", 1.5, True, []],
    "batch_size": [0, "5", True],
    "batch_tokens": [0, "5", True],
    "vector_cache": [5, [], "a\0b", "~nosuchuser/x"],
}
OF_EMBEDDERS = {
    "legacy": NO_FLAGS,
    "task": [5, [], {}, "unknown"],
    "query_instruction": [5, b"x", []],
    "document_instruction": [5, b"x", []],
    "truncate_dim": [0, "5", True],
    "examples": [5, "x", [1], {"query": "x"}],
}
OF_RERANKERS = {
    "long_document": [5, None, "cut", []],
    "mode": [5, "all", []],
    "passage_overlap": [0, "5"],
    "weights": [5, "x", [1]],
    "prompt": [5, []],
}


def wrong_arguments() -> list[tuple[str, str, object]]:
    own = {"Embedder": OF_EMBEDDERS, "Reranker": OF_RERANKERS, "VisionEmbedder": {}}
    return [
        (kind, name, value) for kind in BUILDERS for name, values in {**WRONG, **own[kind]}.items() for value in values
    ]


@pytest.mark.parametrize(("kind", "name", "value"), wrong_arguments(), ids=lambda value: repr(value)[:30])
def test_a_wrong_argument_is_an_error_of_ours_when_the_object_is_made(kind, name, value):
    with pytest.raises(bge_runtime.BGEError, match=r"\w") as caught:
        BUILDERS[kind](MODELS[kind], **{name: value})
    assert "hf_a" not in str(caught.value)


@every_class
@pytest.mark.parametrize("flag", ["trust_remote_code", "local_files_only", "show_progress", "normalize"])
def test_a_text_is_no_boolean_and_the_message_says_what_is(kind, flag):
    with pytest.raises(ConfigurationError, match=rf"{flag}='False' is not allowed. Pass True or False"):
        BUILDERS[kind](MODELS[kind], **{flag: "False"})


def test_a_flag_of_a_call_is_checked_like_the_constructors(hub_cache):
    embedder, reranker = Embedder(), Reranker()
    for call in (
        lambda: embedder.encode_documents(["cat"], show_progress="no"),
        lambda: embedder.encode_queries(["cat"], show_progress=0),
        lambda: reranker.score("cat", ["dog"], show_progress="no"),
    ):
        with pytest.raises(ConfigurationError, match="show_progress"):
            call()


@pytest.mark.parametrize("value", [5, None, [], b"x", {}, object()], ids=repr)
def test_what_is_no_name_is_refused_wherever_a_name_is_wanted(value):
    for call in (bge_runtime.get_spec, bge_runtime.locate, bge_runtime.download, bge_runtime.register_model):
        with pytest.raises(bge_runtime.BGEError):
            call(value)
    for kind in BUILDERS.values():
        with pytest.raises(ConfigurationError, match="is not a name"):
            kind(value)


@pytest.mark.parametrize(
    ("option", "value"),
    [("force", "no"), ("show_progress", 1), ("revision", 5), ("token", 5), ("cache_folder", 5), ("source", [])],
)
def test_download_checks_its_arguments_before_it_asks_anybody(option, value):
    with pytest.raises(ConfigurationError, match=option):
        bge_runtime.download("BAAI/bge-m3", **{option: value})


OPTIONAL = {"package": [type(None)], "outputs": [list], "languages": [list], "temperature": [int]}


@pytest.mark.parametrize("value", [None, 5, {"a": 1}, b"x", True, object()], ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("name", ModelSpec.__dataclass_fields__)
def test_a_spec_takes_no_attribute_of_another_kind(name, value):
    right = {type(getattr(spec, name)) for spec in bge_runtime.list_models()}
    with (
        nullcontext()
        if type(value) in {*right, *OPTIONAL.get(name, ())}
        else pytest.raises(ConfigurationError, match=name)
    ):
        replace(bge_runtime.get_spec("bge-m3"), **{name: value})


def test_a_number_of_scores_is_no_list_of_them():
    for scores in (None, 5, "abc", [["a"]], [[1.0]]):
        with pytest.raises(bge_runtime.InputError, match="no list of numbers"):
            bge_runtime.order_scores(scores)


@pytest.mark.parametrize(
    "name",
    [
        "/data/models/bge-m3",
        "./bge-m3",
        "../bge-m3",
        "~/bge-m3",
        "~nosuchuser/bge-m3",
        "a/b/bge-m3",
        "bge-m3/",
        "BAAI/bge-m3/",
        "D:/models/bge-m3",
        "D:bge-m3",
        r"D:\models\bge-m3",
        r"models\bge-m3",
        r"\\server\share\bge-m3",
        "/data/models/bge-reranker-base",
        "/data/models/BGE-VL-base",
        "/data/" + "x" * 300 + "/bge-m3",
    ],
)
def test_what_looks_like_a_path_is_one_whatever_its_last_part_is_called(name):
    for kind in BUILDERS.values():
        for model in (name, replace(bge_runtime.get_spec("bge-m3"), id=name)):
            with pytest.raises(ModelNotFoundError, match=r"Folder .* does not exist") as caught:
                kind(model)
            assert "bge download" not in str(caught.value)
    with pytest.raises(ModelNotFoundError, match="does not exist"):
        Embedder(adapter=name)
    with pytest.raises(ModelNotFoundError, match="is a path"):
        bge_runtime.download(name)
    assert bge_runtime.locate(name) is None


@pytest.mark.parametrize("name", ["bge-m3", "BAAI/bge-m3", "baai/BGE-M3", "somebody/bge-m3", "some.body_1/bge-m3"])
def test_names_and_mirrors_are_no_paths(name):
    assert Embedder(name).dimension == 1024


@pytest.mark.parametrize("name", ["a b/bge-m3", "x/" + "y" * 200, "x/y--z", "http:/x", "org/näme", "x/.."])
def test_what_can_be_no_name_on_a_hub_is_refused_at_construction(name):
    with pytest.raises(ModelNotFoundError):
        Embedder(name)


@pytest.mark.parametrize(
    "options",
    [
        {"backend": "torch", "precision": "int8"},
        {"backend": "onnx", "precision": "bfloat16"},
        {"backend": "openvino", "precision": "float16"},
        {"backend": "onnx", "device": "cuda"},
        {"backend": "packed", "precision": "int8", "device": "cuda:99"},
        {"device": "cuda:99"},
        {"devices": ["cpu", "cuda:99"]},
        {"model_kwargs": {"device_map": "cpu"}, "precision": "int8"},
    ],
    ids=repr,
)
@every_class
def test_backends_precisions_and_devices_that_cannot_be_are_found_at_construction(kind, options):
    with pytest.raises(ConfigurationError):
        BUILDERS[kind](MODELS[kind], **options)


@pytest.mark.parametrize(
    ("kind", "model", "options"),
    [
        (Reranker, "bge-reranker-v2-gemma", {"precision": "int8"}),
        (Reranker, "bge-reranker-v2-gemma", {"backend": "packed"}),
        (Embedder, "bge-code-v1", {"precision": "int8"}),
        (Embedder, "bge-m3", {"backend": "llm"}),
    ],
)
def test_what_a_model_cannot_run_in_is_found_at_construction(kind, model, options):
    with pytest.raises(ConfigurationError):
        kind(model, **options)


def test_a_model_that_is_not_known_yet_may_be_named_with_any_pair_that_can_be():
    for options in ({"precision": "int8"}, {"backend": "onnx"}, {"backend": "packed", "precision": "int8"}):
        assert Embedder("somebody/model", **options).known_spec is None
    assert Reranker("somebody/model", backend="llm").known_spec is None


def test_torch_stays_out_of_construction():
    script = """
import sys
from bge_runtime import BGEError, Embedder, Reranker
for options in ({}, {"device": "cpu", "precision": "bfloat16"}, {"precision": "int8"}, {"backend": "onnx"}):
    Embedder(**options), Reranker(**options), Embedder("somebody/model", **options)
for options in ({"backend": "torch", "precision": "int8"}, {"backend": "onnx", "device": "cuda"}):
    try:
        Embedder(**options)
    except BGEError:
        continue
    raise AssertionError(options)
assert "torch" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_paths_may_be_paths_and_tokens_lose_the_space_around_them(tmp_path):
    embedder = Embedder(cache_folder=tmp_path, token=" hf_secret\n")
    assert embedder.options()["cache_folder"] == str(tmp_path)
    assert embedder.source.token == "hf_secret"
    assert ModelSource(model="bge-m3", token="").token is None


@pytest.mark.parametrize("name", ["embed_instruction", "text_instruction", "document_instruction"])
@pytest.mark.parametrize("kind", ["Embedder", "VisionEmbedder"])
def test_the_document_instruction_is_taken_under_every_name_it_has(kind, name):
    embedder = BUILDERS[kind](MODELS[kind], **{name: "passage: "})
    assert embedder.document_instruction == "passage: "
    assert embedder.options()["document_instruction"] == "passage: "
    assert BUILDERS[kind](**embedder.options()).document_instruction == "passage: "


def test_two_names_of_one_instruction_may_agree_and_must_not_contradict():
    agreeing = Embedder(document_instruction="a: ", embed_instruction="a: ", text_instruction=None)
    assert agreeing.document_instruction == "a: "
    wanted = "two values for 'document_instruction': document_instruction='a: ' and text_instruction='b: ' contradict"
    with pytest.raises(ConfigurationError, match=wanted):
        Embedder(document_instruction="a: ", text_instruction="b: ")
    with pytest.raises(bge_runtime.UnknownArgumentError, match="text_instruktion"):
        Embedder(text_instruktion="b: ")


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (SystemExit(3), ModelNotFoundError),
        (KeyError("weight"), ModelNotFoundError),
        (RecursionError("deep"), bge_runtime.BackendError),
        (MemoryError(), bge_runtime.OutOfMemoryError),
        (type("PanicException", (BaseException,), {})("index out of range"), ModelNotFoundError),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_no_exception_of_a_loader_leaves_as_it_is(tmp_path, fresh_store, monkeypatch, raised, expected):
    def load(name, request):
        raise raised

    monkeypatch.setattr("bge_runtime.loading.weights.load_backend", load)
    folder = write_checkpoint(tmp_path, Checkpoint(name="x", family="bert", hidden=64, seed=1))
    with pytest.raises(expected) as caught:
        Embedder(folder).encode_queries(["cat"])
    assert caught.value.__cause__ is raised
    assert "bge download" not in str(caught.value)


@pytest.mark.parametrize("backend", ["torch", "packed"])
@pytest.mark.parametrize("place", ["sentence_transformers", "sbert_ce_default_activation_function"])
def test_no_function_that_a_rerankers_folder_names_is_called(tmp_path, fresh_store, backend, place):
    import torch

    checkpoint = Checkpoint(name="x", family="bert", hidden=64, seed=2, head=1, modules=False)
    folder = write_checkpoint(tmp_path, checkpoint)
    expected = Reranker(folder, backend=backend).score("cat", ["dog", "the cat sat"])
    bge_runtime.unload_models()
    config = json.loads((folder / "config.json").read_text())
    function = "torch.called_by_a_folder"
    config[place] = {"activation_fn": function} if place == "sentence_transformers" else function
    (folder / "config.json").write_text(json.dumps(config))

    def stop():
        raise SystemExit("called")

    torch.called_by_a_folder = stop
    try:
        found = Reranker(folder, backend=backend).score("cat", ["dog", "the cat sat"])
    finally:
        del torch.called_by_a_folder
    np.testing.assert_array_equal(found, expected)
