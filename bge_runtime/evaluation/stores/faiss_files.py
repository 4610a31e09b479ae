"""FAISS indexes, in the layouts of LangChain and of LlamaIndex: the new one has the old one's rows and settings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bge_runtime import ConfigurationError, InputError
from bge_runtime.evaluation.stores.base import Row, Store, Vectors, client, digest, no_text, pages, read_json
from bge_runtime.evaluation.stores.nodes import embedded_text
from bge_runtime.evaluation.stores.pickled import Record, unpickled

__all__ = ["LangChainFaiss", "LlamaIndexFaiss"]

_FAISS = "faiss-cpu"
_CLASSES = [
    (package, name)
    for package in ("langchain", "langchain_classic", "langchain_community", "langchain_core")
    for name in ("Document", "InMemoryDocstore")
]


class LangChainFaiss(Store):
    """`NAME.faiss` with the vectors and `NAME.pkl` with documents and ids, which is copied as it is."""

    kind: ClassVar[str] = "LangChain FAISS"

    @classmethod
    def names(cls, folder: Path) -> list[str]:
        """Return the names of the pairs of files."""
        return sorted(file.stem for file in folder.glob("*.faiss") if file.with_suffix(".pkl").is_file())

    def left_behind(self) -> list[str]:
        """Return nothing: the other pairs are copied."""
        return []

    def owns(self, file: str) -> bool:
        """Return whether it is the file of vectors."""
        return file == f"{self.name}.faiss"

    def rows(self) -> Iterator[Row]:
        """Yield documents in the order of their vectors."""
        for name, document in self._documents():
            text = document.get("page_content")
            if not isinstance(text, str):
                raise no_text(self, name, "has no page_content")
            yield Row(name, text, digest(document.get("metadata")))

    def write(self, target: Path, vectors: Vectors) -> list[str]:
        """Write the vectors; the documents are copied."""
        old = _read(self.folder / f"{self.name}.faiss")
        rows = list(self.rows())
        _check_count(self, old, len(rows))
        self.copy_rest(target)
        _write(_filled(self, old, [row.text for row in rows], vectors), target / f"{self.name}.faiss")
        return []

    def _documents(self) -> Iterator[tuple[str, dict[str, Any]]]:
        file = self.folder / f"{self.name}.pkl"
        found = unpickled(file.read_bytes(), _CLASSES, repr(str(file)), allow_pickle=self.allow_pickle)
        try:
            docstore, names = found
            documents = docstore.fields["_dict"]
            ordered = [names[row] for row in range(len(names))]
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise ConfigurationError(
                f"{str(file)!r} is not what LangChain's FAISS.save_local writes "
                f"({type(error).__name__}: {error}). Fill a new index from the source documents."
            ) from error
        for name in ordered:
            document = documents.get(name)
            if not isinstance(document, Record):
                raise no_text(self, name, "has no document")
            yield name, document.fields


class LlamaIndexFaiss(Store):
    """LlamaIndex's persisted storage whose vectors are a FAISS index under the name of a JSON file."""

    kind: ClassVar[str] = "LlamaIndex FAISS"
    _file: ClassVar[str] = "default__vector_store.json"

    @classmethod
    def names(cls, folder: Path) -> list[str]:
        """Return `default` for a folder with a docstore and binary vectors."""
        vectors = folder / cls._file
        if not (vectors.is_file() and (folder / "docstore.json").is_file()):
            return []
        with vectors.open("rb") as stream:
            return [] if stream.read(1) in (b"{", b"") else ["default"]

    def owns(self, file: str) -> bool:
        """Return whether it is the file of vectors."""
        return file == self._file

    def rows(self) -> Iterator[Row]:
        """Yield nodes in the order of their vectors."""
        yield from self._rows(_read(self.folder / self._file))

    def write(self, target: Path, vectors: Vectors) -> list[str]:
        """Write the vectors; the docstore and everything else is copied."""
        old = _read(self.folder / self._file)
        rows = list(self._rows(old))
        _check_count(self, old, len(rows))
        self.copy_rest(target)
        _write(_filled(self, old, [row.text for row in rows], vectors), target / self._file)
        return []

    def _rows(self, index: Any) -> Iterator[Row]:
        nodes = read_json(self.folder / "docstore.json").get("docstore/data", {})
        names = self._names()
        for place in _ids(index):
            name = names.get(place)
            node = nodes.get(name, {}).get("__data__")
            text = None if node is None else embedded_text(node)
            if name is None or text is None:
                raise no_text(self, place if name is None else name, "has no text in docstore.json")
            yield Row(name, text, digest(node))

    def _names(self) -> dict[int, str]:
        """Return the node of each id that the FAISS index knows."""
        mapped = self.folder / "id_map.json"
        if mapped.is_file():  # of FaissMapVectorStore
            return {int(key): name for key, name in read_json(mapped)["faiss_id_to_node_id_map"].items()}
        stored = read_json(self.folder / "index_store.json").get("index_store/data", {})
        if len(stored) != 1:
            raise InputError(
                f"{str(self.folder / 'index_store.json')!r} holds {len(stored)} indexes over one FAISS file, so that "
                "rows cannot be told apart. Fill a new index from the source documents."
            )
        data = next(iter(stored.values()))["__data__"]
        nodes = (json.loads(data) if isinstance(data, str) else data)["nodes_dict"]
        return {int(key): name for key, name in nodes.items()}


