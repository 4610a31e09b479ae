"""Chroma in a folder. What is read is a copy of its database: the folder itself is neither opened nor locked."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, ClassVar

from bge_runtime import ConfigurationError
from bge_runtime.evaluation.stores.base import PAGE, Row, Store, Vectors, client, digest, no_text
from bge_runtime.evaluation.stores.nodes import embedded_text, stored_node

__all__ = ["Chroma"]

_FILE = "chroma.sqlite3"


class Chroma(Store):
    """A collection of a `PersistentClient`."""

    kind: ClassVar[str] = "Chroma"

    @classmethod
    def names(cls, folder: Path) -> list[str]:
        """Return the names of the collections."""
        if not (folder / _FILE).is_file():
            return []
        with _database(folder) as database:
            return sorted(name for (name,) in database.execute("SELECT name FROM collections"))

    def owns(self, file: str) -> bool:
        """Return whether it is the database, or the folder of a collection's graph."""
        graph = self.folder / file
        return file.startswith(_FILE) or (graph.is_dir() and (graph / "header.bin").exists())

    def rows(self) -> Iterator[Row]:
        """Yield entries in the order in which Chroma lists them."""
        with self._collection() as collection:
            for page in _pages(collection, PAGE):
                for name, text, metadata, uri in page:
                    yield Row(name, self._text(name, text, metadata), digest([text, metadata, uri]))

    def write(self, target: Path, vectors: Vectors) -> list[str]:
        """Make a collection with the same name, metadata and settings of the graph."""
        errors = client("chromadb.errors", "chromadb")
        try:
            with self._collection() as old, _opened(target) as database:
                new = database.create_collection(
                    self.name, metadata=old.metadata, configuration=_graph(old), embedding_function=None
                )
                for page in _pages(old, min(PAGE, database.get_max_batch_size())):
                    names, texts, metadatas, uris = zip(*page, strict=True)
                    read = [self._text(name, text, metadata) for name, text, metadata, _ in page]
                    new.add(
                        ids=list(names),
                        embeddings=vectors.of(read),
                        documents=list(texts),
                        metadatas=None if not any(metadatas) else list(metadatas),
                        uris=None if not any(uris) else list(uris),
                    )
                function = (old.configuration_json.get("embedding_function") or {}).get("name")
        except errors.ChromaError as error:
            raise OSError(f"Chroma cannot write {str(target)!r}: {error}") from error
        self.copy_rest(target)
        # Chroma's own function is another embedder than the one that fills the new index.
        return [f"the collection's embedding function {function!r}"] if function not in (None, "default") else []

    def _text(self, name: str, text: str | None, metadata: dict[str, Any] | None) -> str:
        try:
            node = stored_node(metadata or {})
        except ValueError as error:
            raise no_text(self, name, f"has a node that cannot be read ({error})") from error
        read = text if node is None else embedded_text(node, text)
        if not isinstance(read, str):
            raise no_text(self, name, "was added without a document")
        return read

    @contextmanager
    def _collection(self) -> Iterator[Any]:
        """Open the collection in a copy of the database, of one moment."""
        copy = Path(tempfile.mkdtemp(dir=self.scratch))
        try:
            with _database(self.folder) as source, closing(sqlite3.connect(copy / _FILE)) as target:
                source.backup(target)
            with _opened(copy) as database:
                yield database.get_collection(self.name, embedding_function=None)
        finally:
            shutil.rmtree(copy, ignore_errors=True)


@contextmanager
def _database(folder: Path) -> Iterator[sqlite3.Connection]:
    """Open Chroma's database for reading."""
    file = folder / _FILE
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as database:
            yield database
    except sqlite3.DatabaseError as error:
        raise ConfigurationError(
            f"{str(file)!r} cannot be read as a database of Chroma ({error}). "
            "Check that it is one, and that you may read it."
        ) from error


@contextmanager
def _opened(folder: Path) -> Iterator[Any]:
    chromadb = client("chromadb", "chromadb")
    settings = client("chromadb.config", "chromadb").Settings(anonymized_telemetry=False, is_persistent=True)
    database = chromadb.PersistentClient(str(folder), settings=settings)
    try:
        yield database
    finally:
        database.close()


def _pages(collection: Any, size: int) -> Iterator[list[tuple[str, str | None, dict[str, Any] | None, str | None]]]:
    """Yield id, document, metadata and URI of entries."""
    for offset in range(0, collection.count(), size):
        found = collection.get(limit=size, offset=offset, include=["documents", "metadatas", "uris"])
        yield list(zip(found["ids"], found["documents"], found["metadatas"], found["uris"], strict=True))


def _graph(collection: Any) -> dict[str, Any] | None:
    settings = collection.configuration_json.get("hnsw")
    return None if settings is None else {"hnsw": {key: each for key, each in settings.items() if each is not None}}
