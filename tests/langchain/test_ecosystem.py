"""The classes inside what LangChain users build around embeddings: caches, indexing, chunkers, filters, graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict

import pytest
from langchain_core.documents import Document
from langchain_core.example_selectors import (
    MaxMarginalRelevanceExampleSelector,
    SemanticSimilarityExampleSelector,
)
from langchain_core.indexing import InMemoryRecordManager, index
from langchain_core.stores import InMemoryByteStore
from langchain_core.vectorstores import InMemoryVectorStore

import bge_runtime
from langchain_bge import BGEEmbeddings, BGERerank, BGERetriever

MINILM = bge_runtime.DEFAULT_OFFLINE_MODEL
TEXTS = [
    "The heart pumps blood through the body.",
    "Paris is the capital of France.",
    "The lungs take in oxygen.",
    "Berlin is the capital of Germany.",
]

pytestmark = pytest.mark.usefixtures("hub_cache")


@pytest.fixture
def embeddings() -> BGEEmbeddings:
    return BGEEmbeddings(model=MINILM)


def computed() -> int:
    return int(bge_runtime.stats()["inputs"])


def documents(texts: list[str] = TEXTS) -> list[Document]:
    return [Document(page_content=text, metadata={"source": f"file-{n}"}) for n, text in enumerate(texts)]


def test_the_indexing_api_embeds_only_what_changed(embeddings: BGEEmbeddings) -> None:
    manager = InMemoryRecordManager(namespace="bge")
    manager.create_schema()
    store = InMemoryVectorStore(embeddings)
    options: dict[str, Any] = {"cleanup": "full", "source_id_key": "source", "key_encoder": "sha256"}
    before = computed()
    assert index(documents(), manager, store, **options)["num_added"] == 4
    assert computed() - before == 4
    changed = documents([*TEXTS[:3], "Berlin lies on the Spree."])
    result = index(changed, manager, store, **options)
    assert (result["num_added"], result["num_skipped"], result["num_deleted"]) == (1, 3, 1)
    assert computed() - before == 5
    assert index(changed, manager, store, **options)["num_skipped"] == 4
    assert computed() - before == 5
    assert store.similarity_search("Which river is in Berlin?", k=1)[0].page_content == "Berlin lies on the Spree."


def test_cache_backed_embeddings_with_our_namespaces_mix_nothing_up() -> None:
    from langchain_classic.embeddings import CacheBackedEmbeddings

    def cached(embeddings: BGEEmbeddings) -> CacheBackedEmbeddings:
        return CacheBackedEmbeddings.from_bytes_store(
            embeddings,
            bytes_store,
            namespace=embeddings.cache_namespace("document"),
            query_embedding_cache=queries[embeddings.cache_namespace("query")],
            key_encoder="sha256",
        )

    bytes_store = InMemoryByteStore()
    small, other = BGEEmbeddings(model="BAAI/bge-small-en-v1.5"), BGEEmbeddings(model="BAAI/bge-small-zh-v1.5")
    queries = {each.cache_namespace("query"): InMemoryByteStore() for each in (small, other)}
    text = "Which organ moves blood?"
    for embeddings in (small, other, small):
        assert cached(embeddings).embed_documents([text]) == [pytest.approx(embeddings.embed_documents([text])[0])]
        assert cached(embeddings).embed_query(text) == pytest.approx(embeddings.embed_query(text))
    before = computed()
    cached(small).embed_documents([text])
    cached(small).embed_query(text)
    assert computed() == before


def test_the_semantic_chunker_splits_where_the_topic_changes(embeddings: BGEEmbeddings) -> None:
    from langchain_experimental.text_splitter import SemanticChunker

    text = (
        "The heart pumps blood. Blood carries oxygen. The lungs take in oxygen. "
        "Paris is the capital of France. Berlin is the capital of Germany. Rome is the capital of Italy."
    )
    chunker = SemanticChunker(embeddings, buffer_size=0, breakpoint_threshold_type="percentile", number_of_chunks=2)
    body, capitals = chunker.split_text(text)
    assert "lungs" in body
    assert capitals.startswith("Paris")


def test_the_embeddings_filter_keeps_what_is_similar(embeddings: BGEEmbeddings) -> None:
    from langchain_classic.retrievers.document_compressors import EmbeddingsFilter

    kept = EmbeddingsFilter(embeddings=embeddings, k=1).compress_documents(documents(), "Which organ moves blood?")
    assert [each.page_content for each in kept] == TEXTS[:1]


@pytest.mark.parametrize("selector", [SemanticSimilarityExampleSelector, MaxMarginalRelevanceExampleSelector])
def test_example_selectors_pick_the_nearest(embeddings: BGEEmbeddings, selector: Any) -> None:
    examples = [{"input": text, "output": str(n)} for n, text in enumerate(TEXTS)]
    chosen = selector.from_examples(examples, embeddings, InMemoryVectorStore, k=1, input_keys=["input"])
    assert chosen.select_examples({"input": "Which city is France's capital?"}) == [examples[1]]


def test_langgraph_searches_its_store_with_our_vectors(embeddings: BGEEmbeddings) -> None:
    from langgraph.store.memory import InMemoryStore

    store = InMemoryStore(index={"embed": embeddings, "dims": embeddings.embedder.dimension})
    for n, text in enumerate(TEXTS):
        store.put(("facts",), str(n), {"text": text})
    found = store.search(("facts",), query="Which organ moves blood?", limit=2)
    assert found[0].value["text"] == TEXTS[0]
    assert found[0].score > found[1].score


async def test_a_graph_retrieves_in_one_node_and_reranks_in_the_next(embeddings: BGEEmbeddings) -> None:
    from langgraph.graph import END, START, StateGraph

    class State(TypedDict, total=False):
        query: str
        documents: list[Document]

    store = InMemoryVectorStore(embeddings)
    store.add_documents(documents())
    retriever = BGERetriever(vectorstore=store, fetch_k=4, k=4)
    rerank = BGERerank(model=MINILM, top_n=1)
    graph = StateGraph(State)
    graph.add_node("retrieve", lambda state: {"documents": retriever.invoke(state["query"])})
    graph.add_node("rerank", lambda state: {"documents": rerank.invoke(dict(state))})
    graph.add_edge(START, "retrieve")
    graph.add_edge("retrieve", "rerank")
    graph.add_edge("rerank", END)
    app = graph.compile()
    for answer in (app.invoke({"query": "What do lungs do?"}), await app.ainvoke({"query": "What do lungs do?"})):
        assert [each.page_content for each in answer["documents"]] == [TEXTS[2]]
        assert "relevance_score" in answer["documents"][0].metadata


def test_many_queries_at_once_share_batches(embeddings: BGEEmbeddings) -> None:
    rerank = BGERerank(model=MINILM, top_n=1)
    rerank.reranker.warm_up()
    wanted = [{"documents": documents(), "query": f"{text} number {n}"} for n, text in enumerate(TEXTS * 4)]
    answers = rerank.batch(wanted)
    assert [each[0].page_content for each in answers] == [text for _ in range(4) for text in TEXTS]


def test_the_retriever_refuses_another_model_after_reloading(tmp_path: Path) -> None:
    path = tmp_path / "store.json"
    store = InMemoryVectorStore(BGEEmbeddings(model="BAAI/bge-small-en-v1.5"))
    store.add_documents(documents())
    BGERetriever(vectorstore=store, index_path=path, k=1).invoke("first use binds")
    store.dump(str(path))
    same = InMemoryVectorStore.load(str(path), BGEEmbeddings(model="BAAI/bge-small-en-v1.5", query_instruction=""))
    assert BGERetriever(vectorstore=same, index_path=path, k=1).invoke(TEXTS[0])
    other = InMemoryVectorStore.load(str(path), BGEEmbeddings(model="BAAI/bge-small-zh-v1.5"))
    with pytest.raises(bge_runtime.IndexIdentityError, match=r"bge-small-en-v1.5.*bge-small-zh-v1.5"):
        BGERetriever(vectorstore=other, index_path=path).invoke(TEXTS[0])


async def test_the_async_retriever_refuses_it_too(tmp_path: Path) -> None:
    bge_runtime.bind_index(tmp_path, bge_runtime.Embedder("BAAI/bge-small-zh-v1.5"))
    store = InMemoryVectorStore(BGEEmbeddings(model="BAAI/bge-small-en-v1.5"))
    with pytest.raises(bge_runtime.IndexIdentityError):
        await BGERetriever(vectorstore=store, index_path=tmp_path).ainvoke(TEXTS[0])


def test_index_path_needs_one_store_of_ours(tmp_path: Path) -> None:
    from langchain_core.embeddings import DeterministicFakeEmbedding

    fake = InMemoryVectorStore(DeterministicFakeEmbedding(size=8))
    with pytest.raises(bge_runtime.ConfigurationError, match="bind_index"):
        BGERetriever(sources=[fake], index_path=tmp_path)
    with pytest.raises(bge_runtime.ConfigurationError, match="BGEEmbeddings"):
        BGERetriever(vectorstore=fake, index_path=tmp_path).invoke("x")
