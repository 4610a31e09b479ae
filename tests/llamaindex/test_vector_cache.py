"""The runtime's vector cache through LlamaIndex."""

from __future__ import annotations

from typing import Any

import pytest

from llamaindex_bge import BGEEmbedding
from tests.contracts.cache_contract import CacheContract


@pytest.mark.usefixtures("hub_cache")
class TestVectorCache(CacheContract):
    build = staticmethod(BGEEmbedding)

    @staticmethod
    def documents(embeddings: Any, texts: list[str]) -> list[list[float]]:
        return embeddings.get_text_embedding_batch(texts)

    @staticmethod
    def query(embeddings: Any, text: str) -> list[float]:
        return embeddings.get_query_embedding(text)

    def test_it_is_no_part_of_what_changes_vectors(self, tmp_path: Any) -> None:
        assert BGEEmbedding(vector_cache=tmp_path / "v.sqlite").to_dict() == BGEEmbedding().to_dict()
