"""Hybrid search on Qdrant, with bge-m3 on a server: one request a text for both vectors, ranked as in process."""

from __future__ import annotations

import pytest

import bge_runtime
from langchain_bge import BGEEmbeddings, BGESparseEmbeddings
from llamaindex_bge import BGEEmbedding, BGESparseEmbedding

pytestmark = [
    pytest.mark.enable_socket,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning"),
]

M3 = "BAAI/bge-m3"
ANIMALS, PLACES = ("panda", "dog", "cat", "horse"), ("garden", "river", "house", "mountain", "city")
TEXTS = [f"The {animal} slept near the {place}." for animal in ANIMALS for place in PLACES]
QUERIES = ["a dog in the garden", "cat mountain", "who slept near the river"]


def langchain_rankings(**options):
    from langchain_qdrant import QdrantVectorStore, RetrievalMode

    store = QdrantVectorStore.from_texts(
        TEXTS,
        embedding=BGEEmbeddings(model=M3, **options),
        sparse_embedding=BGESparseEmbeddings(model=M3, **options).for_qdrant(),
        retrieval_mode=RetrievalMode.HYBRID,
        location=":memory:",
    )
    return [[found.page_content for found in store.similarity_search(query, k=8)] for query in QUERIES]


def llamaindex_rankings(**options):
    from llama_index.core import StorageContext, VectorStoreIndex
    from llama_index.core.schema import TextNode
    from llama_index.vector_stores.qdrant import QdrantVectorStore
    from qdrant_client import QdrantClient

    sparse = BGESparseEmbedding(model=M3, **options)
    store = QdrantVectorStore(
        "texts",
        client=QdrantClient(location=":memory:"),
        enable_hybrid=True,
        sparse_doc_fn=sparse.sparse_doc_fn,
        sparse_query_fn=sparse.sparse_query_fn,
    )
    index = VectorStoreIndex(
        [TextNode(text=text) for text in TEXTS],
        storage_context=StorageContext.from_defaults(vector_store=store),
        embed_model=BGEEmbedding(model=M3, **options),
    )
    retriever = index.as_retriever(vector_store_query_mode="hybrid", similarity_top_k=8, sparse_top_k=8, hybrid_top_k=8)
    return [[found.node.text for found in retriever.retrieve(query)] for query in QUERIES]


@pytest.mark.parametrize("rankings", [langchain_rankings, llamaindex_rankings], ids=["langchain", "llamaindex"])
def test_one_pass_per_text_and_the_ranking_of_in_process(server, hub_cache, fresh_store, rankings):
    before = bge_runtime.stats()["inputs"]
    found = rankings(base_url=server)
    probes = 2  # "dummy_text" when a collection is made and checked, at most
    assert bge_runtime.stats()["inputs"] - before <= len(TEXTS) + len(QUERIES) + probes
    assert [each.backend for each in bge_runtime.loaded_models()] == ["remote"]
    assert found == rankings()
