"""The adapters' arguments follow one set of rules, in one wording, whatever the framework."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import inspect
import json
import pickle
import sys
import typing
from pathlib import Path
from typing import Any

import pytest

import langchain_bge
import llamaindex_bge
from bge_runtime import (
    ConfigurationError,
    Embedder,
    ModelNotFoundError,
    Reranker,
    UnknownArgumentError,
    VectorCache,
    get_spec,
    loaded_models,
)
from bge_runtime.fields import EmbedderFields, LoadingFields, RerankerFields
from bge_runtime.loading.options import LoadingOptions

EMBEDDERS = [langchain_bge.BGEEmbeddings, llamaindex_bge.BGEEmbedding]
RERANKERS = [langchain_bge.BGERerank, langchain_bge.BGECrossEncoder, llamaindex_bge.BGERerank]
SPARSE = [langchain_bge.BGESparseEmbeddings, llamaindex_bge.BGESparseEmbedding]
every_class = pytest.mark.parametrize("kind", EMBEDDERS + RERANKERS + SPARSE, ids=lambda kind: kind.__module__)


class Dtype:
    """Shows itself as torch's do."""

    def __str__(self) -> str:
        return "torch.float16"


def runtime_of(kind: Any) -> Embedder | Reranker:
    return Reranker() if kind.injected == "reranker" else Embedder("BAAI/bge-m3")


@every_class
def test_two_values_for_an_option_are_refused_with_both_places(kind: Any) -> None:
    wanted = f"{kind.__name__} got two values for 'precision': precision='float32' and dtype='float16' contradict"
    with pytest.raises(ConfigurationError, match=wanted):
        kind(precision="float32", dtype="float16")


@every_class
def test_one_value_in_two_spellings_and_none_contradict_nothing(kind: Any) -> None:
    model = kind(precision="float16", dtype=Dtype(), torch_dtype=None, cache_folder=Path("somewhere"))
    assert (model.precision, model.cache_folder) == ("float16", "somewhere")


@every_class
def test_an_unknown_argument_is_answered_with_the_nearest(kind: Any) -> None:
    with pytest.raises(UnknownArgumentError, match=f"{kind.__name__} has no argument 'devise'.*'device'.*Valid"):
        kind(devise="cpu")


@every_class
@pytest.mark.parametrize("options", [{"device": "cpu"}, {"token": "hf_secret"}, {"model": "BAAI/bge-m3"}])
def test_what_an_injected_object_settles_is_refused_beside_it(kind: Any, options: dict[str, Any]) -> None:
    (name,) = options
    shown = name if name in kind.model_fields else "model_name"
    wanted = f"{kind.__name__} got {kind.injected}= together with '{shown}', which the {kind.injected} settles"
    with pytest.raises(ConfigurationError, match=wanted) as caught:
        kind(**{kind.injected: runtime_of(kind)}, **options)
    assert "hf_secret" not in str(caught.value)


@every_class
def test_none_beside_an_injected_object_says_nothing(kind: Any) -> None:
    runtime = runtime_of(kind)
    assert getattr(kind(**{kind.injected: runtime}, device=None), kind.injected) is runtime


@every_class
def test_something_else_than_the_runtimes_object_is_refused(kind: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"{kind.injected}='small'. Pass a bge_runtime\.\w+, or name the"):
        kind(**{kind.injected: "small"})


@pytest.mark.parametrize("kind", [kind for kind in EMBEDDERS + RERANKERS if kind.retired])
def test_retired_arguments_pass_at_the_defaults_they_had(kind: Any) -> None:
    for name, advice in kind.retired.items():
        kind(**{name: None}), kind(**{name: False}), kind(**{name: {}})
        with pytest.raises(ConfigurationError) as caught:
            kind(**{name: "on"})
        assert str(caught.value) == f"{kind.__name__} does not take {name}='on'. {advice}"


@pytest.mark.parametrize(
    ("kinds", "group"),
    [(EMBEDDERS + RERANKERS + SPARSE, LoadingFields), (EMBEDDERS, EmbedderFields), (RERANKERS, RerankerFields)],
)
def test_shared_fields_are_the_same_everywhere(kinds: list[Any], group: Any) -> None:
    own = {"token", "model_kwargs"}  # LangChain's: a secret, and the nested dictionary of its older classes
    for name, field in group.model_fields.items():
        told = [(kind.model_fields[name].default, kind.model_fields[name].description) for kind in kinds]
        assert name in own or set(map(repr, told)) == {repr((field.default, field.description))}


