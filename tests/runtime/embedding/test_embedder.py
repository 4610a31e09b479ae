"""The contract, on `bge_runtime.Embedder` itself."""

from __future__ import annotations

import pytest

import bge_runtime
from tests.contracts.adapters import EmbedderAdapter
from tests.contracts.decoder_contract import DecoderContract
from tests.contracts.embedder_contract import EmbedderContract


class RuntimeEmbedder(EmbedderAdapter):
    @classmethod
    def make(cls, **options):
        return cls(bge_runtime.Embedder(**options))

    def embed_queries(self, texts):
        return self.subject.encode_queries(texts)

    def embed_documents(self, texts):
        return self.subject.encode_documents(texts)

    async def aembed_queries(self, texts):
        return await self.subject.aencode_queries(texts)

    async def aembed_documents(self, texts):
        return await self.subject.aencode_documents(texts)

    def identity(self):
        return self.subject.identity


class TestEmbedder(EmbedderContract):
    @pytest.fixture
    def adapter(self):
        return RuntimeEmbedder


class TestDecoders(DecoderContract):
    @pytest.fixture
    def adapter(self):
        return RuntimeEmbedder
