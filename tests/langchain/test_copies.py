"""Objects after construction: options set later, copies, pickles, LangChain's dumps, `repr`."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.load import dumpd, dumps, load
from langchain_core.runnables import ConfigurableField
from langchain_core.vectorstores import InMemoryVectorStore

import bge_runtime
from langchain_bge import BGECrossEncoder, BGEEmbeddings, BGERerank, BGERetriever
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


# Dictionaries of options, given again


def assigned(model: Any, **update: Any) -> Any:
    for name, value in update.items():
        setattr(model, name, value)
    return model


ways_to_change = pytest.mark.parametrize(
    "change",
    [
        assigned,
        lambda model, **update: model.model_copy(update=update),
        lambda model, **update: assigned(pickle.loads(pickle.dumps(model)), **update),
        lambda model, **update: copy.deepcopy(model).model_copy(update=update),
    ],
    ids=["assigned", "model_copy", "after a pickle", "after a copy"],
)


@ways_to_change
def test_a_dictionary_takes_the_place_of_the_one_before(change: Any) -> None:
    model = BGEEmbeddings(EMBEDDER, max_length=64, encode_kwargs={"batch_size": 32, "normalize_embeddings": True})
    changed = change(model, encode_kwargs={"batch_size": 8})
    assert (changed.batch_size, changed.normalize, changed.max_length) == (8, None, 64)
    assert changed.embedder.options() == BGEEmbeddings(EMBEDDER, max_length=64, batch_size=8).embedder.options()
    assert change(changed, encode_kwargs=None).batch_size is None


@ways_to_change
@pytest.mark.parametrize(
    ("given", "again", "field", "value"),
    [
        ({"model_kwargs": {"max_length": 32}}, {"model_kwargs": {"max_length": 16}}, "max_length", 16),
        ({"model_kwargs": {"torch_dtype": "float16"}}, {"model_kwargs": {}}, "precision", None),
        ({"model_kwargs": {"attn_implementation": "eager"}}, {"model_kwargs": {"device": "cpu"}}, "model_kwargs", {}),
        ({"model_kwargs": {"model_kwargs": {"dtype": "float16"}}}, {"precision": "float32"}, "precision", "float32"),
        ({"processor_kwargs": {"model_max_length": 32}}, {"processor_kwargs": {}}, "max_length", None),
        (
            {"model_kwargs": {"tokenizer_kwargs": {"model_max_length": 32}}},
            {"model_kwargs": {"tokenizer_kwargs": {"model_max_length": 16}}},
            "max_length",
            16,
        ),
    ],
)
@pytest.mark.parametrize("kind", [BGEEmbeddings, BGERerank])
def test_what_a_dictionary_had_set_goes_with_it(
    kind: Any, change: Any, given: dict[str, Any], again: dict[str, Any], field: str, value: Any
) -> None:
    assert getattr(change(kind(EMBEDDER, **given), **again), field) == value


@ways_to_change
def test_the_prompt_and_the_options_of_queries_are_given_again(change: Any, same: Same) -> None:
    model = BGEEmbeddings(EMBEDDER, query_encode_kwargs={"prompt": "q: ", "truncate_dim": 32})
    assert len(model.embed_query("panda")) == 32
    changed = change(model, query_encode_kwargs={"prompt": "Q: "})
    assert (changed.query_instruction, changed.query_encode_kwargs) == ("Q: ", {})
    assert same(changed.embed_query("panda"), BGEEmbeddings(EMBEDDER, query_instruction="Q: ").embed_query("panda"))
    assert change(changed, query_encode_kwargs={}).query_instruction is None


@ways_to_change
def test_an_option_of_its_own_goes_before_the_dictionary_that_had_it(change: Any) -> None:
    changed = change(BGEEmbeddings(EMBEDDER, encode_kwargs={"batch_size": 32}), batch_size=8)
    assert changed.batch_size == 8
    assert change(changed, encode_kwargs={"normalize_embeddings": True}).batch_size == 8


def test_a_wrong_dictionary_changes_nothing() -> None:
    model = BGEEmbeddings(EMBEDDER, encode_kwargs={"batch_size": 32})
    for wrong in ({"batchsize": 8}, {"batch_size": 0}, {"convert_to_tensor": True}, 3):
        with pytest.raises(bge_runtime.ConfigurationError, match=r"encode_kwargs|batch_size"):
            model.encode_kwargs = wrong
    with pytest.raises(bge_runtime.ConfigurationError, match=r"two values for 'batch_size'"):
        model.model_copy(update={"encode_kwargs": {"batch_size": 8}, "batch_size": 4})
    assert (model.batch_size, model.model_fields_set) == (32, {"model_name", "batch_size"})


@every_class
@pytest.mark.parametrize("change", [assigned, lambda model, **update: model.model_copy(update=update)])
def test_dumps_of_what_was_set_follow_changes(kind: Any, change: Any) -> None:
    model = kind(EMBEDDER, model_kwargs={"device": "cpu"})
    assert change(model, max_length=64).model_dump(exclude_unset=True).keys() == {
        "model_name",
        "model_kwargs",
        "device",
        "max_length",
    }
    assert change(model, model_kwargs={}).model_dump(exclude_unset=True).keys() - {"max_length"} == {
        "model_name",
        "model_kwargs",
    }
    for twin in (copy.copy(model), pickle.loads(pickle.dumps(model))):
        assert twin.model_fields_set == model.model_fields_set


def test_another_object_can_be_handed_to_a_copy() -> None:
    first, second = bge_runtime.Embedder(EMBEDDER, max_length=9), bge_runtime.Embedder("bge-m3", max_length=8)
    for model in (BGEEmbeddings(EMBEDDER, max_length=7), BGEEmbeddings(embedder=first)):
        other = model.model_copy(update={"embedder": second})
        assert other.embedder is second
        assert (other.model, other.max_length) == ("bge-m3", 8)


def test_a_configurable_reranker_scores_as_the_one_that_was_handed_in(same: Same) -> None:
    reranker = bge_runtime.Reranker(bge_runtime.Embedder(EMBEDDER, max_length=3, truncation="silent"))
    model = BGERerank(reranker=reranker, top_n=None)
    documents = [Document(page_content=text) for text in ("Paris the heart pumps blood", "Berlin the lungs")]
    given = {"query": "blood", "documents": documents}
    changing = model.configurable_fields(top_n=ConfigurableField(id="n"), max_length=ConfigurableField(id="length"))
    expected = [each.metadata["relevance_score"] for each in model.invoke(given)]
    for config, most in (({}, 2), ({"configurable": {"n": 1}}, 1), ({"configurable": {"n": 2}}, 2)):
        scores = [each.metadata["relevance_score"] for each in changing.invoke(given, config)]
        assert same(scores, expected[:most])
    with pytest.raises(bge_runtime.ConfigurationError, match="'max_length', which the reranker settles"):
        changing.invoke(given, {"configurable": {"length": 99}})


def test_a_configurable_retriever_keeps_its_parts() -> None:
    store = InMemoryVectorStore(BGEEmbeddings(EMBEDDER))
    store.add_texts(["The heart pumps blood.", "Lungs take up oxygen."])
    reranker = BGERerank(reranker=bge_runtime.Reranker(bge_runtime.Embedder(EMBEDDER, max_length=5)))
    retriever = BGERetriever(vectorstore=store, reranker=reranker)
    changing = retriever.configurable_fields(k=ConfigurableField(id="k"))
    (best,) = changing.invoke("blood", {"configurable": {"k": 1}})
    assert best.metadata == retriever.invoke("blood")[0].metadata
