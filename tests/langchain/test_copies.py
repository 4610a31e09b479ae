"""Objects after construction: options set later, copies, pickles, LangChain's dumps, `repr`."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain_core.load import dumpd, dumps, load

import bge_runtime
from langchain_bge import BGECrossEncoder, BGEEmbeddings, BGERerank
from tests.contracts.samples import ENGLISH
from tests.langchain.conftest import EMBEDDER

Same = Callable[[Any, Any], bool]
every_class = pytest.mark.parametrize("kind", [BGEEmbeddings, BGERerank, BGECrossEncoder])


@pytest.fixture(autouse=True)
def seeded(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of the hub load, and no token is around."""
    monkeypatch.delenv("HF_TOKEN", raising=False)


# Changing, copying, pickling


def test_repr_shows_the_instruction_in_force() -> None:
    assert f"query_instruction={ENGLISH!r}" in repr(BGEEmbeddings(EMBEDDER))
    assert "query_instruction=''" in repr(BGEEmbeddings(EMBEDDER, query_instruction=""))
    assert "Represent this document for retrieval: " in repr(BGEEmbeddings("llm-embedder"))
    assert repr(BGEEmbeddings("somebody/unknown")) == "BGEEmbeddings(model_name='somebody/unknown')"


def test_an_option_set_later_holds_from_the_next_call_on(same: Same) -> None:
    model = BGEEmbeddings(EMBEDDER)
    model.query_instruction = "find: "
    model.truncate_dim = 32
    assert same(model.embed_query("panda"), model.embed_documents(["find: panda"])[0])
    assert len(model.embed_query("panda")) == 32
    model.model = "BAAI/bge-small-zh-v1.5"
    assert model.model_name == "BAAI/bge-small-zh-v1.5"
    assert model.embedder.model == "BAAI/bge-small-zh-v1.5"


def test_a_wrong_option_set_later_changes_nothing() -> None:
    model = BGEEmbeddings(EMBEDDER, batch_size=8)
    for name, value in (("batch_size", 0), ("device", "gpu0"), ("query_instruction", 7)):
        with pytest.raises(bge_runtime.ConfigurationError, match=name):
            setattr(model, name, value)
    assert repr(model) == repr(BGEEmbeddings(EMBEDDER, batch_size=8))


def test_a_copy_may_change_options_and_is_checked() -> None:
    model = BGEEmbeddings(EMBEDDER, batch_size=8)
    other = model.model_copy(update={"model": "BAAI/bge-small-zh-v1.5", "device": "cpu"})
    assert (model.model, other.model, other.batch_size) == (EMBEDDER, "BAAI/bge-small-zh-v1.5", 8)
    with pytest.raises(bge_runtime.UnknownArgumentError, match="batch_size"):
        model.model_copy(update={"batchsize": 8})


@every_class
@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, lambda model: model.model_copy(), lambda model: pickle.loads(pickle.dumps(model))],
    ids=["copy", "deepcopy", "model_copy", "pickle"],
)
def test_a_copy_has_the_same_options(kind: Any, duplicate: Callable[[Any], Any]) -> None:
    model = kind(EMBEDDER, max_length=64, model_kwargs={"model_kwargs": {"attn_implementation": "eager"}})
    other = duplicate(model)
    assert other is not model
    assert other.model_dump() == model.model_dump()
    assert getattr(other, kind.injected).options() == getattr(model, kind.injected).options()


@every_class
def test_a_token_is_kept_by_copies_and_left_out_of_pickles_and_dumps(kind: Any) -> None:
    model = kind(token="hf_secret")
    assert copy.deepcopy(model).token == model.token
    assert pickle.loads(pickle.dumps(model)).token is None
    for shown in (pickle.dumps(model).decode("latin1"), dumps(model), repr(model), str(model.model_dump())):
        assert "hf_secret" not in shown


def test_a_spec_survives_copies_and_pickles() -> None:
    spec = bge_runtime.ModelSpec(
        id="somebody/own", kind="embedder", architecture="bert", parameters=1, dimension=64, max_length=128
    )
    for model in (copy.copy(BGEEmbeddings(spec)), pickle.loads(pickle.dumps(BGEEmbeddings(spec)))):
        assert (model.model, model.embedder.dimension) == ("somebody/own", 64)


# LangChain's serialisation


@every_class
def test_a_dump_loads_to_the_same_options(kind: Any) -> None:
    model = kind(EMBEDDER, max_length=64, normalize=False, model_kwargs={"torch_dtype": "bfloat16"})
    dumped = dumpd(model)
    assert dumped["id"] == ["langchain_bge", kind.__name__]
    assert _loaded(dumped, kind).model_dump() == model.model_dump()


def test_options_at_their_empty_values_survive_a_dump() -> None:
    assert _loaded(dumpd(BGEEmbeddings(query_instruction="")), BGEEmbeddings).query_instruction == ""
    assert _loaded(dumpd(BGERerank(top_n=None)), BGERerank).top_n is None


def test_a_dump_names_the_tokens_place_and_not_the_token() -> None:
    dumped = dumpd(BGEEmbeddings(token="hf_secret"))
    assert dumped["kwargs"]["token"] == {"lc": 1, "type": "secret", "id": ["HF_TOKEN"]}
    assert _loaded(dumped, BGEEmbeddings).token is None
    assert _loaded(dumped, BGEEmbeddings, {"HF_TOKEN": "hf_other"}).token.get_secret_value() == "hf_other"


@every_class
def test_a_json_schema_describes_the_options(kind: Any) -> None:
    properties = kind.model_json_schema()["properties"]
    assert {"model_name", "device", "normalize"} <= properties.keys()
    assert [name for name, row in properties.items() if "description" not in row and name != "name"] == []


def _loaded(dumped: Any, kind: Any, secrets: dict[str, str] | None = None) -> Any:
    with warnings.catch_warnings(action="ignore"):  # langchain-core calls load() beta
        return load(dumped, secrets_map=secrets, allowed_objects=[kind], valid_namespaces=["langchain_bge"])
