"""The contract, on `bge_runtime.Reranker` itself, and what only the runtime's own class offers."""

from __future__ import annotations

import pytest

import bge_runtime
from tests.contracts.adapters import RerankerAdapter
from tests.contracts.reranker_contract import RerankerContract


class RuntimeReranker(RerankerAdapter):
    @classmethod
    def make(cls, **options):
        return cls(bge_runtime.Reranker(**options))

    def rank(self, query, documents, *, top_n=None, score_threshold=None):
        ranking = self.subject.rank(query, documents, top_n=top_n, score_threshold=score_threshold)
        return [(row.index, row.score) for row in ranking]

    async def arank(self, query, documents):
        return [(row.index, row.score) for row in await self.subject.arank(query, documents)]


class TestReranker(RerankerContract):
    @pytest.fixture
    def adapter(self):
        return RuntimeReranker
