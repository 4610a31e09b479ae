"""Stores that are JSON files: LlamaIndex's persisted storage and the dump of LangChain's in-memory store."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from bge_runtime import ConfigurationError
from bge_runtime.evaluation.stores.base import Row, Store, Vectors, digest, no_text, pages, read_json
from bge_runtime.evaluation.stores.nodes import embedded_text

__all__ = ["InMemory", "Persisted"]

_SUFFIX = "__vector_store.json"


class Persisted(Store):
    """LlamaIndex's own storage: the texts in docstore.json, the vectors in default__vector_store.json."""

    kind: ClassVar[str] = "LlamaIndex storage"

    @classmethod
    def names(cls, folder: Path) -> list[str]:
        """Return `default` for a folder with a docstore and vectors in JSON."""
        vectors = folder / f"default{_SUFFIX}"
        if not (vectors.is_file() and (folder / "docstore.json").is_file()):
            return []
        with vectors.open("rb") as stream:
            return ["default"] if stream.read(1) == b"{" else []

    def owns(self, file: str) -> bool:
        """Return whether it is the file of vectors."""
        return file == f"{self.name}{_SUFFIX}"

    def rows(self) -> Iterator[Row]:
        """Yield nodes in the order of the vectors."""
        self._check_alone()
        nodes = read_json(self.folder / "docstore.json").get("docstore/data", {})
        stored = self._stored()
        for name in stored["embedding_dict"]:
            node = nodes.get(name, {}).get("__data__")
            text = None if node is None else embedded_text(node)
            if text is None:
                raise no_text(self, name, "has no text in docstore.json")
            kept = [part.get(name) for key, part in stored.items() if key != "embedding_dict"]
            yield Row(name, text, digest([node, kept]))

    def write(self, target: Path, vectors: Vectors) -> list[str]:
        """Write the vectors; the docstore and everything else is copied."""
        stored = self._stored()
        texts = {row.id: row.text for row in self.rows()}
        for page in pages(stored["embedding_dict"]):
            rows = vectors.of([texts[name] for name in page]).tolist()
            stored["embedding_dict"].update(zip(page, rows, strict=True))
        self.copy_rest(target)
        with (target / f"{self.name}{_SUFFIX}").open("w", encoding="utf-8") as stream:
            json.dump(stored, stream)
        return []

    def _stored(self) -> dict[str, Any]:
        file = self.folder / f"{self.name}{_SUFFIX}"
        stored = read_json(file)
        if not isinstance(stored, dict) or not isinstance(stored.get("embedding_dict"), dict):
            raise ConfigurationError(
                f"{str(file)!r} has no 'embedding_dict', as LlamaIndex's SimpleVectorStore writes it. "
                "Fill a new index from the source documents."
            )
        return stored

    def _check_alone(self) -> None:
        for file in self.folder.glob(f"*{_SUFFIX}"):
            count = 0 if self.owns(file.name) else len(read_json(file).get("embedding_dict", {}))
            if count:
                raise ConfigurationError(
                    f"{str(file)!r} holds {count} more vectors, of pictures or of another embedder, and a migration "
                    f"renews those of {f'{self.name}{_SUFFIX}'!r} only. Fill a new index from the source documents."
                )


class InMemory(Store):
    """A file that LangChain's `InMemoryVectorStore.dump` wrote."""

    kind: ClassVar[str] = "LangChain in-memory"
    _start: ClassVar[re.Pattern[str]] = re.compile(r'\s*\{\s*"(?:[^"\\]|\\.)*"\s*:\s*\{\s*"id"\s*:')

    @classmethod
    def names(cls, folder: Path) -> list[str]:
        """Return the names, without `.json`, of files that begin like a dump."""
        return sorted(file.stem for file in folder.glob("*.json") if file.is_file() and cls._start.match(_head(file)))

    def left_behind(self) -> list[str]:
        """Return nothing: other files are copied."""
        return []

    def owns(self, file: str) -> bool:
        """Return whether it is the dump."""
        return file == f"{self.name}.json"

    def rows(self) -> Iterator[Row]:
        """Yield documents in the order of the file."""
        for name, entry in self._stored().items():
            if not isinstance(entry, dict) or not isinstance(entry.get("text"), str):
                raise no_text(self, name, "has no text")
            rest = {key: value for key, value in entry.items() if key not in ("text", "vector")}
            yield Row(name, entry["text"], digest(rest))

    def write(self, target: Path, vectors: Vectors) -> list[str]:
        """Write the file with other vectors, as `dump` would."""
        stored = self._stored()
        for page in pages(stored.values()):
            rows = vectors.of([entry["text"] for entry in page]).tolist()
            for entry, row in zip(page, rows, strict=True):
                entry["vector"] = row
        self.copy_rest(target)
        with (target / f"{self.name}.json").open("w", encoding="utf-8") as stream:
            json.dump(stored, stream, indent=2)
        return []

    def _stored(self) -> dict[str, Any]:
        found: dict[str, Any] = read_json(self.folder / f"{self.name}.json")
        return found


def _head(file: Path) -> str:
    with file.open(encoding="utf-8", errors="replace") as stream:
        return stream.read(4096)
