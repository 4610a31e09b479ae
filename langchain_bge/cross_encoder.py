"""LangChain's pair-scoring interface over the runtime's `Reranker`."""

from __future__ import annotations

from typing import ClassVar

from langchain_bge.rerank import ScoringModel

try:
    from langchain_core.cross_encoders import BaseCrossEncoder
except ImportError:  # langchain-core before 1.2.20
    from abc import ABC as BaseCrossEncoder  # type: ignore[assignment]

__all__ = ["BGECrossEncoder"]


class BGECrossEncoder(ScoringModel, BaseCrossEncoder):
    """A BGE reranker as LangChain's `BaseCrossEncoder`, for code that is built on `CrossEncoderReranker`.

    For new code `BGERerank` is simpler, and returns the scores.

    Key init args:
        model: As in `BGERerank`.
        normalize: Whether scores go through a sigmoid, 0 to 1; `False` returns raw logits.
        model_kwargs: Arguments of sentence-transformers' `CrossEncoder`; entries with a field go there.

    Instantiate:
        ```python
        from langchain_bge import BGECrossEncoder

        encoder = BGECrossEncoder(model="BAAI/bge-reranker-base")
        scores = encoder.score([("Which organ moves blood?", "The heart pumps blood.")])
        ```
    """

    retired: ClassVar[dict[str, str]] = {"client": "Pass reranker=bge_runtime.Reranker(...) to share a loaded model."}

    def score(self, text_pairs: list[tuple[str, str]]) -> list[float]:
        """Score (query, document) pairs, in input order; pairs of many queries share batches.

        Raises:
            InputError: A pair is not two strings.
        """
        scores: list[float] = self.reranker.score_pairs(text_pairs).tolist()
        return scores

    async def ascore(self, text_pairs: list[tuple[str, str]]) -> list[float]:
        """Score pairs without blocking the event loop; see `score`."""
        scores: list[float] = (await self.reranker.ascore_pairs(text_pairs)).tolist()
        return scores
