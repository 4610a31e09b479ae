"""The contracts that every embedding and reranking class of this project keeps."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Self

import pytest
from langchain_core.documents import Document

from langchain_bge import BGEEmbeddings, BGERerank
from tests.contracts.adapters import EmbedderAdapter, RankedRow, RerankerAdapter
from tests.contracts.decoder_contract import DecoderContract
from tests.contracts.embedder_contract import EmbedderContract
from tests.contracts.reranker_contract import RerankerContract


class LangChainEmbedder(EmbedderAdapter):
    @classmethod
    def make(cls, **options: Any) -> Self:
        return cls(BGEEmbeddings(**options))

    def embed_queries(self, texts: list[str]) -> list[list[float]]:
        return [self.subject.embed_query(text) for text in texts]

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return self.subject.embed_documents(texts)

    async def aembed_queries(self, texts: list[str]) -> list[list[float]]:
        return list(await asyncio.gather(*(self.subject.aembed_query(text) for text in texts)))

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        return await self.subject.aembed_documents(texts)

    def identity(self) -> str:
        return self.subject.embedder.identity


class RerankMethod(RerankerAdapter):
    """`rerank()`, over strings."""

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
        limited = self.subject.model_copy(update={"score_threshold": score_threshold})
        return [(row["index"], row["relevance_score"]) for row in limited.rerank(documents, query, top_n=top_n)]

    async def arank(self, query: str, documents: Iterable[str]) -> list[RankedRow]:
        return [(row["index"], row["relevance_score"]) for row in await self.subject.arerank(documents, query)]


class Compressor(RerankMethod):
    """`compress_documents()`, over Documents."""

    def rank(
        self,
        query: str,
        documents: Iterable[str],
        *,
        top_n: int | None = None,
        score_threshold: float | None = None,
    ) -> list[RankedRow]:
        limited = self.subject.model_copy(update={"top_n": top_n, "score_threshold": score_threshold})
        return _rows(limited.compress_documents(_documents(documents), query))

    async def arank(self, query: str, documents: Iterable[str]) -> list[RankedRow]:
        return _rows(await self.subject.acompress_documents(_documents(documents), query))


def _documents(texts: Any) -> Any:
    """Wrap texts; `model_construct` lets through what `Document` itself would refuse."""
    if not isinstance(texts, list):
        return texts
    return [
        Document.model_construct(page_content=text, metadata={"index": index}, id=None, type="Document")
        for index, text in enumerate(texts)
    ]


def _rows(documents: Iterable[Document]) -> list[RankedRow]:
    return [(document.metadata["index"], document.metadata["relevance_score"]) for document in documents]


class TestEmbeddings(EmbedderContract):
    @pytest.fixture
    def adapter(self) -> type[EmbedderAdapter]:
        return LangChainEmbedder


class TestDecoders(DecoderContract):
    @pytest.fixture
    def adapter(self) -> type[EmbedderAdapter]:
        return LangChainEmbedder


class TestRerankMethod(RerankerContract):
    @pytest.fixture
    def adapter(self) -> type[RerankerAdapter]:
        return RerankMethod


class TestCompressor(RerankerContract):
    @pytest.fixture
    def adapter(self) -> type[RerankerAdapter]:
        return Compressor
