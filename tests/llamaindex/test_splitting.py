"""Chunks that the model reads whole."""

from __future__ import annotations

import logging
import pickle
from typing import Any

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.ingestion.pipeline import get_transformation_hash
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import Document, MetadataMode

from bge_runtime import ConfigurationError, UnknownArgumentError
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
