"""The contracts that every embedding and reranking class of this project keeps."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Self

import pytest
from llama_index.core.schema import NodeWithScore, TextNode

from llamaindex_bge import BGEEmbedding, BGERerank
from tests.contracts.adapters import EmbedderAdapter, RankedRow, RerankerAdapter
from tests.contracts.decoder_contract import DecoderContract
from tests.contracts.embedder_contract import EmbedderContract
from tests.contracts.reranker_contract import RerankerContract


class LlamaIndexEmbedder(EmbedderAdapter):
    @classmethod
    def make(cls, **options: Any) -> Self:
        if "document_instruction" in options:
            options["text_instruction"] = options.pop("document_instruction")
        return cls(BGEEmbedding(**options))

    def embed_queries(self, texts: list[str]) -> list[list[float]]:
        return [self.subject.get_query_embedding(text) for text in texts]

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return self.subject.get_text_embedding_batch(texts)

    async def aembed_queries(self, texts: list[str]) -> list[list[float]]:
        return list(await asyncio.gather(*(self.subject.aget_query_embedding(text) for text in texts)))

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        return await self.subject.aget_text_embedding_batch(texts)

    def identity(self) -> str:
        return self.subject.embedder.identity


class LlamaIndexReranker(RerankerAdapter):
    @classmethod
    def make(cls, **options: Any) -> Self:
        return cls(BGERerank(**{"top_n": None, **options}))

    def rank(
        self,
        query: str,
        documents: Iterable[str],
        *,
        top_n: int | None = None,
        score_threshold: float | None = None,
    ) -> list[RankedRow]:
        reranker = BGERerank(reranker=self.subject.reranker, top_n=top_n, score_threshold=score_threshold)
        nodes = _nodes(documents)
        return _rows(nodes, reranker.postprocess_nodes(nodes, query_str=query))

    async def arank(self, query: str, documents: Iterable[str]) -> list[RankedRow]:
        nodes = _nodes(documents)
        return _rows(nodes, await self.subject.apostprocess_nodes(nodes, query_str=query))


def _nodes(documents: Any) -> Any:
    """Wrap documents; `model_construct` lets through what `TextNode` itself would refuse."""
    if not isinstance(documents, list):
        return documents
    nodes = [TextNode(text="") for _ in documents]
    return [
        NodeWithScore(node=TextNode.model_construct(**{**dict(node), "text": document}), score=0.5)
        for node, document in zip(nodes, documents, strict=True)
    ]


def _rows(nodes: list[NodeWithScore], reranked: list[NodeWithScore]) -> list[RankedRow]:
    positions = {node.node_id: index for index, node in enumerate(nodes)}
    return [(positions[node.node_id], node.score) for node in reranked]


class TestEmbedding(EmbedderContract):
    @pytest.fixture
    def adapter(self) -> type[EmbedderAdapter]:
        return LlamaIndexEmbedder


class TestDecoders(DecoderContract):
    @pytest.fixture
    def adapter(self) -> type[EmbedderAdapter]:
        return LlamaIndexEmbedder


class TestRerank(RerankerContract):
    @pytest.fixture
    def adapter(self) -> type[RerankerAdapter]:
        return LlamaIndexReranker
