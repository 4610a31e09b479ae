"""Guards an index against an embedder that did not fill it."""

from __future__ import annotations

import os

import bge_runtime
from bge_runtime import ConfigurationError, OnMismatch
from llamaindex_bge.embeddings import BGEEmbedding

__all__ = ["bind_index"]


def bind_index(
    path: str | os.PathLike[str],
    embed_model: BGEEmbedding,
    *,
    collection: str | None = None,
    on_mismatch: OnMismatch = "raise",
) -> BGEEmbedding:
    """Record which embedding model fills an index, or check that it is the one that did.

    Works for LlamaIndex's own persisted storage and for every vector store that keeps its index in a folder or a
    file: the record lies there too. The query instruction may change; whatever changes the vectors of documents
    may not.

    Args:
        path: Folder or file of the index, such as the `persist_dir`; it need not exist yet.
        embed_model: The embedding model.
        collection: Name of the index, where several share a folder.
        on_mismatch: `raise`; `warn` and go on; or `replace` the record, for an index that is to be filled anew.

    Returns:
        The embedding model.

    Raises:
        IndexIdentityError: Another one filled the index.
        ConfigurationError: An argument has a value that is not allowed.

    Examples:
        ```python
        Settings.embed_model = bind_index("storage", BGEEmbedding(model_name="BAAI/bge-small-en-v1.5"))
        index = load_index_from_storage(StorageContext.from_defaults(persist_dir="storage"))
        ```
    """
    if not isinstance(embed_model, BGEEmbedding):
        raise ConfigurationError(f"{embed_model!r} has no identity to record. Pass a BGEEmbedding.")
    bge_runtime.bind_index(path, embed_model.embedder, collection=collection, on_mismatch=on_mismatch)
    return embed_model
