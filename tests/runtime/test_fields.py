"""The adapters' arguments follow one set of rules, in one wording, whatever the framework."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

import langchain_bge
import llamaindex_bge
from bge_runtime import ConfigurationError, Embedder, ModelNotFoundError, Reranker, UnknownArgumentError
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
