"""The classes inside what LlamaIndex users build: fusion, chat, semantic splitting, upserts, partial rankings."""

from __future__ import annotations

import time
from typing import Any

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.llms import MockLLM
from llama_index.core.node_parser import SemanticSplitterNodeParser
from llama_index.core.retrievers import QueryFusionRetriever
from llama_index.core.schema import Document, MetadataMode, NodeWithScore, TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores import SimpleVectorStore

import bge_runtime
from llamaindex_bge import BGEEmbedding, BGERerank
from tests.llamaindex.conftest import RERANKER, Recorder

MINILM = bge_runtime.DEFAULT_OFFLINE_MODEL
QUERY = "Which organ moves blood?"
TEXTS = [
    "The heart pumps blood through the body.",
    "Paris is the capital of France.",
    "The lungs take in oxygen.",
    "Berlin is the capital of Germany.",
    "Blood carries oxygen to every cell.",
]

pytestmark = pytest.mark.usefixtures("hub_cache")


@pytest.fixture
def index() -> VectorStoreIndex:
    nodes = [TextNode(id_=str(n), text=text) for n, text in enumerate(TEXTS)]
    return VectorStoreIndex(nodes, embed_model=BGEEmbedding(MINILM))


def computed() -> int:
    return int(bge_runtime.stats()["inputs"])


def test_a_query_engine_shows_both_stages(index: VectorStoreIndex, events: Recorder) -> None:
    engine = index.as_query_engine(llm=MockLLM(), similarity_top_k=5, node_postprocessors=[BGERerank(MINILM, top_n=2)])
    response = engine.query(QUERY)
    assert [node.node_id for node in response.source_nodes] == ["0", "4"]
    assert len(events.named("RetrievalEndEvent")[0].nodes) == 5
    assert len(events.named("ReRankStartEvent")[0].nodes) == 5
    assert len(events.named("ReRankEndEvent")[0].nodes) == 2


async def test_a_chat_engine_reranks_every_message(index: VectorStoreIndex) -> None:
    rerank = BGERerank(MINILM, top_n=1)
    engine = index.as_chat_engine(chat_mode="context", llm=MockLLM(), similarity_top_k=5, node_postprocessors=[rerank])
    assert [node.node_id for node in engine.chat(QUERY).source_nodes] == ["0"]
    answer = await engine.achat("Which city is the capital of Germany?")
    assert [node.node_id for node in answer.source_nodes] == ["3"]


def test_fusion_over_two_retrievers_mutates_nothing(index: VectorStoreIndex) -> None:
    before = {key: node.model_dump() for key, node in index.docstore.docs.items()}
    fusion = QueryFusionRetriever(
        [index.as_retriever(similarity_top_k=3), index.as_retriever(similarity_top_k=5)],
        llm=MockLLM(),
        num_queries=1,
        mode="reciprocal_rerank",
        similarity_top_k=5,
        use_async=False,
    )
    found = fusion.retrieve(QUERY)
    scores = [node.score for node in found]
    best = BGERerank(MINILM, top_n=2).postprocess_nodes(found, query_str=QUERY)
    assert [node.node_id for node in best] == ["0", "4"]
    assert [node.score for node in found] == scores
    assert {key: node.model_dump() for key, node in index.docstore.docs.items()} == before


def test_the_semantic_splitter_splits_where_the_topic_changes() -> None:
    text = (
        "The heart pumps blood. Blood carries oxygen. The lungs take in oxygen. "
        "Paris is the capital of France. Berlin is the capital of Germany. Rome is the capital of Italy."
    )
    splitter = SemanticSplitterNodeParser(
        embed_model=BGEEmbedding(MINILM), buffer_size=0, breakpoint_percentile_threshold=80
    )
    chunks = [node.text for node in splitter.get_nodes_from_documents([Document(text=text)])]
    assert len(chunks) == 2
    assert "lungs" in chunks[0]
    assert chunks[1].startswith("Paris")


def test_upserts_embed_only_what_changed() -> None:
    pipeline = IngestionPipeline(
        transformations=[BGEEmbedding(MINILM)],
        docstore=SimpleDocumentStore(),
        docstore_strategy=DocstoreStrategy.UPSERTS,
        vector_store=SimpleVectorStore(),
        disable_cache=True,
    )
    documents = [Document(id_=str(n), text=text) for n, text in enumerate(TEXTS)]
    before = computed()
    pipeline.run(documents=documents)
    assert computed() - before == len(TEXTS)
    changed = [*documents[:-1], Document(id_="4", text="Blood is red.")]
    pipeline.run(documents=changed)
    assert computed() - before == len(TEXTS) + 1
    pipeline.run(documents=changed)
    assert computed() - before == len(TEXTS) + 1


def test_a_partial_ranking_is_marked_on_copies(monkeypatch: Any) -> None:
    from bge_runtime.backends.packed.encoder import PackedBackend

    nodes = [NodeWithScore(node=TextNode(text=f"panda {n}"), score=1 - n / 100) for n in range(64)]
    dumps = [node.model_dump() for node in nodes]
    rerank = BGERerank(RERANKER, top_n=None, batch_size=4, time_budget_s=0.5)
    rerank.reranker.warm_up()
    forward = PackedBackend.forward

    def slow(self: Any, *given: Any) -> Any:
        time.sleep(0.1)
        return forward(self, *given)

    monkeypatch.setattr(PackedBackend, "forward", slow)
    ranked = rerank.postprocess_nodes(nodes, query_str="What is a panda?")
    assert len(ranked) == 64
    assert all(node.node.metadata["partial_ranking"] for node in ranked)
    scored = [node for node in ranked if node.score is not None]
    assert 0 < len(scored) < 64
    assert [node.text for node in ranked[len(scored) :]] == [f"panda {n}" for n in range(len(scored), 64)]
    for mode in (MetadataMode.LLM, MetadataMode.EMBED):
        assert "partial_ranking" not in ranked[0].node.get_content(metadata_mode=mode)
    assert [node.model_dump() for node in nodes] == dumps


def test_long_nodes_count_by_their_best_passage() -> None:
    long = "Stock prices fell on Monday. " * 300 + TEXTS[0]
    nodes = [NodeWithScore(node=TextNode(text=text)) for text in ("Rivers carry water.", long, "It rained.")]
    rerank = BGERerank(MINILM, top_n=1, long_document="max_passage", truncation="error")
    assert rerank.postprocess_nodes(nodes, query_str=QUERY)[0].text == long