FLAGS = ["show_progress", "local_files_only", "trust_remote_code", "normalize", "legacy", "keep_retrieval_score"]


@every_class
@pytest.mark.parametrize("value", ["False", "no", "0", 0, 1, b"x"], ids=repr)
def test_what_is_no_boolean_is_none_in_any_adapter(kind: Any, value: Any) -> None:
    flags = [name for name in FLAGS if name in kind.model_fields]
    assert len(flags) >= 3
    for name in flags:
        with pytest.raises(ConfigurationError, match=name):
            kind(**{name: value})


@every_class
@pytest.mark.parametrize("option", ["revision", "token", "cache_folder", "keep_alive_s", "model_kwargs", "devices"])
def test_options_of_another_kind_are_refused_by_any_adapter(kind: Any, option: str) -> None:
    for value in (object(), "5" if option in ("keep_alive_s", "model_kwargs", "devices") else 5):
        with pytest.raises(ConfigurationError):
            kind(**{option: value})


@every_class
@pytest.mark.parametrize("name", ["/data/models/bge-m3", "./bge-m3", "~/bge-m3", "a/b/bge-m3", "D:/models/bge-m3"])
def test_what_looks_like_a_path_is_one_in_any_adapter(kind: Any, name: str) -> None:
    with pytest.raises(ModelNotFoundError, match="does not exist"):
        kind(model=name)


