"""Chunks that the model reads whole."""

from __future__ import annotations

import asyncio
import logging
import pickle
from typing import Any

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.ingestion.pipeline import get_transformation_hash
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import Document, MetadataMode, TextNode

import bge_runtime
from bge_runtime import ConfigurationError, InputError, UnknownArgumentError
from llamaindex_bge import BGEEmbedding, BGETokenSplitter
from tests.llamaindex.conftest import EMBEDDER

pytestmark = pytest.mark.usefixtures("hub_cache")

# Rare words: a tokenizer for another model counts far fewer tokens.
TEXT = " ".join(f"Zymurgy xylophone{n} quixotry. 大熊猫竹子! " for n in range(60))
METADATA = {"title": "Zymurgy", "source": "shelf"}


@pytest.fixture
def document() -> Document:
    return Document(text=TEXT, metadata=METADATA)


def tokens(embed_model: BGEEmbedding, nodes: list[Any]) -> list[int]:
    return embed_model.embedder.count_tokens([node.get_content(MetadataMode.EMBED) for node in nodes])


@pytest.mark.parametrize("model", [EMBEDDER, "BAAI/bge-m3"])
def test_no_chunk_is_longer_than_the_model_reads(document: Document, model: str) -> None:
    embed_model = BGEEmbedding(model, max_length=128, truncation="error")
    nodes = BGETokenSplitter(embed_model).get_nodes_from_documents([document])
    assert max(tokens(embed_model, nodes)) <= 128
    assert max(tokens(embed_model, nodes)) > 90
    VectorStoreIndex(nodes, embed_model=embed_model)


def test_the_frameworks_own_splitter_loses_text(document: Document, caplog: Any) -> None:
    embed_model = BGEEmbedding(EMBEDDER, max_length=128)
    nodes = SentenceSplitter(chunk_size=128, chunk_overlap=16).get_nodes_from_documents([document])
    with caplog.at_level(logging.WARNING, "bge_runtime"):
        VectorStoreIndex(nodes, embed_model=embed_model)
    assert "were cut to the 128 tokens" in caplog.text


def test_every_word_is_in_some_chunk(document: Document) -> None:
    nodes = BGETokenSplitter(BGEEmbedding(EMBEDDER, max_length=100)).get_nodes_from_documents([document])
    found = set(" ".join(node.text for node in nodes).split())
    assert set(TEXT.split()) <= found


def test_a_document_instruction_takes_its_room() -> None:
    plain = BGETokenSplitter(BGEEmbedding(EMBEDDER, max_length=100))
    instructed = BGETokenSplitter(BGEEmbedding(EMBEDDER, max_length=100, text_instruction="the giant panda "))
    assert plain.chunk_size == 98
    assert instructed.chunk_size < plain.chunk_size


def test_a_smaller_chunk_has_a_smaller_overlap() -> None:
    embed_model = BGEEmbedding(EMBEDDER)
    assert BGETokenSplitter(embed_model).chunk_overlap == 63
    assert BGETokenSplitter(embed_model, chunk_size=80).chunk_overlap == 10
    assert BGETokenSplitter(embed_model, chunk_size=80, chunk_overlap=0).chunk_overlap == 0


def test_more_than_the_model_reads_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="at most 510"):
        BGETokenSplitter(BGEEmbedding(EMBEDDER), chunk_size=1024)
    with pytest.raises(UnknownArgumentError, match="tokenizer"):
        BGETokenSplitter(BGEEmbedding(EMBEDDER), tokenizer=str.split)
    with pytest.raises(ConfigurationError, match="BGEEmbedding"):
        BGETokenSplitter(EMBEDDER)  # type: ignore[arg-type]


def test_the_ingestion_cache_tells_models_apart() -> None:
    def key(model: str) -> str:
        return get_transformation_hash([], BGETokenSplitter(BGEEmbedding(model, max_length=100)))

    assert key(EMBEDDER) == key(EMBEDDER)
    assert key(EMBEDDER) != key("BAAI/bge-m3")


def test_it_survives_saving_and_pickling(document: Document) -> None:
    splitter = BGETokenSplitter(BGEEmbedding(EMBEDDER, max_length=100), chunk_size=60)
    expected = [node.text for node in splitter.get_nodes_from_documents([document])]
    for copy in (pickle.loads(pickle.dumps(splitter)), BGETokenSplitter.from_dict(splitter.to_dict())):
        assert copy.chunk_size == 60
        assert [node.text for node in copy.get_nodes_from_documents([document])] == expected


def test_it_works_in_a_pipeline_with_workers(document: Document) -> None:
    embed_model = BGEEmbedding(EMBEDDER, max_length=100)
    pipeline = IngestionPipeline(transformations=[BGETokenSplitter(embed_model), embed_model])
    nodes = pipeline.run(documents=[document])
    assert len(nodes) > 10
    assert all(len(node.embedding) == embed_model.embedder.dimension for node in nodes)


# What counts is what is embedded

