"""Whose classes `test_defects*.py` examines: ours, or with BGE_TESTS_INCUMBENT=1 those that LangChain ships.

The test bodies are the same for both; only construction, and how the forward pass is watched, differ.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

__all__ = ["Counts", "Subjects", "choose_subjects"]

EMBEDDER = "BAAI/bge-small-en-v1.5"
RERANKER = "BAAI/bge-reranker-base"

# Forward passes, and inputs in them.
Counts = tuple[int, int]


class Subjects(ABC):
    """Builds the classes under examination."""

    distribution: str
    extra: str

    @abstractmethod
    def bge_embeddings(self, **options: Any) -> Any:
        """The class for BGE, with the arguments of `HuggingFaceBgeEmbeddings`."""

    @abstractmethod
    def embeddings(self, **options: Any) -> Any:
        """The class for any model, with the arguments of `HuggingFaceEmbeddings`."""

    @abstractmethod
    def cross_encoder(self, **options: Any) -> Any:
        """The class that scores pairs."""

    @abstractmethod
    def compressor(self, model: str = RERANKER, **options: Any) -> Any:
        """The class that reranks documents."""

    @abstractmethod
    def cached(self, embeddings: Any) -> Any:
        """The embeddings behind a cache of queries and documents."""

    @abstractmethod
    def count(self, embeddings: Any) -> Callable[[], Counts]:
        """Return a function that says what was computed since."""

    @abstractmethod
    def copies(self, *embeddings: Any) -> int:
        """How many copies of the weights these objects hold in memory."""

    @abstractmethod
    def reader(self, model: str) -> Callable[[str, int], list[float]]:
        """Return a function of text and maximum length whose result shows how much of the text was read."""


class Ours(Subjects):
    distribution = "bge-integrations"
    extra = "langchain"

    def bge_embeddings(self, **options: Any) -> Any:
        from langchain_bge import BGEEmbeddings

        return BGEEmbeddings(**options)

    embeddings = bge_embeddings

    def cross_encoder(self, **options: Any) -> Any:
        from langchain_bge import BGECrossEncoder

        return BGECrossEncoder(**options)

    def compressor(self, model: str = RERANKER, **options: Any) -> Any:
        from langchain_bge import BGERerank

        return BGERerank(model=model, **options)

    def cached(self, embeddings: Any) -> Any:
        return NamespacedCache(embeddings)

    def count(self, embeddings: Any) -> Callable[[], Counts]:
        import bge_runtime

        before = bge_runtime.stats()
        return lambda: tuple(int(bge_runtime.stats()[name] - before[name]) for name in ("batches", "inputs"))  # type: ignore[return-value]

    def copies(self, *embeddings: Any) -> int:
        import bge_runtime

        return len(bge_runtime.loaded_models())

    def reader(self, model: str) -> Callable[[str, int], list[float]]:
        return lambda text, length: self.embeddings(model=model, max_length=length).embed_documents([text])[0]


class NamespacedCache:
    """A cache as its users would write it: one place for everything, keys from `cache_namespace`."""

    def __init__(self, embeddings: Any) -> None:
        self._embeddings = embeddings
        self._vectors: dict[tuple[str, str], list[float]] = {}

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        keys = [(self._embeddings.cache_namespace("document"), text) for text in texts]
        missing = [text for key, text in zip(keys, texts, strict=True) if key not in self._vectors]
        found = self._embeddings.embed_documents(missing)
        self._vectors |= {
            (self._embeddings.cache_namespace("document"), text): row for text, row in zip(missing, found, strict=True)
        }
        return [self._vectors[key] for key in keys]

    def embed_query(self, text: str) -> list[float]:
        key = (self._embeddings.cache_namespace("query"), text)
        if key not in self._vectors:
            self._vectors[key] = self._embeddings.embed_query(text)
        return self._vectors[key]


class Incumbents(Subjects):
    distribution = "langchain-huggingface"
    extra = "full"

    def bge_embeddings(self, **options: Any) -> Any:
        from langchain_community.embeddings import HuggingFaceBgeEmbeddings

        return HuggingFaceBgeEmbeddings(**_on_cpu(options))

    def embeddings(self, **options: Any) -> Any:
        from langchain_huggingface import HuggingFaceEmbeddings

        return HuggingFaceEmbeddings(**_on_cpu(options))

    def cross_encoder(self, **options: Any) -> Any:
        from langchain_community.cross_encoders import HuggingFaceCrossEncoder

        return HuggingFaceCrossEncoder(**_on_cpu(options))

    def compressor(self, model: str = RERANKER, **options: Any) -> Any:
        from langchain_classic.retrievers.document_compressors import CrossEncoderReranker

        return CrossEncoderReranker(model=self.cross_encoder(model_name=model), **options)

    def cached(self, embeddings: Any) -> Any:
        from langchain_classic.embeddings import CacheBackedEmbeddings
        from langchain_core.stores import InMemoryByteStore

        return CacheBackedEmbeddings.from_bytes_store(
            embeddings, InMemoryByteStore(), namespace="bge", query_embedding_cache=True, key_encoder="sha256"
        )

    def count(self, embeddings: Any) -> Callable[[], Counts]:
        model = getattr(embeddings, "client", None) or embeddings._client
        sizes: list[int] = []
        model.register_forward_pre_hook(lambda module, given: sizes.append(len(given[0]["input_ids"])))
        return lambda: (len(sizes), sum(sizes))

    def copies(self, *embeddings: Any) -> int:
        return len({next(each._client.parameters()).data_ptr() for each in embeddings})

    def reader(self, model: str) -> Callable[[str, int], list[float]]:
        tokenizer = self.embeddings(model=model)._client.tokenizer
        return lambda text, length: [len(tokenizer(text, truncation=True, max_length=length)["input_ids"])]


def choose_subjects() -> Subjects:
    return Incumbents() if os.environ.get("BGE_TESTS_INCUMBENT") else Ours()


def _on_cpu(options: dict[str, Any]) -> dict[str, Any]:
    return {**options, "model_kwargs": {"device": "cpu", **options.get("model_kwargs", {})}}