def _faiss() -> Any:
    return client("faiss", _FAISS)


def _read(file: Path) -> Any:
    try:
        return _faiss().read_index(str(file))
    except RuntimeError as error:
        raise ConfigurationError(
            f"{str(file)!r} cannot be read by faiss ({error}). It is damaged, or was being written: "
            "try again while nothing writes to the index, or restore the file."
        ) from error


def _write(index: Any, file: Path) -> None:
    try:
        _faiss().write_index(index, str(file))
    except RuntimeError as error:
        raise OSError(f"faiss cannot write {str(file)!r}: {error}") from error


def _ids(index: Any) -> list[int]:
    """Return the id of each row."""
    faiss = _faiss()
    if isinstance(index, faiss.IndexIDMap | faiss.IndexIDMap2):
        return [int(each) for each in faiss.vector_to_array(index.id_map)]
    return list(range(index.ntotal))


def _check_count(store: Store, index: Any, rows: int) -> None:
    if index.ntotal != rows:
        raise ConfigurationError(
            f"The {store.kind} index {store.name!r} in {str(store.folder)!r} holds {index.ntotal} vectors for {rows} "
            "documents. It is damaged, or was being written: try again while nothing writes to it, "
            "or fill a new index from the source documents."
        )


def _filled(store: Store, old: Any, texts: Sequence[str], vectors: Vectors) -> Any:
    """Return an index like the old one, with the vectors of texts in its order and under its ids."""
    faiss = _faiss()
    if not isinstance(old, faiss.IndexIDMap | faiss.IndexIDMap2):
        new = _like(store, old, vectors.dimension)
        for page in pages(texts):
            new.add(vectors.of(page))
        return new
    inner = _like(store, faiss.downcast_index(old.index), vectors.dimension)
    new = type(old)(inner)
    for page in pages(zip(texts, _ids(old), strict=True)):
        read, ids = zip(*page, strict=True)
        new.add_with_ids(vectors.of(read), np.asarray(ids, dtype=np.int64))
    return new


def _like(store: Store, old: Any, dimension: int) -> Any:
    """Return an empty index of the same kind and metric."""
    faiss = _faiss()
    name = type(old).__name__
    if name in ("IndexFlat", "IndexFlatL2", "IndexFlatIP"):
        return faiss.IndexFlat(dimension, old.metric_type)
    if name == "IndexHNSWFlat":
        new = faiss.IndexHNSWFlat(dimension, old.hnsw.nb_neighbors(1), old.metric_type)
        new.hnsw.efConstruction, new.hnsw.efSearch = old.hnsw.efConstruction, old.hnsw.efSearch
        return new
    raise ConfigurationError(
        f"The {store.kind} index {store.name!r} in {str(store.folder)!r} is a faiss.{name}, whose settings depend on "
        "the vectors that it was trained with. IndexFlat and IndexHNSWFlat can be migrated, with and without "
        "IndexIDMap; fill a new index of another kind from the source documents."
    )
