"""What a run writes into the metadata of documents: on copies, in place of what an earlier run wrote."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from langchain_core.documents import Document

__all__ = ["RERANKING", "RETRIEVAL", "annotated"]

# The keys that each stage writes, all of which it takes away first.
RETRIEVAL = frozenset({"retrieval_rank", "retrieval_score"})
RERANKING = frozenset({"relevance_score", "partial_ranking"})


def annotated(document: Document, notes: Mapping[str, Any], replaced: Collection[str]) -> Document:
    """Return a copy that shares nothing that can change with the document.

    Args:
        document: Stays as it is.
        notes: Go into the copy's metadata.
        replaced: Keys that the copy has from the notes or not at all.
    """
    try:
        copy = document.model_copy(deep=True)
    except Exception:  # noqa: BLE001 - a lock or an open file in the metadata: what cannot be copied is shared
        copy = document.model_copy()
    copy.metadata = {key: value for key, value in copy.metadata.items() if key not in replaced} | dict(notes)
    return copy
