"""Late interaction over a small corpus through LangChain."""

from __future__ import annotations

import numpy as np
import pytest
from langchain_core.documents import Document

import bge_runtime
from bge_runtime import Reranker, TokenIndex
from langchain_bge import BGETokenRetriever
from tests.langchain.conftest import EMBEDDER, QUERY

pytestmark = pytest.mark.usefixtures("hub_cache")


def test_documents_come_back_scored_as_copies_with_ids_and_metadata(documents):
    before = [document.model_copy(deep=True) for document in documents]
    retriever = BGETokenRetriever.from_documents(documents, EMBEDDER, storage="float32")
    found = retriever.invoke(QUERY)
    scores = Reranker(EMBEDDER).score(QUERY, [document.page_content for document in documents])
    assert [document.id for document in found] == [f"id-{n}" for n in np.argsort(-scores)]
    np.testing.assert_allclose([each.metadata["relevance_score"] for each in found], -np.sort(-scores), atol=1e-5)
    assert [each.metadata["source"] for each in found] == [{"page": int(each.id[-1])} for each in found]
    assert documents == before


async def test_async_gives_the_same(documents):
    retriever = await BGETokenRetriever.afrom_documents(iter(documents), EMBEDDER, k=2)
    found = await retriever.ainvoke(QUERY)
    assert found == retriever.invoke(QUERY)
    assert len(found) == 2
    assert len(retriever.invoke(QUERY, k=1)) == 1
    with pytest.raises(bge_runtime.ConfigurationError, match="top_n"):
        retriever.invoke(QUERY, k=0)


def test_texts_get_ids_unless_they_have_some():
    texts = ["The giant panda is a bear", "cat", "cat"]
    retriever = BGETokenRetriever.from_texts(texts, EMBEDDER, [{"n": n} for n in range(3)], k=3)
    found = retriever.invoke("cat")
    assert [document.metadata["n"] for document in found] == [1, 2, 0]
    assert len({document.id for document in found}) == 3
    named = BGETokenRetriever.from_texts(texts, EMBEDDER, ids=["a", "b", "c"], k=1)
    assert named.invoke("cat")[0].id == "b"
    with pytest.raises(bge_runtime.InputError, match="3 texts came with 3 metadatas and 1 ids"):
        BGETokenRetriever.from_texts(texts, EMBEDDER, ids=["a"])


def test_an_index_read_from_disk_serves_its_documents(tmp_path, documents, fresh_store):
    first = BGETokenRetriever.from_documents(documents, Reranker(EMBEDDER, token_pooling=2))
    first.index.save(tmp_path)
    expected = first.invoke(QUERY)
    bge_runtime.unload_models()
    index = TokenIndex.load(tmp_path, Reranker(EMBEDDER, token_pooling=2))
    second = BGETokenRetriever(index=index, documents=documents)
    assert not bge_runtime.loaded_models()
    assert second.invoke(QUERY) == expected
    with pytest.raises(bge_runtime.ConfigurationError, match="'id-3'"):
        BGETokenRetriever(index=index, documents=documents[:3]).invoke(QUERY)


def test_the_run_is_traced(documents, runs):
    retriever = BGETokenRetriever.from_documents(documents, EMBEDDER, tags=["late"])
    found = retriever.invoke(QUERY, {"callbacks": [runs]})
    (row,) = runs.named("BGETokenRetriever")
    assert row["documents"] == found
    assert row["tags"] == ["late"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"k": 0}, bge_runtime.ConfigurationError, "k=0"),
        ({"top_k": 2}, bge_runtime.UnknownArgumentError, "top_k"),
        ({"index": EMBEDDER}, bge_runtime.ConfigurationError, "TokenIndex"),
        ({"documents": [Document("no id")]}, bge_runtime.InputError, "no id"),
        ({"documents": [Document("a", id="1"), Document("b", id="1")]}, bge_runtime.InputError, "the same one"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused(options, error, message, fresh_store):
    with pytest.raises(error, match=message):
        BGETokenRetriever(**{"index": TokenIndex(EMBEDDER), "documents": [], **options})
    assert not bge_runtime.loaded_models()


@pytest.mark.parametrize("wrong", ["text", ["text"], None])
def test_what_is_no_document_is_refused(wrong):
    with pytest.raises(bge_runtime.InputError, match="Document"):
        BGETokenRetriever.from_documents(wrong, EMBEDDER)
