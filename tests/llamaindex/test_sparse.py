"""Sparse vectors and hybrid reranking through LlamaIndex."""

from __future__ import annotations

import pickle
import sys
from abc import ABC
from types import ModuleType

import numpy as np
import pytest
from llama_index.core.schema import NodeWithScore, TextNode

import bge_runtime
from llamaindex_bge import BGEEmbedding, BGERerank, BGESparseEmbedding

M3 = "BAAI/bge-m3"
TEXTS = ["The giant panda is a bear species endemic to China.", "the dog slept in the garden", "大熊猫", ""]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


def test_weights_are_the_runtimes(hub_cache):
    sparse = BGESparseEmbedding(model=M3)
    expected = bge_runtime.Embedder(M3).encode_sparse(TEXTS)
    assert sparse.get_text_embedding_batch(TEXTS) == expected
    assert sparse.get_query_embedding(TEXTS[0]) == pytest.approx(expected[0])
    assert sparse.sparse_doc_fn(TEXTS) == ([list(row) for row in expected], [list(row.values()) for row in expected])


async def test_async_twins_give_the_same(hub_cache):
    sparse = BGESparseEmbedding(model=M3)
    assert await sparse.aget_text_embedding_batch(TEXTS) == sparse.get_text_embedding_batch(TEXTS)
    assert await sparse.aget_query_embedding(TEXTS[0]) == sparse.get_query_embedding(TEXTS[0])
    assert await sparse.aget_text_embedding(TEXTS[0]) == sparse.get_text_embedding(TEXTS[0])


def test_a_batch_is_one_call(hub_cache):
    sparse = BGESparseEmbedding(model=M3)
    before = bge_runtime.stats()["batches"]
    sparse.get_text_embedding_batch([f"cat {number}" for number in range(64)])
    assert bge_runtime.stats()["batches"] - before < 16  # one by one it would be 64


def test_qdrant_gets_dense_and_sparse_of_one_pass(hub_cache, fresh_store):
    from llama_index.core import StorageContext, VectorStoreIndex
    from llama_index.vector_stores.qdrant import QdrantVectorStore
    from qdrant_client import QdrantClient

    sparse = BGESparseEmbedding(model=M3)
    store = QdrantVectorStore(
        "texts",
        client=QdrantClient(location=":memory:"),
        enable_hybrid=True,
        sparse_doc_fn=sparse.sparse_doc_fn,
        sparse_query_fn=sparse.sparse_query_fn,
    )
    before = bge_runtime.stats()["inputs"]
    index = VectorStoreIndex(
        [TextNode(text=text) for text in TEXTS[:3]],
        storage_context=StorageContext.from_defaults(vector_store=store),
        embed_model=BGEEmbedding(model=M3),
    )
    assert bge_runtime.stats()["inputs"] - before == 3
    (best,) = index.as_retriever(
        vector_store_query_mode="hybrid", similarity_top_k=1, sparse_top_k=3, hybrid_top_k=1
    ).retrieve(TEXTS[1])
    assert best.node.text == TEXTS[1]
    assert bge_runtime.stats()["inputs"] - before == 4


def test_pickles_hold_the_options_and_go_on_sharing(hub_cache, fresh_store):
    sparse = pickle.loads(pickle.dumps(BGESparseEmbedding(model=M3)))
    BGEEmbedding(model=M3).get_text_embedding_batch(TEXTS)
    before = bge_runtime.stats()["inputs"]
    sparse.get_text_embedding_batch(TEXTS)
    assert bge_runtime.stats()["inputs"] == before


def test_a_model_without_sparse_output_is_refused_at_construction(fresh_store):
    with pytest.raises(bge_runtime.ConfigurationError, match="no output 'sparse'"):
        BGESparseEmbedding(model="BAAI/bge-small-en-v1.5")
    with pytest.raises(bge_runtime.UnknownArgumentError, match="'normalise'"):
        BGESparseEmbedding(model=M3, normalise=True)


def test_a_store_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "llamaindex_bge.milvus", raising=False)
    monkeypatch.setitem(sys.modules, "llama_index.vector_stores.milvus", None)
    with pytest.raises(bge_runtime.ConfigurationError, match="pip install llama-index-vector-stores-milvus"):
        BGESparseEmbedding(model=M3).for_milvus()


async def test_milvus_gets_a_vector_for_a_text_without_weights(monkeypatch, hub_cache):
    """The real store needs an environment of its own: make milvus-check."""
    base = ModuleType("llama_index.vector_stores.milvus.utils")
    base.BaseSparseEmbeddingFunction = ABC
    monkeypatch.setitem(sys.modules, "llama_index.vector_stores.milvus", ModuleType("llama_index.vector_stores.milvus"))
    monkeypatch.setitem(sys.modules, base.__name__, base)
    monkeypatch.delitem(sys.modules, "llamaindex_bge.milvus", raising=False)
    sparse = BGESparseEmbedding(model=M3)
    view, weights = sparse.for_milvus(), sparse.get_text_embedding_batch(TEXTS)
    monkeypatch.delitem(sys.modules, "llamaindex_bge.milvus")
    assert weights[3] == {}
    assert all(0 not in row for row in weights)
    assert view.encode_documents(TEXTS) == [row or {0: 1.0} for row in weights]
    assert await view.async_encode_documents(TEXTS) == view.encode_documents(TEXTS)
    assert view.encode_queries([""]) == await view.async_encode_queries([""]) == [{}]


def test_hybrid_reranking_is_the_runtimes(hub_cache):
    nodes = [NodeWithScore(node=TextNode(text=text, id_=str(index))) for index, text in enumerate(TEXTS)]
    best = BGERerank(model=M3, mode="hybrid", weights=(1, 1, 1), top_n=None).postprocess_nodes(
        nodes, query_str="giant panda"
    )
    expected = bge_runtime.Reranker(M3, mode="hybrid", weights=(1, 1, 1)).score("giant panda", TEXTS)
    assert [each.node.node_id for each in best] == [str(index) for index in np.argsort(-expected, kind="stable")]
    np.testing.assert_allclose([each.score for each in best], np.sort(expected)[::-1], atol=1e-5)
    with pytest.raises(bge_runtime.ConfigurationError, match="mode='hybrid'"):
        BGERerank(model=M3, weights=(1, 1, 1))
