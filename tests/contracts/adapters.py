"""What a test module must provide so that it can inherit the contracts.

An adapter hides how an integration spells its calls; the contracts speak the runtime's words only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, Self

__all__ = ["EmbedderAdapter", "RankedRow", "RerankerAdapter"]

RankedRow = tuple[int, float]


class _Adapter(ABC):
    """Holds the object under test in `subject`; an adapter over a copy of it is `type(self)(copy)`."""

    def __init__(self, subject: Any) -> None:
        self.subject = subject

    @classmethod
    @abstractmethod
    def make(cls, **options: Any) -> Self:
        """Build the object under test; `options` are named as `bge_runtime` names them."""


class EmbedderAdapter(_Adapter):
    """An embedding class under test. Without `model=`, `make` takes BAAI/bge-small-en-v1.5."""

    @abstractmethod
    def embed_queries(self, texts: list[str]) -> Sequence[Sequence[float]]: ...

    @abstractmethod
    def embed_documents(self, texts: list[str]) -> Sequence[Sequence[float]]: ...

    @abstractmethod
    async def aembed_queries(self, texts: list[str]) -> Sequence[Sequence[float]]: ...

    @abstractmethod
    async def aembed_documents(self, texts: list[str]) -> Sequence[Sequence[float]]: ...

    @abstractmethod
    def identity(self) -> str: ...


class RerankerAdapter(_Adapter):
    """A reranking class under test. Without `model=`, `make` takes BAAI/bge-reranker-base.

    `rank` returns (index in the input, score), best first. An integration whose `top_n` is an option of the
    constructor builds a copy in `rank`.
    """

    @abstractmethod
    def rank(
        self,
        query: str,
        documents: Iterable[str],
        *,
        top_n: int | None = None,
        score_threshold: float | None = None,
    ) -> list[RankedRow]: ...

    @abstractmethod
    async def arank(self, query: str, documents: Iterable[str]) -> list[RankedRow]: ...

    def scores(self, query: str, documents: Sequence[str]) -> list[float]:
        """Scores in input order."""
        return [score for _, score in sorted(self.rank(query, documents))]
