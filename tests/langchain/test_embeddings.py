"""Options of `BGEEmbeddings`: how they are checked, and what they do."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore

import bge_runtime
from langchain_bge import BGECrossEncoder, BGEEmbeddings, BGERerank
from tests.contracts.concurrency import ticks_during
from tests.langchain.conftest import EMBEDDER

Same = Callable[[Any, Any], bool]
every_class = pytest.mark.parametrize("kind", [BGEEmbeddings, BGERerank, BGECrossEncoder])


@pytest.fixture(autouse=True)
def seeded(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of the hub load, and no token is around."""
    monkeypatch.delenv("HF_TOKEN", raising=False)


# Arguments


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"devise": "cpu"}, "'devise'.*Did you mean 'device'"),
        ({"model_kwargs": {"devise": "cpu"}}, "model_kwargs has no argument 'devise'.*'device'"),
        ({"encode_kwargs": {"batchsize": 8}}, "encode_kwargs has no argument 'batchsize'.*'batch_size'"),
        ({"query_encode_kwargs": {"batchsize": 8}}, "query_encode_kwargs has no argument 'batchsize'"),
        ({"encode_kwargs": {"dtype": "float16"}}, "encode_kwargs has no argument 'dtype'"),
    ],
)
def test_an_unknown_argument_is_answered_with_the_nearest(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(bge_runtime.UnknownArgumentError, match=named):
        BGEEmbeddings(**arguments)


@pytest.mark.parametrize(
    ("arguments", "first", "second"),
    [
        ({"device": "cpu", "model_kwargs": {"device": "cuda"}}, "device='cpu'", r"model_kwargs\['device'\]='cuda'"),
        ({"model": EMBEDDER, "model_name": "BAAI/bge-m3"}, "small-en", "bge-m3"),
        ({"batch_size": 8, "encode_kwargs": {"batch_size": 4}}, "8", r"encode_kwargs\['batch_size'\]=4"),
        ({"show_progress": False, "encode_kwargs": {"show_progress_bar": True}}, "False", "True"),
        (
            {"model_kwargs": {"torch_dtype": "float16", "model_kwargs": {"torch_dtype": "bfloat16"}}},
            "float16",
            "bfloat16",
        ),
        ({"query_instruction": "", "query_encode_kwargs": {"prompt": "find: "}}, "query_instruction=''", "find: "),
        ({"max_length": 8, "processor_kwargs": {"model_max_length": 16}}, "8", "16"),
    ],
)
def test_two_values_for_one_option_are_refused(arguments: dict[str, Any], first: str, second: str) -> None:
    with pytest.raises(bge_runtime.ConfigurationError, match=f"{first}.*{second}.*contradict"):
        BGEEmbeddings(**arguments)


def test_two_tokens_are_refused_without_showing_them() -> None:
    with pytest.raises(bge_runtime.ConfigurationError, match="contradict") as caught:
        BGEEmbeddings(token="hf_one", model_kwargs={"token": "hf_two"})
    assert "hf_" not in str(caught.value)


def test_the_same_value_twice_is_fine() -> None:
    model = BGEEmbeddings(device="cpu", model_kwargs={"device": "cpu"}, encode_kwargs={"device": "cpu"})
    assert model.device == "cpu"


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        ({"multi_process": True}, "leave it out"),
        ({"client": object()}, "embedder="),
        ({"encode_kwargs": {"prompt": "find: "}}, "embed_instruction="),
        ({"encode_kwargs": {"prompt_name": "query"}}, "query_instruction="),
        ({"encode_kwargs": {"output_value": "token_embeddings"}}, "encode_tokens"),
        ({"encode_kwargs": {"convert_to_tensor": True}}, "encode_documents"),
        ({"query_encode_kwargs": {"precision": "ubinary"}}, "vector store"),
        ({"model_kwargs": {"prompts": {"query": "find: "}}}, "query_instruction="),
        ({"model_kwargs": {"similarity_fn_name": "dot"}}, "vector store"),
        ({"model_kwargs": {"file_name": "model.onnx"}}, "ONNX"),
        ({"model_kwargs": "cpu"}, "dictionary"),
        ({"encode_kwargs": [("batch_size", 8)]}, "dictionary"),
    ],
)
def test_what_cannot_be_honoured_is_refused_with_advice(arguments: dict[str, Any], advice: str) -> None:
    with pytest.raises(bge_runtime.ConfigurationError, match=advice):
        BGEEmbeddings(**arguments)


