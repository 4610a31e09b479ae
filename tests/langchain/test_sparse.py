"""Sparse vectors and hybrid reranking through LangChain."""

from __future__ import annotations

import pickle
import sys
from abc import ABC
from types import ModuleType

import numpy as np
import pytest
from langchain_core.documents import Document

import bge_runtime
from langchain_bge import BGEEmbeddings, BGERerank, BGESparseEmbeddings

M3 = "BAAI/bge-m3"
TEXTS = ["The giant panda is a bear species endemic to China.", "the dog slept in the garden", "大熊猫", ""]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


def test_weights_are_the_runtimes(hub_cache):
    sparse = BGESparseEmbeddings(model=M3)
    assert sparse.embed_documents(TEXTS) == bge_runtime.Embedder(M3).encode_sparse(TEXTS)
    assert sparse.embed_query(TEXTS[0]) == pytest.approx(sparse.embed_documents(TEXTS)[0])


async def test_async_twins_give_the_same(hub_cache):
    sparse = BGESparseEmbeddings(model=M3)
    assert await sparse.aembed_documents(TEXTS) == sparse.embed_documents(TEXTS)
    view = sparse.for_qdrant()
    (first, *_) = await view.aembed_documents(TEXTS)
    assert (await view.aembed_query(TEXTS[0])).indices == first.indices


def test_qdrant_gets_dense_and_sparse_of_one_pass(hub_cache, fresh_store):
    from langchain_qdrant import QdrantVectorStore, RetrievalMode

    dense, sparse = BGEEmbeddings(model=M3), BGESparseEmbeddings(model=M3)
    before = bge_runtime.stats()["inputs"]
    store = QdrantVectorStore.from_texts(
        TEXTS[:3],
        embedding=dense,
        sparse_embedding=sparse.for_qdrant(),
        retrieval_mode=RetrievalMode.HYBRID,
        location=":memory:",
    )
    probes = 2  # "dummy_text" when the collection is made and checked, at most
    assert bge_runtime.stats()["inputs"] - before <= 3 + probes
    assert store.similarity_search(TEXTS[1], k=1)[0].page_content == TEXTS[1]
    lexical = QdrantVectorStore(
        store.client,
        store.collection_name,
        sparse_embedding=sparse.for_qdrant(),
        retrieval_mode=RetrievalMode.SPARSE,
    )
    ((found, score),) = lexical.similarity_search_with_score("dog in the garden", k=1)
    expected = bge_runtime.lexical_score(sparse.embed_query("dog in the garden"), sparse.embed_documents([TEXTS[1]])[0])
    assert found.page_content == TEXTS[1]
    assert score == pytest.approx(expected, rel=1e-4)


def test_sharing_ends_with_the_object(hub_cache, fresh_store):
    dense, sparse = BGEEmbeddings(model=M3), BGESparseEmbeddings(model=M3)
    dense.embed_documents(TEXTS)
    before = bge_runtime.stats()["inputs"]
    sparse.embed_documents(TEXTS)
    assert bge_runtime.stats()["inputs"] == before
    sparse.embed_documents(TEXTS)
    assert bge_runtime.stats()["inputs"] - before == len(TEXTS)


def test_copies_and_pickles_hold_the_options(hub_cache):
    sparse = BGESparseEmbeddings(model=M3, max_length=16, truncation="silent")
    copy = pickle.loads(pickle.dumps(sparse))
    assert (copy.model, copy.max_length) == (M3, 16)
    assert copy.embed_documents(TEXTS) == sparse.embed_documents(TEXTS)


def test_a_pickled_view_of_a_store_goes_on_sharing(hub_cache, fresh_store):
    pytest.importorskip("langchain_qdrant")
    view = pickle.loads(pickle.dumps(BGESparseEmbeddings(model=M3).for_qdrant()))
    dense, before = BGEEmbeddings(model=M3), bge_runtime.stats()["inputs"]
    dense.embed_documents(TEXTS)
    view.embed_documents(TEXTS)
    assert bge_runtime.stats()["inputs"] - before == len(TEXTS)


def test_a_model_without_sparse_output_is_refused_at_construction(fresh_store):
    with pytest.raises(bge_runtime.ConfigurationError, match="no output 'sparse'"):
        BGESparseEmbeddings(model="BAAI/bge-small-en-v1.5")
    with pytest.raises(bge_runtime.UnknownArgumentError, match="'normalise'"):
        BGESparseEmbeddings(model=M3, normalise=True)


@pytest.mark.parametrize(
    ("method", "module", "package"),
    [("for_qdrant", "langchain_qdrant", "langchain-qdrant"), ("for_milvus", "langchain_milvus", "langchain-milvus")],
)
def test_a_store_that_is_not_installed_is_named(monkeypatch, method, module, package):
    for name in (module, "langchain_bge.qdrant", "langchain_bge.milvus"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(bge_runtime.ConfigurationError, match=f"pip install {package}"):
        getattr(BGESparseEmbeddings(model=M3), method)()


async def test_milvus_gets_a_vector_for_a_text_without_weights(monkeypatch, hub_cache):
    """The real store needs an environment of its own: make milvus-check."""
    base = ModuleType("langchain_milvus.utils.sparse")
    base.BaseSparseEmbedding = ABC
    for name in ("langchain_milvus", "langchain_milvus.utils"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, base.__name__, base)
    monkeypatch.delitem(sys.modules, "langchain_bge.milvus", raising=False)
    sparse = BGESparseEmbeddings(model=M3)
    view, weights = sparse.for_milvus(), sparse.embed_documents(TEXTS)
    monkeypatch.delitem(sys.modules, "langchain_bge.milvus")
    assert weights[3] == {}
    assert all(0 not in row for row in weights)
    assert view.embed_documents(TEXTS) == [row or {0: 1.0} for row in weights]
    assert await view.aembed_documents(TEXTS) == view.embed_documents(TEXTS)
    assert view.embed_query("") == await view.aembed_query("") == {}


def test_hybrid_reranking_is_the_runtimes(hub_cache):
    documents = [Document(page_content=text, id=str(index)) for index, text in enumerate(TEXTS)]
    rerank = BGERerank(model=M3, mode="hybrid", weights=(1, 1, 1), top_n=None)
    best = rerank.compress_documents(documents, "giant panda")
    expected = bge_runtime.Reranker(M3, mode="hybrid", weights=(1, 1, 1)).score("giant panda", TEXTS)
    assert [each.id for each in best] == [str(index) for index in np.argsort(-expected, kind="stable")]
    np.testing.assert_allclose([each.metadata["relevance_score"] for each in best], np.sort(expected)[::-1], atol=1e-5)
    with pytest.raises(bge_runtime.ConfigurationError, match="mode='hybrid'"):
        BGERerank(model=M3, weights=(1, 1, 1))
