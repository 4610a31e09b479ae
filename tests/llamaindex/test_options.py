"""Arguments of the two classes: names, errors, what is fixed, copies and pickles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import CallbackManager
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.storage.kvstore import SimpleKVStore

import bge_runtime
from bge_runtime import (
    BGEError,
    ConfigurationError,
    Embedder,
    ModelNotFoundError,
    Reranker,
    UnknownArgumentError,
    UnsupportedModelError,
)
from llamaindex_bge import BGEEmbedding, BGERerank
from tests.llamaindex.conftest import EMBEDDER, EN, RERANKER, Callbacks

CLASSES = pytest.mark.parametrize("kind", [BGEEmbedding, BGERerank])


@pytest.mark.parametrize(("kind", "base"), [(BGEEmbedding, BaseEmbedding), (BGERerank, BaseNodePostprocessor)])
def test_class_is_what_the_framework_expects(kind: type, base: type) -> None:
    assert base in kind.__mro__
    assert kind.class_name() == kind.__name__


@CLASSES
def test_unknown_argument_names_the_valid_ones(kind: Any) -> None:
    with pytest.raises(UnknownArgumentError, match=r"no argument 'devise'.*Did you mean 'device'.*cache_folder"):
        kind(devise="cpu")


@CLASSES
def test_unknown_argument_is_a_type_error_and_a_value_error(kind: Any) -> None:
    with pytest.raises(TypeError):
        kind(devise="cpu")
    with pytest.raises(ValueError, match="devise"):
        kind(devise="cpu")


@CLASSES
@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("max_length", 0),
        ("max_length", "many"),
        ("batch_size", -1),
        ("device", "gpu7"),
        ("precision", "float8"),
        ("truncation", "loudly"),
        ("backend", "abacus"),
        ("normalize", "perhaps"),
        ("model_kwargs", 3),
        ("max_length", 100_000),
    ],
)
def test_wrong_value_is_a_configuration_error_at_construction(kind: Any, argument: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=argument):
        kind(**{argument: value})


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("embed_batch_size", 0),
        ("embed_batch_size", 5000),
        ("truncate_dim", 0),
        ("truncate_dim", 4096),
        ("query_instruction", 5),
        ("task", "poetry"),
        ("embeddings_cache", {}),
    ],
)
def test_wrong_embedding_value_is_a_configuration_error(argument: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=argument):
        BGEEmbedding(**{argument: value})


@pytest.mark.parametrize("value", [0, -3, "two"])
def test_wrong_top_n_is_a_configuration_error(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="top_n"):
        BGERerank(top_n=value)


@CLASSES
def test_misspelt_model_suggests_the_nearest_name(kind: Any) -> None:
    with pytest.raises(ModelNotFoundError, match=r"BAAI/bge-small-en-v1\.5"):
        kind(model="bge-smal-en-v1.5")


@CLASSES
def test_missing_folder_is_refused_at_construction(kind: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="does not exist"):
        kind(model=str(tmp_path / "nothing"))


def test_model_of_the_wrong_kind_is_refused_at_construction() -> None:
    with pytest.raises(ConfigurationError, match="Reranker"):
        BGEEmbedding(model=RERANKER)


@pytest.mark.parametrize("kind", [BGEEmbedding, BGERerank])
def test_model_that_cannot_run_is_refused_at_construction(kind: Any) -> None:
    with pytest.raises(UnsupportedModelError, match="pre-training backbone"):
        kind(model="BAAI/bge-m3-retromae")


@CLASSES
def test_constructing_loads_nothing(kind: Any, fresh_store: None) -> None:
    kind()
    assert bge_runtime.loaded_models() == []


def test_model_is_another_name_of_model_name() -> None:
    assert BGEEmbedding(model=EMBEDDER).model_name == BGEEmbedding(EMBEDDER).model_name == EMBEDDER
    assert BGERerank(model_name=RERANKER).model == BGERerank(RERANKER).model == RERANKER


def test_two_different_models_in_one_call_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="two values for 'model_name'"):
        BGEEmbedding(EMBEDDER, model="BAAI/bge-m3")


def test_path_objects_are_names(minilm: Path) -> None:
    embedding = BGEEmbedding(minilm, cache_folder=Path("somewhere"))
    assert (embedding.model_name, embedding.cache_folder) == (str(minilm), "somewhere")


def test_torch_objects_are_names() -> None:
    import torch

    embedding = BGEEmbedding(device=torch.device("cpu"), dtype=torch.bfloat16)
    assert (embedding.embedder.device, embedding.embedder.precision) == ("cpu", "bfloat16")


def test_arguments_of_the_hugging_face_class_are_understood() -> None:
    embedding = BGEEmbedding(
        model_name=EMBEDDER,
        max_length=128,
        query_instruction="q: ",
        text_instruction="d: ",
        normalize=False,
        embed_batch_size=10,
        cache_folder=None,
        trust_remote_code=False,
        device="cpu",
        callback_manager=None,
        parallel_process=False,
        target_devices=None,
        num_workers=2,
        show_progress_bar=True,
        model_kwargs={"attn_implementation": "eager"},
        tokenizer_kwargs={"use_fast": True},
    )
    options = embedding.embedder.options()
    assert (options["query_instruction"], options["document_instruction"]) == ("q: ", "d: ")
    assert (options["max_length"], options["normalize"], options["show_progress"]) == (128, False, True)
    assert options["model_kwargs"] == {"attn_implementation": "eager"}
    assert options["processor_kwargs"] == {"use_fast": True}


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("pooling", "mean"),
        ("tokenizer_name", "bert-base-uncased"),
        ("parallel_process", True),
    ],
)
def test_retired_argument_says_what_to_do(argument: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"{argument}=.*(leave it out|Models pool|device=)"):
        BGEEmbedding(**{argument: value})


def test_the_older_names_of_devices_and_precision_are_taken() -> None:
    embedding = BGEEmbedding(target_devices=["cpu", "cpu"], torch_dtype="bfloat16")
    assert (embedding.devices, embedding.precision) == (["cpu", "cpu"], "bfloat16")


def test_int8_is_part_of_what_changes_vectors_and_float_width_is_not() -> None:
    plain = BGEEmbedding().to_dict()
    assert BGEEmbedding(precision="bfloat16").to_dict() == plain
    assert BGEEmbedding(precision="int8").to_dict() == {**plain, "precision": "int8"}
    assert BGEEmbedding.from_dict({**plain, "precision": "int8"}).precision == "int8"


def test_retired_reranker_argument_says_what_to_do() -> None:
    with pytest.raises(ConfigurationError, match="precision='float16'"):
        BGERerank(use_fp16=True)


def test_all_base_fields_are_accepted(callbacks: Callbacks) -> None:
    manager, store, limiter = callbacks.manager(), SimpleKVStore(), object()
    embedding = BGEEmbedding(
        callback_manager=manager, num_workers=3, embeddings_cache=store, rate_limiter=limiter, embed_batch_size=7
    )
    assert embedding.callback_manager is manager
    assert embedding.embeddings_cache is store
    assert embedding.rate_limiter is limiter
    assert (embedding.num_workers, embedding.embed_batch_size) == (3, 7)


def test_instruction_in_force_is_visible_without_loading(fresh_store: None) -> None:
    embedding = BGEEmbedding(EMBEDDER)
    assert embedding.query_instruction == EN
    assert embedding.text_instruction == ""
    assert EN in repr(embedding)
    assert bge_runtime.loaded_models() == []


def test_model_outside_the_table_keeps_none_until_its_files_are_there() -> None:
    embedding = BGEEmbedding("somebody/unheard-of-model")
    assert embedding.query_instruction is None
    assert embedding.to_dict()["query_instruction"] is None


def test_task_chooses_both_instructions() -> None:
    embedding = BGEEmbedding("BAAI/llm-embedder", task="icl")
    assert embedding.query_instruction == "Convert this example into vector to look for useful examples: "
    assert embedding.text_instruction == "Convert this example into vector for retrieval: "


@CLASSES
def test_what_describes_the_model_cannot_be_assigned(kind: Any) -> None:
    model = kind()
    with pytest.raises(ConfigurationError, match=r"'max_length' cannot change.*Build a new"):
        model.max_length = 128
    with pytest.raises(ConfigurationError, match="'max_length' cannot change"):
        model.model_copy(update={"max_length": 128})
    assert model.max_length != 128


def test_what_does_not_describe_the_model_can_be_assigned() -> None:
    reranker, embedding = BGERerank(), BGEEmbedding()
    manager = CallbackManager([])
    reranker.top_n = 7
    reranker.callback_manager = embedding.callback_manager = manager
    embedding.embed_batch_size = 5
    assert (reranker.top_n, embedding.embed_batch_size) == (7, 5)
    assert reranker.callback_manager is embedding.callback_manager is manager


@CLASSES
def test_callback_manager_none_means_no_callbacks(kind: Any) -> None:
    assert isinstance(kind(callback_manager=None).callback_manager, CallbackManager)


def test_injected_embedder_is_used_and_described() -> None:
    embedder = Embedder("BAAI/bge-small-zh-v1.5", query_instruction="", max_length=99)
    embedding = BGEEmbedding(embedder=embedder, embed_batch_size=3)
    assert embedding.embedder is embedder
    assert (embedding.model_name, embedding.query_instruction, embedding.max_length) == (embedder.model, "", 99)


def test_injected_reranker_is_used_and_described() -> None:
    reranker = Reranker(Embedder(EMBEDDER), normalize=True)
    postprocessor = BGERerank(reranker=reranker, top_n=None)
    assert postprocessor.reranker is reranker
    assert (postprocessor.model, postprocessor.normalize, postprocessor.top_n) == (EMBEDDER, True, None)


@pytest.mark.parametrize(("kind", "argument"), [(BGEEmbedding, "embedder"), (BGERerank, "reranker")])
def test_injecting_something_else_is_refused(kind: Any, argument: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{argument}='small'.*bge_runtime"):
        kind(**{argument: "small"})


def test_injected_embedder_beside_options_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="'device', 'max_length'"):
        BGEEmbedding(embedder=Embedder(EMBEDDER), max_length=12, device="cpu")


@CLASSES
def test_errors_belong_to_one_tree(kind: Any) -> None:
    for arguments in ({"devise": 1}, {"device": "gpu7"}, {"max_length": 0}, {"model": "bge-smal"}):
        with pytest.raises(BGEError):
            kind(**arguments)