def test_the_callers_dictionaries_stay_as_they_are() -> None:
    nested = {"torch_dtype": "float32", "attn_implementation": "eager"}
    model_kwargs = {"device": "cpu", "tokenizer_kwargs": {"model_max_length": 64}, "model_kwargs": nested}
    encode_kwargs, query_encode_kwargs = {"batch_size": 8}, {"prompt": "find: ", "batch_size": 1}
    before = copy.deepcopy((model_kwargs, encode_kwargs, query_encode_kwargs))
    BGEEmbeddings(model_kwargs=model_kwargs, encode_kwargs=encode_kwargs, query_encode_kwargs=query_encode_kwargs)
    assert (model_kwargs, encode_kwargs, query_encode_kwargs) == before


def test_the_model_may_be_positional_a_path_or_a_spec(same: Same, minilm: Path) -> None:
    expected = BGEEmbeddings("all-MiniLM-L6-v2").embed_query("panda")
    assert same(BGEEmbeddings(minilm).embed_query("panda"), expected)
    assert same(BGEEmbeddings(model=bge_runtime.get_spec("all-MiniLM-L6-v2")).embed_query("panda"), expected)
    with pytest.raises(bge_runtime.ConfigurationError, match="model_name=7"):
        BGEEmbeddings(model=7)


@every_class
def test_the_token_comes_from_the_environment(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kind().token is None
    monkeypatch.setenv("HF_TOKEN", "hf_example")
    model = kind()
    assert model.token.get_secret_value() == "hf_example"
    assert getattr(model, kind.injected).source.token == "hf_example"


@pytest.mark.parametrize("token", ["", True])
def test_an_empty_token_and_the_stored_one_are_left_to_the_hub(token: Any) -> None:
    assert BGEEmbeddings(token=token).embedder.source.token is None


# Embedding


def test_vectors_are_lists_of_python_floats() -> None:
    model = BGEEmbeddings(EMBEDDER)
    (document,), query = model.embed_documents(text for text in ["panda"]), model.embed_query("panda")
    assert {type(document), type(query)} == {list}
    assert {type(value) for value in document + query} == {float}


async def test_turning_a_long_result_into_lists_lets_the_loop_run(hub_cache: Path) -> None:
    model = BGEEmbeddings(EMBEDDER)
    await model.aembed_documents(["panda"])
    vectors, ticks = await ticks_during(model.aembed_documents(["panda"] * 12_800))
    assert len(vectors) == 12_800
    assert ticks >= 20


def test_a_vector_store_finds_what_is_meant() -> None:
    store = InMemoryVectorStore(BGEEmbeddings(bge_runtime.DEFAULT_OFFLINE_MODEL))
    store.add_documents(
        [
            Document(page_content="The heart pumps blood.", metadata={"source": "biology"}),
            Document(page_content="Paris is the capital of France.", metadata={"source": "geography"}),
        ]
    )
    (best,) = store.similarity_search("Which organ moves blood?", k=1)
    assert best.metadata["source"] == "biology"


def test_cache_namespaces_differ_by_role_and_by_what_holds_for_queries() -> None:
    base, other = BGEEmbeddings(EMBEDDER), BGEEmbeddings(EMBEDDER, query_encode_kwargs={"truncate_dim": 32})
    assert base.cache_namespace("query") != base.cache_namespace("document")
    assert base.cache_namespace("query") != other.cache_namespace("query")
    assert base.cache_namespace("document") == other.cache_namespace("document")
    with pytest.raises(bge_runtime.ConfigurationError, match="'query' or 'document'"):
        base.cache_namespace("passage")


# Injection


def test_an_embedder_that_is_handed_in_is_used_and_described() -> None:
    embedder = bge_runtime.Embedder(EMBEDDER, query_instruction="find: ", max_length=64)
    model = BGEEmbeddings(embedder=embedder)
    assert model.embedder is embedder
    assert copy.deepcopy(model).embedder is embedder
    assert (model.query_instruction, model.max_length, model.model) == ("find: ", 64, EMBEDDER)
    assert pickle.loads(pickle.dumps(model)).embedder.options() == embedder.options()


@pytest.mark.parametrize(
    "options",
    [
        {"model": EMBEDDER},
        {"batch_size": 8},
        {"model_kwargs": {"device": "cpu"}},
        {"query_encode_kwargs": {"batch_size": 8}},
    ],
)
def test_options_beside_an_embedder_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(bge_runtime.ConfigurationError, match="which the embedder settles"):
        BGEEmbeddings(embedder=bge_runtime.Embedder(EMBEDDER), **options)
    model = BGEEmbeddings(embedder=bge_runtime.Embedder(EMBEDDER), device=None)
    with pytest.raises(bge_runtime.ConfigurationError, match="embedder"):
        model.query_instruction = "find: "


def test_something_else_than_an_embedder_is_refused() -> None:
    with pytest.raises(bge_runtime.ConfigurationError, match=r"bge_runtime\.Embedder"):
        BGEEmbeddings(embedder=object())
