"""Guards an index against an embedder that did not fill it."""

from __future__ import annotations

import os
from typing import TypeVar

from langchain_core.vectorstores import VectorStore

import bge_runtime
from bge_runtime import ConfigurationError, OnMismatch
from langchain_bge.embeddings import BGEEmbeddings

__all__ = ["bind_index"]

Bound = TypeVar("Bound", BGEEmbeddings, VectorStore)


def bind_index(
    path: str | os.PathLike[str],
    embeddings: Bound,
    *,
    collection: str | None = None,
    on_mismatch: OnMismatch = "raise",
) -> Bound:
    """Record which embeddings fill an index, or check that they are the ones that did.

    Works for every store that keeps its index in a folder or a file: the record lies there too. The query
    instruction may change; whatever changes the vectors of documents may not.

    Args:
        path: Folder or file of the index; it need not exist yet.
        embeddings: The embeddings, or a vector store that holds them.
        collection: Name of the index, where several share a folder.
        on_mismatch: `raise`; `warn` and go on; or `replace` the record, for an index that is to be filled anew.

    Returns:
        What was passed as `embeddings`.

    Raises:
        IndexIdentityError: Others filled the index.
        ConfigurationError: An argument has a value that is not allowed.

    Examples:
        ```python
        store = Chroma(persist_directory="index", embedding_function=bind_index("index", embeddings))
        ```
    """
    found = embeddings.embeddings if isinstance(embeddings, VectorStore) else embeddings
    if not isinstance(found, BGEEmbeddings):
        raise ConfigurationError(f"{found!r} has no identity to record. Pass BGEEmbeddings, or a store that uses them.")
    bge_runtime.bind_index(path, found.embedder, collection=collection, on_mismatch=on_mismatch)
    return embeddings
