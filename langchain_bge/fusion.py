"""Several ranked lists to one, without duplicates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence

from langchain_core.documents import Document

from langchain_bge.notes import RETRIEVAL, annotated

__all__ = ["Hit", "fused"]

# Reciprocal rank fusion's constant: Cormack, Clarke and Büttcher, SIGIR 2009.
RRF_K = 60

Hit = tuple[Document, float | None]


def fused(lists: Sequence[Sequence[Hit]], replaced: Collection[str] = ()) -> list[Document]:
    """Return copies of all documents, best first, with `retrieval_rank` and `retrieval_score` in their metadata.

    Of documents with one text the best-ranked stays, and so it is with those that have one id in one list: an id says
    nothing outside its source. Ranks count what stays. One list keeps its order and scores; several are fused by
    reciprocal rank: the sum over lists of 1 / (60 + rank).

    Args:
        lists: Documents with the store's score, best first, of each source.
        replaced: Further keys of metadata that the copies lack.
    """
    replaced = {*RETRIEVAL, *replaced}
    distinct = [_distinct(hits) for hits in lists]
    if len(distinct) == 1:
        return [_ranked(document, rank, score, replaced) for rank, (document, score) in enumerate(distinct[0], 1)]
    ranks: dict[str, list[int]] = defaultdict(list)
    best: dict[str, tuple[int, Document]] = {}
    for hits in distinct:
        for rank, (document, _) in enumerate(hits, 1):
            text = document.page_content
            ranks[text].append(rank)
            if text not in best or rank < best[text][0]:
                best[text] = rank, document
    # Summed from the smallest on, so that equal ranks in another order of the sources give an equal score.
    scores = {text: sum(sorted(1 / (RRF_K + rank) for rank in found)) for text, found in ranks.items()}
    order = sorted(scores, key=lambda text: -scores[text])
    return [_ranked(best[text][1], rank, scores[text], replaced) for rank, text in enumerate(order, 1)]


def _distinct(hits: Iterable[Hit]) -> list[Hit]:
    """Return a source's documents without those whose id or text came before: they must not count twice."""
    ids: set[str] = set()
    texts: set[str] = set()
    kept = []
    for document, score in hits:
        if document.id in ids or document.page_content in texts:
            continue
        if document.id is not None:
            ids.add(document.id)
        texts.add(document.page_content)
        kept.append((document, score))
    return kept


def _ranked(document: Document, rank: int, score: float | None, replaced: Collection[str]) -> Document:
    found = {"retrieval_rank": rank} if score is None else {"retrieval_rank": rank, "retrieval_score": score}
    return annotated(document, found, replaced)
