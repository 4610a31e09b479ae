"""Which kind of store a folder holds."""

from __future__ import annotations

from pathlib import Path

from bge_runtime import ConfigurationError, InputError, index_record
from bge_runtime.evaluation.stores.base import Store
from bge_runtime.evaluation.stores.chroma import Chroma
from bge_runtime.evaluation.stores.faiss_files import LangChainFaiss, LlamaIndexFaiss
from bge_runtime.evaluation.stores.json_files import InMemory, Persisted
from bge_runtime.evaluation.stores.lance import LanceDB
from bge_runtime.evaluation.stores.qdrant import Qdrant

__all__ = ["KINDS", "recognised"]

KINDS: tuple[type[Store], ...] = (LangChainFaiss, LlamaIndexFaiss, Persisted, InMemory, Chroma, Qdrant, LanceDB)


def recognised(folder: Path, collection: str | None, scratch: Path, *, allow_pickle: bool) -> Store:
    """Return the one index of a folder, or the one that is named.

    Args:
        folder: What a store wrote.
        collection: Name of a collection, a table, or a file without its ending; `None` where there is one only.
        scratch: Folder for files that are needed for a moment.
        allow_pickle: Whether classes may be loaded that a pickled file names.

    Raises:
        InputError: It is no folder with an index.
        ConfigurationError: It holds several, and none or another is named.
    """
    if not folder.is_dir():
        what = "is a file: name the folder that it lies in" if folder.exists() else "does not exist"
        raise InputError(f"source={str(folder)!r} {what}. Name the folder in which a store keeps its index.")
    found = {kind: names for kind in KINDS if (names := kind.names(folder))}
    if not found:
        known = ", ".join(kind.kind for kind in KINDS)
        raise InputError(
            f"source={str(folder)!r} holds no index that is known by its files. Known are: {known}. "
            "Of another store, fill a new index from the source documents."
        )
    if len(found) > 1:
        kinds = " and ".join(kind.kind for kind in found)
        raise ConfigurationError(
            f"source={str(folder)!r} holds indexes of several kinds: {kinds}. Move each into a folder of its own."
        )
    [(kind, names)] = found.items()
    return kind(folder, _chosen(folder, names, collection), scratch, allow_pickle=allow_pickle)


def _chosen(folder: Path, names: list[str], collection: str | None) -> str:
    if collection in names:
        return str(collection)
    if collection is not None and not (len(names) == 1 and index_record(folder, collection=collection)):
        raise ConfigurationError(f"collection={collection!r} is not in {str(folder)!r}, which holds {names}.")
    if len(names) > 1:
        raise ConfigurationError(f"source={str(folder)!r} holds several indexes: {names}. Name one as collection.")
    return names[0]
