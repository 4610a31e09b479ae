"""Several ranked lists to one, without duplicates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from langchain_core.documents import Document

__all__ = ["Hit", "deduplicated", "fused", "limited"]

# Reciprocal rank fusion's constant: Cormack, Clarke and Büttcher, SIGIR 2009.
RRF_K = 60

Hit = tuple[Document, float | None]


def fused(lists: Sequence[Sequence[Hit]]) -> list[Document]:
    """Return copies of all documents, best first, with `retrieval_rank` and `retrieval_score` in their metadata.

    One list keeps its order and scores; several are fused by reciprocal rank: the sum over lists of 1 / (60 + rank).

    Args:
        lists: Documents with the store's score, best first, of each source.
    """
    if len(lists) == 1:
        return [_ranked(document, rank, score) for rank, (document, score) in enumerate(lists[0], 1)]
    scores: dict[str, float] = defaultdict(float)
    first: dict[str, Document] = {}
    for hits in lists:
        for rank, (document, _) in enumerate(_distinct(hits), 1):
            key = document.id or document.page_content
            scores[key] += 1 / (RRF_K + rank)
            first.setdefault(key, document)
    order = sorted(scores, key=lambda key: -scores[key])
    return [_ranked(first[key], rank, scores[key]) for rank, key in enumerate(order, 1)]


def deduplicated(documents: Iterable[Document]) -> list[Document]:
    """Return the documents without those whose id or text came before."""
    ids: set[str] = set()
    texts: set[str] = set()
    kept = []
    for document in documents:
        if document.id in ids or document.page_content in texts:
            continue
        if document.id is not None:
            ids.add(document.id)
        texts.add(document.page_content)
        kept.append(document)
    return kept


def limited(documents: Sequence[Document], k: int | None, score_threshold: float | None) -> list[Document]:
    """Return at most `k` documents whose `relevance_score` is at least the threshold."""
    if score_threshold is not None:
        documents = [each for each in documents if each.metadata.get("relevance_score", 0.0) >= score_threshold]
    return list(documents[:k])


def _distinct(hits: Iterable[Hit]) -> list[Hit]:
    """A document that a source returns twice must not count twice."""
    seen: set[str] = set()
    kept = []
    for document, score in hits:
        key = document.id or document.page_content
        if key not in seen:
            seen.add(key)
            kept.append((document, score))
    return kept


def _ranked(document: Document, rank: int, score: float | None) -> Document:
    found = {"retrieval_rank": rank} if score is None else {"retrieval_rank": rank, "retrieval_score": score}
    return document.model_copy(update={"metadata": {**document.metadata, **found}})
