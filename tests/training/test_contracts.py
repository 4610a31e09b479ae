"""What training hands over keeps the adapters' contracts, by its path alone."""

from __future__ import annotations

from typing import Any, Self

import pytest

from bge_runtime.training import choose_mix, train_reranker
from tests.contracts.adapters import EmbedderAdapter, RerankerAdapter
from tests.contracts.embedder_contract import EmbedderContract
from tests.contracts.reranker_contract import RerankerContract
from tests.langchain.test_contract import Compressor, LangChainEmbedder
from tests.llamaindex.test_contract import LlamaIndexEmbedder, LlamaIndexReranker
from tests.training.toys import quick, toy_data, toy_guard

pytestmark = pytest.mark.slow
MODEL = "BAAI/bge-small-en-v1.5"


@pytest.fixture(scope="session")
def folders(tuned, tmp_path_factory) -> dict[str, str]:
    place = tmp_path_factory.mktemp("handed")
    options = {"guard": toy_guard(), "force": True}
    mixed = choose_mix(MODEL, tuned.folder, place / "mixed", data=toy_data(negatives=2), weights=(0.5,), **options)
    reranker = train_reranker(
        toy_data(negatives=3),
        place / "reranker",
        model="BAAI/bge-reranker-base",
        embedder=MODEL,
        settings=quick(negatives=3),
        **options,
    )
    return {"tuned": str(tuned.folder), "mixed": str(mixed.folder), "reranker": str(reranker.folder)}


def by_path(adapter: type[Any], folder: str) -> type[Any]:
    """Return the adapter with a folder in the place of its default model."""

    class OfFolder(adapter):
        @classmethod
        def make(cls, **options: Any) -> Self:
            return super().make(**{"model": folder, **options})

    return OfFolder


@pytest.mark.parametrize("framework", [LangChainEmbedder, LlamaIndexEmbedder])
@pytest.mark.parametrize("handed", ["tuned", "mixed"])
class TestEmbedders(EmbedderContract):
    @pytest.fixture
    def adapter(self, framework, handed, folders) -> type[EmbedderAdapter]:
        return by_path(framework, folders[handed])


@pytest.mark.parametrize("framework", [Compressor, LlamaIndexReranker])
class TestRerankers(RerankerContract):
    @pytest.fixture
    def adapter(self, framework, folders) -> type[RerankerAdapter]:
        return by_path(framework, folders["reranker"])
