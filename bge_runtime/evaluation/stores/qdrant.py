"""Qdrant's local mode. Its client locks the folder for one process: the old index is read past it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

from bge_runtime import ConfigurationError
from bge_runtime.evaluation.stores.base import PAGE, Row, Store, Vectors, client, digest, no_text, pages, read_json
from bge_runtime.evaluation.stores.nodes import embedded_text, stored_node
from bge_runtime.evaluation.stores.pickled import Record, unpickled

__all__ = ["Qdrant"]

_META = "meta.json"
_CLASSES = [("qdrant_client", name) for name in ("PointStruct", "SparseVector")]
_TEXT = "page_content"  # of LangChain


class Qdrant(Store):
    """A collection of `QdrantClient(path=...)`."""

    kind: ClassVar[str] = "Qdrant"

    @classmethod
    def names(cls, folder: Path) -> list[str]:
        """Return the names of the collections."""
        if not ((folder / _META).is_file() and (folder / "collection").is_dir()):
            return []
        return sorted(read_json(folder / _META).get("collections", {}))

    def owns(self, file: str) -> bool:
        """Return whether it is one of the client's files."""
        return file in (_META, f"{_META}.tmp", ".lock", "collection")

    def rows(self) -> Iterator[Row]:
        """Yield points in the order in which they were written."""
        for point in self._points():
            kept = {name: _plain(each) for name, each in self._kept(point).items()}
            yield Row(str(point["id"]), self._text(point), digest([point["id"], point["payload"], kept]))

    def write(self, target: Path, vectors: Vectors) -> list[str]:
        """Make a collection with the same settings, and the new size."""
        field = self._field
        self.copy_rest(target)
        (target / "collection" / self.name).mkdir(parents=True)
        (target / _META).write_text(json.dumps(self._settings(vectors.dimension)), encoding="utf-8")
        models = client("qdrant_client.models", "qdrant-client")
        opened = client("qdrant_client", "qdrant-client").QdrantClient(path=str(target))
        with closing(opened):
            for page in pages(self._points()):
                rows = vectors.of([self._text(point) for point in page]).tolist()
                points = [
                    models.PointStruct(
                        id=point["id"],
                        payload=point["payload"],
                        vector={
                            **{name: _sparse(models, each) for name, each in self._kept(point).items()},
                            field: row,
                        },
                    )
                    for point, row in zip(page, rows, strict=True)
                ]
                opened.upsert(self.name, points=points)
        return []

    def _settings(self, dimension: int) -> dict[str, Any]:
        """Return meta.json for this collection alone."""
        found = read_json(self.folder / _META)
        settings = found["collections"][self.name]
        (settings["vectors"] if self._field == "" else settings["vectors"][self._field])["size"] = dimension
        aliases = {alias: name for alias, name in found.get("aliases", {}).items() if name == self.name}
        parts = {
            key: {name: part for name, part in value.items() if name == self.name}
            for key, value in found.items()
            if key != "aliases" and isinstance(value, dict)
        }
        return {**parts, "collections": {self.name: settings}, "aliases": aliases}

    @property
    def _field(self) -> str:
        """The name of the dense vector; empty for one without a name."""
        configured = read_json(self.folder / _META)["collections"][self.name].get("vectors") or {}
        fields = {"": configured} if "size" in configured else configured
        if len(fields) != 1 or next(iter(fields.values())).get("multivector_config") is not None:
            raise ConfigurationError(
                f"The Qdrant collection {self.name!r} in {str(self.folder)!r} has the dense vectors {sorted(fields)}; "
                "exactly one, of a single row, can be renewed. Fill a new collection from the source documents."
            )
        return str(next(iter(fields)))

    def _kept(self, point: dict[str, Any]) -> dict[str, Any]:
        """Return the vectors that stay: sparse ones, which are another model's."""
        vector = point["vector"]
        return {name: each for name, each in vector.items() if name != self._field} if isinstance(vector, dict) else {}

    def _text(self, point: dict[str, Any]) -> str:
        payload = point["payload"] or {}
        try:
            node = stored_node(payload)
        except ValueError as error:
            raise no_text(self, point["id"], f"has a node that cannot be read ({error})") from error
        text = payload.get(_TEXT) if node is None else embedded_text(node)
        if not isinstance(text, str):
            raise no_text(self, point["id"], f"has neither {_TEXT!r} nor '_node_content' in its payload")
        return text

    def _points(self) -> Iterator[dict[str, Any]]:
        file = self.folder / "collection" / self.name / "storage.sqlite"
        last = -1
        try:
            with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as database:
                # Page by page: a reading that is left open would keep the owner from writing.
                query = "SELECT rowid, point FROM points WHERE rowid > ? ORDER BY rowid LIMIT ?"
                while page := database.execute(query, (last, PAGE)).fetchall():
                    last = page[-1][0]
                    yield from (self._point(file, blob) for _, blob in page)
        except sqlite3.DatabaseError as error:
            raise ConfigurationError(
                f"{str(file)!r} cannot be read as a database of Qdrant's client ({error}). "
                "Check that it is one, and that you may read it."
            ) from error

    def _point(self, file: Path, blob: bytes) -> dict[str, Any]:
        point = unpickled(blob, _CLASSES, f"A point in {str(file)!r}", allow_pickle=self.allow_pickle)
        if not isinstance(point, Record) or "id" not in point.fields:
            raise ConfigurationError(f"{str(file)!r} holds {point!r} where points should be. Restore the file.")
        return {name: point.fields.get(name) for name in ("id", "vector", "payload")}


def _plain(vector: Any) -> Any:
    return vector.fields if isinstance(vector, Record) else vector


def _sparse(models: Any, vector: Any) -> Any:
    return models.SparseVector(**vector.fields) if isinstance(vector, Record) else vector