@every_class
@pytest.mark.parametrize("options", [{"backend": "torch", "precision": "int8"}, {"device": "cuda:99"}], ids=repr)
def test_what_cannot_run_is_found_when_the_adapters_object_is_made(kind: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        kind(**options)


@pytest.mark.parametrize("kind", EMBEDDERS, ids=lambda kind: kind.__module__)
@pytest.mark.parametrize("name", ["document_instruction", "embed_instruction", "text_instruction"])
def test_the_document_instruction_is_taken_under_every_name_it_has(kind: Any, name: str) -> None:
    model = kind(**{name: "passage: "})
    assert model.embedder.document_instruction == "passage: "
    assert pickle.loads(pickle.dumps(model)).embedder.document_instruction == "passage: "
    own = "embed_instruction" if kind is langchain_bge.BGEEmbeddings else "text_instruction"
    assert getattr(model, own) == "passage: "
    if name != own:
        with pytest.raises(ConfigurationError, match=f"two values for '{own}'"):
            kind(**{name: "passage: ", own: "text: "})


@pytest.mark.parametrize("name", ["document_instruction", "embed_instruction", "text_instruction"])
def test_a_set_document_instruction_goes_where_the_adapter_lets_it(name: str) -> None:
    model = langchain_bge.BGEEmbeddings()
    setattr(model, name, "passage: ")
    assert model.embedder.document_instruction == "passage: "
    with pytest.raises(ConfigurationError, match="cannot change after construction"):
        setattr(llamaindex_bge.BGEEmbedding(), name, "passage: ")


def test_every_option_of_loading_is_a_field() -> None:
    running = {"max_length", "truncation", "batch_size", "batch_tokens", "show_progress"}
    assert set(LoadingFields.model_fields) == set(LoadingOptions.__annotations__) | running


# Built again, changed, closed: what every adapter's object can


def fields_of(model: Any) -> dict[str, Any]:
    """What LangChain builds an object from when some of its fields are configurable."""
    return {name: value for name, value in model.__dict__.items() if name in type(model).model_fields}


def runtime_in(model: Any) -> Any:
    return getattr(model, model.injected)


RUNTIMES = {
    "options": lambda kind: {"model": "BAAI/bge-m3", "max_length": 64, "processor_kwargs": {"use_fast": True}},
    "an object": lambda kind: {kind.injected: runtime_of(kind)},
    "an object with options": lambda kind: {
        kind.injected: Reranker("BAAI/bge-m3", mode="hybrid", weights=[0.2, 0.4, 0.4], devices=["cpu"])
        if kind.injected == "reranker"
        else Embedder("BAAI/bge-m3", max_length=7, devices=["cpu"], token="hf_secret", vector_cache=VectorCache())
    },
    "a reranker of an object": lambda kind: {
        kind.injected: Reranker(Embedder("BAAI/bge-m3", max_length=7))
        if kind.injected == "reranker"
        else Embedder(get_spec("BAAI/bge-m3"))
    },
}


@every_class
@pytest.mark.parametrize("options", RUNTIMES.values(), ids=RUNTIMES)
def test_an_object_is_built_again_from_its_fields(kind: Any, options: Any) -> None:
    model = kind(**options(kind))
    again = kind(**fields_of(model))
    assert again.model_dump() == model.model_dump()
    assert fields_of(again).items() >= {"max_length": model.max_length, "handed_in": model.handed_in}.items()
    assert runtime_in(again).max_length == runtime_in(model).max_length
    if model.handed_in is not None:
        assert runtime_in(again) is runtime_in(model)


@every_class
@pytest.mark.parametrize("options", [{"max_length": 99}, {"batch_size": 3}, {"truncation": "error"}])
@pytest.mark.parametrize("runtime", ["an object", "a reranker of an object"])
def test_what_an_object_settles_cannot_be_changed_on_the_way(kind: Any, options: dict[str, Any], runtime: str) -> None:
    model = kind(**RUNTIMES[runtime](kind))
    (name,) = options
    with pytest.raises(ConfigurationError, match=f"together with '{name}', which the {kind.injected} settles"):
        kind(**fields_of(model) | options)


@pytest.mark.parametrize("kind", [kind for kind in EMBEDDERS + RERANKERS if kind.__module__.startswith("langchain")])
def test_a_spec_that_was_handed_in_survives_and_belongs_to_its_name(kind: Any) -> None:
    known = get_spec("BAAI/bge-reranker-base" if kind.injected == "reranker" else "BAAI/bge-small-en-v1.5")
    spec = dataclasses.replace(known, id="acme/ours")
    again = kind(**fields_of(kind(model=spec)))
    assert (again.model, runtime_in(again).known_spec) == ("acme/ours", spec)
    other = kind(**fields_of(again) | {"model_name": known.id})
    assert (other.model, runtime_in(other).known_spec) == (known.id, known)
    assert other.handed_in is None


@every_class
def test_no_dump_or_representation_shows_what_was_handed_in(kind: Any) -> None:
    model = kind(**{kind.injected: runtime_of(kind)})
    assert "handed_in" not in repr(model)
    assert "handed_in" not in model.model_dump()
    with pytest.raises(UnknownArgumentError) as caught:
        kind(handed_inn=1)
    assert "handed_in," not in str(caught.value)


NESTED_OPTIONS = {
    "model_kwargs": {"model_kwargs": {"attn_implementation": "eager"}},
    "processor_kwargs": {"use_fast": True, "inner": {"deep": [1]}},
    "config_kwargs": {"inner": {"deep": [1]}},
}
DUPLICATES = {
    "itself": lambda model: model,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "model_copy": lambda model: model.model_copy(),
    "deep model_copy": lambda model: model.model_copy(deep=True),
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "fields": lambda model: type(model)(**fields_of(model)),
}
CHANGES = [
    lambda value: value.__setitem__("x", 1),
    lambda value: value.update(x=1),
    lambda value: value.pop("x"),
    lambda value: value.setdefault("x", 1),
    lambda value: value.clear(),
    lambda value: value.__ior__({"x": 1}),
    lambda value: value.__delitem__("x"),
    lambda value: value.popitem(),
]


@every_class
@pytest.mark.parametrize("duplicate", DUPLICATES.values(), ids=DUPLICATES)
def test_an_option_refuses_changes_in_place(kind: Any, duplicate: Any) -> None:
    model = duplicate(kind(**NESTED_OPTIONS, devices=["cpu"]))
    before = runtime_in(model).options()
    for name in NESTED_OPTIONS:
        for change in CHANGES:
            with pytest.raises(ConfigurationError, match="cannot be changed in place"):
                change(getattr(model, name))
    for change in (list.append, list.remove, list.__iadd__):
        with pytest.raises(ConfigurationError, match="cannot be changed in place"):
            getattr(model.devices, change.__name__)(["cpu"])
    with pytest.raises(ConfigurationError):
        model.config_kwargs["inner"]["deep"].append(2)
    assert runtime_in(model).options() == before
    assert model.config_kwargs == NESTED_OPTIONS["config_kwargs"]
    assert json.loads(model.model_dump_json()) == json.loads(json.dumps(model.model_dump()))


@every_class
def test_the_runtime_and_the_caller_keep_dictionaries_of_their_own(kind: Any) -> None:
    given = {"inner": {"deep": [1]}}
    model = kind(config_kwargs=given)
    given["inner"]["deep"].append(2)
    assert model.config_kwargs == {"inner": {"deep": [1]}}
    held = runtime_in(model).options()["config_kwargs"]
    held["inner"]["deep"].append(3)  # libraries below change what they get
    assert model.config_kwargs == {"inner": {"deep": [1]}}


@every_class
def test_both_names_of_the_model_are_attributes(kind: Any) -> None:
    model = kind("BAAI/bge-m3")
    assert model.model == model.model_name == "BAAI/bge-m3"


@every_class
def test_a_representation_shows_what_differs_from_the_defaults(kind: Any) -> None:
    plain, other = kind(), kind("BAAI/bge-m3", batch_size=7, devices=["cpu"], token="hf_secret")
    assert len(repr(plain)) < 250
    assert "batch_size=7" in repr(other)
    assert "devices=['cpu']" in repr(other)
    assert "hf_secret" not in repr(other)
    assert "batch_size" not in repr(plain)


class Counting:
    """Stands in for a runtime object and notes what is asked of it."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def warm_up(self) -> None:
        self.calls.append("warm_up")

    def close(self) -> None:
        self.calls.append("close")

    async def awarm_up(self) -> None:
        self.calls.append("awarm_up")

    async def aclose(self) -> None:
        self.calls.append("aclose")


@every_class
def test_every_object_is_warmed_up_and_closed_with_its_runtime_object(kind: Any) -> None:
    model, runtime = kind(), Counting()
    model.__pydantic_private__ |= {"_runtime": runtime}
    if "_query_embedder" in model.__pydantic_private__:
        model.__pydantic_private__ |= {"_query_embedder": runtime}

    async def use() -> None:
        async with model as same:
            assert same is model
            assert await model.awarm_up() is model

    with model as same:
        assert same is model
        assert model.warm_up() is model
    asyncio.run(use())
    assert runtime.calls == ["warm_up", "close", "awarm_up", "aclose"]


@every_class
def test_closing_leaves_what_was_handed_in_open(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[Any] = []
    monkeypatch.setattr(Embedder, "close", lambda self: closed.append(self))
    monkeypatch.setattr(Reranker, "close", lambda self: closed.append(self))
    kind(**{kind.injected: runtime_of(kind)}).close()
    assert closed == []
    kind().close()
    assert len(closed) == 1


@pytest.mark.parametrize("native_async", [False, True], ids=["sync", "async"])
@every_class
def test_weights_are_there_after_warming_up_and_gone_after_closing(
    kind: Any, native_async: bool, hub_cache: Path, fresh_store: None
) -> None:
    name = "BAAI/bge-m3" if kind in SPARSE else "BAAI/bge-small-en-v1.5"
    # Documents and queries of one object may go through two runtime objects, which hold the weights each.
    options = {"query_encode_kwargs": {"batch_size": 2}} if kind is langchain_bge.BGEEmbeddings else {}
    model = kind(name, **options)

    async def use() -> int:
        async with model:
            await model.awarm_up()
            return len(loaded_models())

    if native_async:
        assert asyncio.run(use()) == 1
    else:
        with model:
            assert len(model.warm_up() and loaded_models()) == 1
    assert loaded_models() == []


async def test_runtime_objects_have_async_twins_of_warming_up_and_closing(hub_cache: Path, fresh_store: None) -> None:
    for model in (Embedder("BAAI/bge-small-en-v1.5"), Reranker("BAAI/bge-reranker-base"), Reranker("bge-m3")):
        async with model as same:
            assert same is model
            assert await model.awarm_up() is model
            assert len(loaded_models()) == 1
        assert loaded_models() == []


@pytest.mark.parametrize("kind", [kind for kind in EMBEDDERS + RERANKERS + SPARSE if "llamaindex" in kind.__module__])
def test_type_checkers_know_every_argument(kind: Any) -> None:
    known = set(typing.get_type_hints(sys.modules[kind.__module__].Arguments))
    first, injected = list(inspect.signature(kind.__init__).parameters)[1:3]
    assert injected == kind.injected
    inherited = {"embed_batch_size", "callback_manager", "num_workers", "rate_limiter", "embeddings_cache"}
    accepted = {*kind.model_fields, *kind.renamed} - {first, "handed_in"}
    assert known == accepted
    assert inherited & set(kind.model_fields) == inherited & known


@pytest.mark.parametrize("name", ["text_instruction", "embed_instruction", "document_instruction"])
@pytest.mark.parametrize("kind", EMBEDDERS)
def test_the_instruction_of_documents_has_three_names(kind: Any, name: str) -> None:
    assert kind(**{name: "read: "}).embedder.document_instruction == "read: "
    with pytest.raises(ConfigurationError, match=r"got two values for '(embed|text)_instruction'"):
        kind(embed_instruction="other: ", document_instruction="read: ")
