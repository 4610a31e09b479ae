"""The contracts of embedders and rerankers, kept by those whose model a server runs."""

from __future__ import annotations

import json
from typing import Any, Self

import pytest

import bge_runtime
from tests.checkpoints.hub_cache import POISON
from tests.contracts.embedder_contract import EmbedderContract
from tests.contracts.reranker_contract import DOCUMENTS, QUERY, RerankerContract
from tests.langchain.test_contract import LangChainEmbedder, RerankMethod
from tests.llamaindex.test_contract import LlamaIndexEmbedder, LlamaIndexReranker
from tests.runtime.embedding.test_embedder import RuntimeEmbedder
from tests.runtime.reranking.test_reranker import RuntimeReranker

pytestmark = [pytest.mark.enable_socket, pytest.mark.slow]

# What a server is started with; all else is said here.
SETTLED = ("max_length", "query_instruction", "document_instruction", "device", "precision", "backend")


class Remote:
    """Makes an object over the server, which runs the model with the options that are its to settle."""

    address: str
    default: str
    settled: tuple[str, ...] = SETTLED

    @classmethod
    def make(cls, *, model: str | None = None, **options: Any) -> Self:
        settled = {
            name: str.__str__(value) if isinstance(value, str) else value
            for name, value in options.items()
            if name in cls.settled
        }
        own = {name: value for name, value in options.items() if name not in cls.settled}
        name = model or cls.default
        asked = f"{name}?{json.dumps(settled)}" if settled else name
        return super().make(model=asked, base_url=cls.address, **own)  # type: ignore[misc]


class RemoteEmbedding(EmbedderContract):
    """All of it, but for what a server says with its first answer instead of the constructor."""

    kind: type

    @pytest.fixture
    def adapter(self, server):
        class Adapter(Remote, self.kind):
            address, default = server, "BAAI/bge-small-en-v1.5"
            settled = (*SETTLED, "normalize")

        return Adapter

    def test_an_unknown_bare_name_is_refused_at_construction(self, adapter):
        with pytest.raises(bge_runtime.ModelNotFoundError, match=r"BAAI/bge-small-en-v1\.5"):
            adapter.make(model="bge-smal-en-v1.5").embed_documents(["panda"])

    @pytest.mark.parametrize(("option", "value"), [("batch_size", 0), ("truncation", "maybe"), ("truncate_dim", 0)])
    def test_a_wrong_option_is_refused_at_construction(self, adapter, option, value):
        with pytest.raises(bge_runtime.ConfigurationError, match=option):
            adapter.make(**{option: value})

    def test_more_dimensions_than_there_are_are_refused_with_the_first_answer(self, adapter):
        with pytest.raises(bge_runtime.ConfigurationError, match="truncate_dim"):
            adapter.make(truncate_dim=385).embed_documents(["panda"])

    def test_two_instructions_share_one_copy_of_the_weights(self, adapter, hub_cache, fresh_store):
        adapter.make().embed_queries(["panda"])
        adapter.make(truncate_dim=64, batch_size=3).embed_documents(["panda"])
        assert [each.backend for each in bge_runtime.loaded_models()] == ["remote"]


class RemoteReranking(RerankerContract):
    """All of it, but for what a server says with its first answer instead of the constructor."""

    kind: type

    @pytest.fixture
    def adapter(self, server):
        class Adapter(Remote, self.kind):
            address, default = server, "BAAI/bge-reranker-base"

        return Adapter

    def test_an_unknown_model_is_answered_with_the_nearest_name(self, adapter):
        with pytest.raises(bge_runtime.ModelNotFoundError, match="BAAI/bge-reranker-base"):
            adapter.make(model="bge-reranker-bas").rank(QUERY, ["panda"])

    @pytest.mark.parametrize(("option", "value"), [("batch_size", 0), ("truncation", "no")])
    def test_a_wrong_option_is_refused_at_construction(self, adapter, option, value):
        with pytest.raises(bge_runtime.ConfigurationError, match=option):
            adapter.make(**{option: value})

    def test_rerankers_with_other_options_share_the_weights(self, adapter, hub_cache, fresh_store):
        adapter.make(normalize=True).rank(QUERY, ["panda"])
        adapter.make(normalize=False, batch_size=3).rank(QUERY, ["panda"])
        assert [each.backend for each in bge_runtime.loaded_models()] == ["remote"]

    @pytest.mark.parametrize("options", [{}, {"score_threshold": -1e9}], ids=["all", "threshold"])
    def test_a_score_that_is_not_finite_is_an_error_that_names_the_document(self, adapter, poisoned, options):
        reranker = adapter.make(model=poisoned, normalize=False)
        # By its text: the place is that in the request, in which calls and sorted inputs are put together.
        with pytest.raises(bge_runtime.BackendError, match=f"'the {POISON} today'"):
            reranker.rank(QUERY, [DOCUMENTS[1], f"the {POISON} today", *DOCUMENTS[4:]], **options)
        assert len(reranker.rank(QUERY, DOCUMENTS, top_n=2, **options)) == 2

    async def test_async_calls_name_it_too(self, adapter, poisoned):
        with pytest.raises(bge_runtime.BackendError, match=f"'{POISON}'"):
            await adapter.make(model=poisoned, normalize=False).arank(QUERY, ["cat", POISON])


class TestEmbedder(RemoteEmbedding):
    kind = RuntimeEmbedder


class TestReranker(RemoteReranking):
    kind = RuntimeReranker


class TestLangChainEmbeddings(RemoteEmbedding):
    kind = LangChainEmbedder


class TestLangChainRerank(RemoteReranking):
    kind = RerankMethod


class TestLlamaIndexEmbedding(RemoteEmbedding):
    kind = LlamaIndexEmbedder


class TestLlamaIndexRerank(RemoteReranking):
    kind = LlamaIndexReranker