LONG = "The heart pumps blood. " * 100
HEADED = "A header of the template with several words in it\n{metadata_str}\n\n{content}\n-- end of the text --"
KINDS = {
    "longer in tokens than in characters": {
        "metadata": {"zh": "大熊猫是中国特有的熊类动物" * 3, "en": "international " * 5},
        "excluded_embed_metadata_keys": ["en"],
        "excluded_llm_metadata_keys": ["zh"],
    },
    "text_template": {"metadata": {"a": "b"}, "text_template": HEADED},
    "text_template that joins": {"metadata": {"a": "b"}, "text_template": "{metadata_str}x{content}x"},
    "metadata_template": {"metadata": {"a": "b", "c": "d"}, "metadata_template": "the {key} of this text is {value}"},
    "metadata_seperator": {"metadata": {"a": "b", "c": "d"}, "metadata_seperator": " and what is more " * 3},
    "many tokens per character": {"metadata": {"a": "🫀🫁" * 9}},
}


def split(splitter: BGETokenSplitter, node: Any, *, aware: bool = False) -> list[Any]:
    return asyncio.run(splitter.aget_nodes_from_documents([node])) if aware else splitter([node])


@pytest.mark.parametrize("native_async", [False, True])
@pytest.mark.parametrize("instruction", [None, "read this text: "])
@pytest.mark.parametrize("model", [EMBEDDER, "BAAI/bge-m3"])
@pytest.mark.parametrize("facts", KINDS.values(), ids=KINDS)
def test_a_chunk_fits_as_it_is_embedded(
    facts: dict[str, Any], model: str, instruction: str | None, native_async: bool
) -> None:
    embed_model = BGEEmbedding(model, max_length=128, text_instruction=instruction)
    for chunk_size, most in ((None, 128), (80, 82)):
        splitter = BGETokenSplitter(embed_model, chunk_size=chunk_size)
        kind = TextNode if native_async else Document
        nodes = split(splitter, kind(text=LONG + TEXT, **facts), aware=native_async)
        assert max(tokens(embed_model, nodes)) <= most
        assert set(LONG.split()) <= set(" ".join(node.text for node in nodes).split())
        texts = [(instruction or "") + node.get_content(MetadataMode.EMBED) for node in nodes]
        assert max(embed_model.embedder.count_tokens(texts)) <= 128


@pytest.mark.parametrize("words", [3, 100, 600])
def test_metadata_that_is_not_embedded_takes_no_room(words: int, capsys: Any) -> None:
    splitter = BGETokenSplitter(BGEEmbedding(bge_runtime.DEFAULT_OFFLINE_MODEL), chunk_size=128)
    hidden = Document(text=LONG, metadata={"n": "word " * words}, excluded_embed_metadata_keys=["n"])
    assert len(splitter.get_nodes_from_documents([hidden])) == 5
    assert capsys.readouterr().out == ""


def test_metadata_that_is_left_out_takes_no_room() -> None:
    embed_model = BGEEmbedding(bge_runtime.DEFAULT_OFFLINE_MODEL)
    splitter = BGETokenSplitter(embed_model, chunk_size=128, include_metadata=False)
    assert len(splitter([Document(text=LONG, metadata={"n": "word " * 600})])) == 5


def test_metadata_that_leaves_little_room_is_no_reason_to_print(capsys: Any) -> None:
    embed_model = BGEEmbedding(bge_runtime.DEFAULT_OFFLINE_MODEL)
    nodes = BGETokenSplitter(embed_model, chunk_size=128)([Document(text=LONG, metadata={"n": "word " * 100})])
    assert max(tokens(embed_model, nodes)) <= 130
    assert capsys.readouterr().out == ""


def test_metadata_without_room_for_text_is_an_error_that_names_the_document() -> None:
    splitter = BGETokenSplitter(BGEEmbedding(EMBEDDER), chunk_size=128)
    with pytest.raises(InputError, match=r"'d1' fits into chunk_size=128 beside the metadata.*excluded_embed"):
        splitter([Document(id_="d1", text=LONG, metadata={"n": "word " * 600})])
    with pytest.raises(InputError, match="chunk_size=128"):
        splitter.split_text_metadata_aware(LONG, "word " * 600)
    with pytest.raises(InputError, match="chunk_size=1 "):
        BGETokenSplitter(BGEEmbedding("BAAI/bge-m3"), chunk_size=1).split_text("🫀🫁🦴🧠" * 3)


def test_the_ids_of_nodes_are_the_callers() -> None:
    names: list[str] = []

    def name(number: int, node: Any) -> str:
        names.append(f"{node.node_id} {number}")
        return names[-1]

    splitter = BGETokenSplitter(BGEEmbedding(EMBEDDER), chunk_size=300, id_func=name)
    nodes = splitter([Document(id_="d", text=LONG)])
    assert [node.node_id for node in nodes] == names == ["d 0", "d 1"]


@pytest.mark.parametrize(
    "options",
    [
        {"chunk_size": 0},
        {"chunk_size": -1},
        {"chunk_size": True},
        {"chunk_size": "80"},
        {"chunk_size": 80.0},
        {"chunk_overlap": -1},
        {"chunk_overlap": "8"},
        {"chunk_size": 80, "chunk_overlap": 81},
    ],
)
def test_sizes_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="chunk_"):
        BGETokenSplitter(BGEEmbedding(EMBEDDER), **options)
