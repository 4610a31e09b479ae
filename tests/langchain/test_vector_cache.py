"""The runtime's vector cache through LangChain."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.load import dumps

from langchain_bge import BGEEmbeddings
from tests.contracts.cache_contract import CacheContract


@pytest.mark.usefixtures("hub_cache")
class TestVectorCache(CacheContract):
    build = staticmethod(BGEEmbeddings)

    @staticmethod
    def documents(embeddings: Any, texts: list[str]) -> list[list[float]]:
        return embeddings.embed_documents(texts)

    @staticmethod
    def query(embeddings: Any, text: str) -> list[float]:
        return embeddings.embed_query(text)

    def test_a_dump_leaves_it_out(self, tmp_path: Any) -> None:
        dump = dumps(BGEEmbeddings(vector_cache=tmp_path / "v.sqlite"))
        assert "v.sqlite" not in dump
