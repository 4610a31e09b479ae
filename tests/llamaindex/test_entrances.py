"""Every entrance of the LlamaIndex classes says what it was given in place of a list."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core.schema import TextNode

import bge_runtime
from bge_runtime import InputError
from llamaindex_bge import BGEEmbedding, BGEMultiModalEmbedding, BGERerank, BGESparseEmbedding, BGETokenRetriever
from tests.llamaindex.conftest import EMBEDDER

pytestmark = pytest.mark.usefixtures("hub_cache")

RERANKER, VISION = "BAAI/bge-reranker-base", "BAAI/BGE-VL-base"
ENTRANCES: dict[str, Callable[[Any], Any]] = {
    "batch": lambda given: BGEEmbedding(EMBEDDER).get_text_embedding_batch(given),
    "async batch": lambda given: asyncio.run(BGEEmbedding(EMBEDDER).aget_text_embedding_batch(given)),
    "queries": lambda given: BGEEmbedding(EMBEDDER).get_agg_embedding_from_queries(given),
    "sparse": lambda given: BGESparseEmbedding().get_text_embedding_batch(given),
    "async sparse": lambda given: asyncio.run(BGESparseEmbedding().aget_text_embedding_batch(given)),
    "sparse queries": lambda given: BGESparseEmbedding().get_agg_embedding_from_queries(given),
    "async sparse queries": lambda given: asyncio.run(BGESparseEmbedding().aget_agg_embedding_from_queries(given)),
    "sparse_doc_fn": lambda given: BGESparseEmbedding().sparse_doc_fn(given),
    "sparse_query_fn": lambda given: BGESparseEmbedding().sparse_query_fn(given),
    "pictures": lambda given: BGEMultiModalEmbedding(VISION).get_image_embedding_batch(given),
    "async pictures": lambda given: asyncio.run(BGEMultiModalEmbedding(VISION).aget_image_embedding_batch(given)),
    "rerank": lambda given: BGERerank(RERANKER).postprocess_nodes(given, query_str="query"),
    "from_nodes": lambda given: BGETokenRetriever.from_nodes(given, EMBEDDER),
}
GIVEN = {
    "dict": {"q1": "The heart pumps blood."},
    "dict of nodes": {"q1": TextNode(text="The heart pumps blood.")},
    "set": {"a", "b"},
    "str": "text",
}


@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
@pytest.mark.parametrize("entrance", ENTRANCES)
def test_what_is_no_list_is_said(fresh_store, entrance, given):
    with pytest.raises(InputError, match=rf"^\w+ is (the single )?{type(given).__name__}\b.*; pass a list of"):
        ENTRANCES[entrance](given)
    assert bge_runtime.loaded_models() == []


def test_a_generator_of_pictures_is_a_list(tmp_path):
    from tests.checkpoints.pictures import picture

    picture(1, 40, 40).save(tmp_path / "a.png")
    embedding = BGEMultiModalEmbedding(VISION)
    found = embedding.get_image_embedding_batch(str(each) for each in tmp_path.iterdir())
    assert found == embedding.get_image_embedding_batch([str(tmp_path / "a.png")])
