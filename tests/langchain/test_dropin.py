"""A script written for HuggingFaceBgeEmbeddings changes its import, and each of its arguments has its effect."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bge_runtime
from langchain_bge import BGEEmbeddings
from tests.checkpoints.hub_cache import (
    BY_NAME,
    Checkpoint,
    checkpoint_files,
    commit_of,
    place_in_hub_cache,
    write_checkpoint,
)
from tests.contracts.samples import ENGLISH
from tests.langchain.conftest import EMBEDDER

OLD_IMPORT = "from langchain_community.embeddings import HuggingFaceBgeEmbeddings"
NEW_IMPORT = "from langchain_bge import BGEEmbeddings as HuggingFaceBgeEmbeddings"
# The example of the old class's documentation, and the assignment from FlagEmbedding's.
SCRIPT = f"""
{OLD_IMPORT}

model_name = "{EMBEDDER}"
model_kwargs = {{"device": "cpu"}}
encode_kwargs = {{"normalize_embeddings": True}}
model = HuggingFaceBgeEmbeddings(
    model_name=model_name,
    model_kwargs=model_kwargs,
    encode_kwargs=encode_kwargs,
    query_instruction="为这个句子生成表示以用于检索相关文章：",
)
model.query_instruction = "search_query: "
query = model.embed_query("panda")
documents = model.embed_documents(["panda", "cat"])
"""
LONG = "the dog slept in the garden " * 100
Same = Callable[[Any, Any], bool]


@pytest.fixture(autouse=True)
def seeded(hub_cache: Path) -> None:
    """Names of the hub load."""


@pytest.fixture
def plain_folder(tmp_path: Path) -> str:
    """A model that does not normalise by itself."""
    checkpoint = Checkpoint(name="somebody/plain", family="bert", hidden=64, seed=41, modules=False)
    return str(write_checkpoint(tmp_path / "plain", checkpoint))


def test_a_script_needs_another_import_and_nothing_else(same: Same) -> None:
    names: dict[str, Any] = {}
    exec(SCRIPT.replace(OLD_IMPORT, NEW_IMPORT), names)
    runtime = bge_runtime.Embedder(EMBEDDER, query_instruction="search_query: ")
    assert same([names["query"]], runtime.encode_queries(["panda"]))
    assert same(names["documents"], runtime.encode_documents(["panda", "cat"]))
    assert (names["model_kwargs"], names["encode_kwargs"]) == ({"device": "cpu"}, {"normalize_embeddings": True})


def test_model_name_names_the_model(same: Same) -> None:
    small, chinese = BGEEmbeddings(model_name=EMBEDDER), BGEEmbeddings(model_name="BAAI/bge-small-zh-v1.5")
    assert (len(small.embed_query("panda")), len(chinese.embed_query("panda"))) == (384, 512)
    assert same(small.embed_query("panda"), BGEEmbeddings(model=EMBEDDER).embed_query("panda"))


def test_query_instruction_goes_before_queries_only(same: Same) -> None:
    model = BGEEmbeddings(model_name=EMBEDDER, query_instruction="find: ")
    assert same(model.embed_query("panda"), model.embed_documents(["find: panda"])[0])


@pytest.mark.parametrize("name", ["embed_instruction", "document_instruction"])
def test_embed_instruction_goes_before_documents_only(same: Same, name: str) -> None:
    model, plain = BGEEmbeddings(model_name=EMBEDDER, **{name: "passage: "}), BGEEmbeddings(model_name=EMBEDDER)
    assert same(model.embed_documents(["panda"]), plain.embed_documents(["passage: panda"]))
    assert same(model.embed_query("panda"), plain.embed_query("panda"))


def test_show_progress_shows_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    BGEEmbeddings(model_name=EMBEDDER).embed_documents(["panda"])
    assert "text" not in capsys.readouterr().err
    BGEEmbeddings(model_name=EMBEDDER, show_progress=True).embed_documents(["panda"])
    assert EMBEDDER in capsys.readouterr().err


def test_cache_folder_is_where_weights_come_from(tmp_path: Path) -> None:
    name = "somebody/elsewhere"
    place_in_hub_cache(tmp_path, name, checkpoint_files(Checkpoint(name=name, family="bert", hidden=64, seed=42)))
    assert len(BGEEmbeddings(model_name=name, cache_folder=tmp_path).embed_query("panda")) == 64
    with pytest.raises(bge_runtime.HubUnreachableError):
        BGEEmbeddings(model_name=name).embed_query("panda")


# model_kwargs


def test_device_is_the_device() -> None:
    assert BGEEmbeddings(model_name=EMBEDDER, model_kwargs={"device": "cpu"}).embedder.device == "cpu"
    with pytest.raises(bge_runtime.ConfigurationError, match="cuda:77"):
        BGEEmbeddings(model_name=EMBEDDER, model_kwargs={"device": "cuda:77"}).embed_query("panda")


@pytest.mark.parametrize(
    "model_kwargs",
    [
        {"torch_dtype": "float16"},
        {"dtype": "float16"},
        {"model_kwargs": {"torch_dtype": "float16"}},
        {"model_kwargs": {"dtype": "float16"}},
    ],
)
def test_a_dtype_is_found_at_each_of_its_places(model_kwargs: dict[str, Any]) -> None:
    half = BGEEmbeddings(model_name=EMBEDDER, model_kwargs=model_kwargs)
    distance = np.abs(np.subtract(half.embed_query("panda"), BGEEmbeddings(model_name=EMBEDDER).embed_query("panda")))
    assert half.embedder.precision == "float16"
    assert 1e-5 < distance.max() < 0.05


def test_torchs_own_objects_are_taken() -> None:
    import torch

    model_kwargs = {"torch_dtype": torch.float16, "device": torch.device("cpu")}
    embedder = BGEEmbeddings(model_name=EMBEDDER, model_kwargs=model_kwargs).embedder
    assert (embedder.precision, embedder.device) == ("float16", "cpu")


def test_revision_names_the_commit(same: Same) -> None:
    pinned = BGEEmbeddings(model_name=EMBEDDER, model_kwargs={"revision": commit_of(EMBEDDER)})
    assert same(pinned.embed_query("panda"), BGEEmbeddings(model_name=EMBEDDER).embed_query("panda"))
    with pytest.raises(bge_runtime.HubUnreachableError):
        BGEEmbeddings(model_name=EMBEDDER, model_kwargs={"revision": "experiment"}).embed_query("panda")


def test_local_files_only_keeps_off_the_network() -> None:
    model = BGEEmbeddings(model_name="somebody/absent", model_kwargs={"local_files_only": True})
    with pytest.raises(bge_runtime.HubUnreachableError, match="local_files_only=True"):
        model.embed_query("panda")


def test_truncate_dim_shortens_vectors() -> None:
    vector = BGEEmbeddings(model_name=EMBEDDER, model_kwargs={"truncate_dim": 32}).embed_query("panda")
    assert len(vector) == 32
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", ["tokenizer_kwargs", "processor_kwargs"])
def test_the_tokenizers_limit_cuts(same: Same, name: str) -> None:
    short = BGEEmbeddings(model_name=EMBEDDER, truncation="silent", model_kwargs={name: {"model_max_length": 16}})
    limited = BGEEmbeddings(model_name=EMBEDDER, truncation="silent", max_length=16)
    assert same(short.embed_documents([LONG]), limited.embed_documents([LONG]))
    assert not same(short.embed_documents([LONG]), BGEEmbeddings(model_name=EMBEDDER).embed_documents([LONG]))


def test_config_kwargs_reach_the_configuration(same: Same) -> None:
    changed = BGEEmbeddings(model_name=EMBEDDER, model_kwargs={"config_kwargs": {"hidden_act": "relu"}})
    assert not same(changed.embed_query("panda"), BGEEmbeddings(model_name=EMBEDDER).embed_query("panda"))


def test_loader_arguments_reach_the_loader() -> None:
    wrong = BGEEmbeddings(model_name=EMBEDDER, model_kwargs={"attn_implementation": "no-such-attention"})
    with pytest.raises(bge_runtime.BGEError, match="no-such-attention"):
        wrong.embed_query("panda")
    nested = {"model_kwargs": {"attn_implementation": "eager"}}
    assert BGEEmbeddings(model_name=EMBEDDER, model_kwargs=nested).embedder.options()["model_kwargs"] == {
        "attn_implementation": "eager"
    }


def test_trust_remote_code_and_backend_are_passed_on() -> None:
    model = BGEEmbeddings(model_name=EMBEDDER, model_kwargs={"trust_remote_code": True, "backend": "torch"})
    options = model.embedder.options()
    assert (options["trust_remote_code"], options["backend"]) == (True, "torch")


@pytest.mark.parametrize("name", ["token", "use_auth_token"])
def test_a_token_is_used_and_never_shown(name: str) -> None:
    model = BGEEmbeddings(model_name=EMBEDDER, model_kwargs={name: "hf_secret"})
    assert model.embedder.source.token == "hf_secret"
    assert "hf_secret" not in f"{model!r} {model} {model.model_dump_json()}"


# encode_kwargs


def test_normalize_embeddings_gives_length_one(plain_folder: str) -> None:
    lengths = [
        np.linalg.norm(BGEEmbeddings(model_name=plain_folder, encode_kwargs=encode_kwargs).embed_documents(["panda"]))
        for encode_kwargs in ({}, {"normalize_embeddings": False}, {"normalize_embeddings": True})
    ]
    assert lengths[0] == lengths[1] != pytest.approx(1, abs=0.05)
    assert lengths[2] == pytest.approx(1, abs=1e-5)


def test_normalize_embeddings_false_leaves_it_to_the_model() -> None:
    vector = BGEEmbeddings(model_name=EMBEDDER, encode_kwargs={"normalize_embeddings": False}).embed_query("panda")
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


def test_batch_size_limits_a_forward_pass() -> None:
    model = BGEEmbeddings(model_name=EMBEDDER, encode_kwargs={"batch_size": 2})
    model.embed_query("warm")
    before = bge_runtime.stats()["batches"]
    model.embed_documents(["one", "two", "three", "four", "five", "six"])
    assert bge_runtime.stats()["batches"] - before == 3


def test_show_progress_bar_shows_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    BGEEmbeddings(model_name=EMBEDDER, encode_kwargs={"show_progress_bar": True}).embed_query("panda")
    assert EMBEDDER in capsys.readouterr().err


def test_query_encode_kwargs_lie_over_encode_kwargs(plain_folder: str) -> None:
    model = BGEEmbeddings(
        model_name=plain_folder,
        encode_kwargs={"normalize_embeddings": True, "truncate_dim": 48},
        query_encode_kwargs={"truncate_dim": 32},
    )
    query, (document,) = model.embed_query("panda"), model.embed_documents(["panda"])
    assert (len(query), len(document)) == (32, 48)
    assert [np.linalg.norm(query), np.linalg.norm(document)] == pytest.approx([1, 1], abs=1e-5)


def test_a_query_prompt_is_the_query_instruction(same: Same) -> None:
    model = BGEEmbeddings(model_name=EMBEDDER, query_encode_kwargs={"prompt": "find: "})
    assert same(model.embed_query("panda"), model.embed_documents(["find: panda"])[0])


def test_values_that_ask_for_what_happens_anyway_are_taken() -> None:
    neutral = {"precision": "float32", "convert_to_numpy": True, "convert_to_tensor": False, "device": None}
    model = BGEEmbeddings(model_name=EMBEDDER, encode_kwargs=neutral, multi_process=False, client=None)
    assert model.embedder.query_instruction == ENGLISH
    assert BY_NAME[EMBEDDER].hidden == len(model.embed_query("panda"))
