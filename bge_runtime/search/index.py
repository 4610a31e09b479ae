"""The cached index: one SQLite file per folder, model and way of splitting.

Files map to chunks and chunk texts map to vectors, so that a text is embedded once however often it occurs
and whatever else in its file changes. Every write is a transaction: a process that is killed leaves either
all of it or nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import stat
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from bge_runtime import ConfigurationError
from bge_runtime.search.splitting import Chunk

__all__ = ["DamagedIndexError", "SearchIndex", "UnusableIndexError", "default_cache_folder", "index_path", "set_aside"]

# Part of the file's name: raise it when readers, splitter or tables change what is stored.
FORMAT = 2
BUSY_TIMEOUT_S = 30.0
# At once the lock for writing: a disk that refuses is found before anything is embedded.
_TABLES = """
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS files (name TEXT PRIMARY KEY, digest TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS chunks (
    name TEXT NOT NULL, position INTEGER NOT NULL, key TEXT NOT NULL,
    trail TEXT NOT NULL, heading TEXT NOT NULL, body TEXT NOT NULL,
    PRIMARY KEY (name, position)
);
CREATE INDEX IF NOT EXISTS chunk_keys ON chunks (key);
CREATE TABLE IF NOT EXISTS vectors (key TEXT PRIMARY KEY, vector BLOB NOT NULL, checksum INTEGER NOT NULL);
COMMIT;
"""
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_MISMATCH)


class DamagedIndexError(Exception):
    """The index file is not what was written; for the engine, which builds it again."""


class UnusableIndexError(ConfigurationError):
    """The index file cannot be created, opened or written."""


def default_cache_folder() -> Path:
    """Return `$BGE_CACHE_DIR`, else `bge` in the user's cache folder.

    Raises:
        UnusableIndexError: There is no home folder.
    """
    named = os.environ.get("BGE_CACHE_DIR")
    folder = Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "bge")
    try:
        return folder.expanduser()
    except RuntimeError as error:
        raise _unusable(folder, error) from error


def index_path(cache_folder: Path, folder: Path, document_identity: str, *settings: object) -> Path:
    """Return the file of the index of `folder` for one model and one way of splitting."""
    parts = [FORMAT, str(folder.resolve()), document_identity, *settings]
    name = hashlib.sha256(json.dumps(parts).encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return cache_folder / "search" / f"{name}.sqlite"


def set_aside(path: Path) -> Path:
    """Rename a damaged index, with its journal, and return its new place.

    Raises:
        UnusableIndexError: The folder refuses.
    """
    target = path.with_suffix(".damaged")
    try:
        # Left where it is, the journal would be rolled back into the next index.
        for suffix in ("-journal", "-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
        path.replace(target)
    except OSError as error:
        raise _unusable(path, error) from error
    return target


def _make_private(folder: Path) -> None:
    """Make a folder that its owner alone may enter: an index holds the text of documents, whoever may read those."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(PermissionError):  # one that is somebody else's stays as it is
        if stat.S_IMODE(folder.stat().st_mode) & 0o077:  # made by an older version, or by hand
            folder.chmod(0o700)


class SearchIndex:
    """An index file, created when there is none."""

    def __init__(self, path: Path | None) -> None:
        """Open the file.

        Args:
            path: The file; `None` keeps the index in memory, for one run.

        Raises:
            DamagedIndexError: It is not an index.
            UnusableIndexError: It cannot be opened or created.
        """
        self.path = path
        if path is not None:
            try:
                _make_private(path.parent)
            except OSError as error:
                raise _unusable(path, error) from error
        with self._translated():
            self._database = sqlite3.connect(path or ":memory:", timeout=BUSY_TIMEOUT_S)
        try:
            with self._translated():
                self._database.executescript(_TABLES)
        except BaseException:
            self._database.close()
            raise

    def __enter__(self) -> Self:
        """Return itself; leaving the block closes the file."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the file."""
        self._database.close()

    def digests(self) -> dict[str, str]:
        """Return the content digest of each indexed file by its name."""
        with self._translated():
            return dict(self._database.execute("SELECT name, digest FROM files"))

    def replace(self, changed: Mapping[str, tuple[str, Sequence[Chunk]]], gone: Iterable[str]) -> None:
        """Take in files, drop others, and drop vectors of texts that are left nowhere.

        Args:
            changed: Digest and chunks of new and changed files by name.
            gone: Names of the files to drop.
        """
        rows = [
            (name, position, chunk.key, json.dumps(chunk.trail), chunk.heading, chunk.body)
            for name, (_, chunks) in changed.items()
            for position, chunk in enumerate(chunks)
        ]
        dropped = [(name,) for name in (*changed, *gone)]
        with self._translated(), self._database:
            self._database.executemany("DELETE FROM files WHERE name = ?", dropped)
            self._database.executemany("DELETE FROM chunks WHERE name = ?", dropped)
            digests = [(name, digest) for name, (digest, _) in changed.items()]
            self._database.executemany("INSERT INTO files VALUES (?, ?)", digests)
            self._database.executemany("INSERT INTO chunks VALUES (?, ?, ?, ?, ?, ?)", rows)
            self._database.execute("DELETE FROM vectors WHERE key NOT IN (SELECT key FROM chunks)")

    def missing(self) -> dict[str, str]:
        """Return the texts without a vector by their keys."""
        query = "SELECT key, trail, heading, body FROM chunks WHERE key NOT IN (SELECT key FROM vectors) GROUP BY key"
        with self._translated():
            return {key: _chunk(*row).text for key, *row in self._database.execute(query)}

    def store(self, keys: Sequence[str], vectors: NDArray[np.float32]) -> None:
        """Store the vectors of texts, all or none."""
        blobs = [vector.astype("<f4").tobytes() for vector in vectors]
        rows = [(key, blob, zlib.crc32(blob)) for key, blob in zip(keys, blobs, strict=True)]
        with self._translated(), self._database:
            self._database.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?)", rows)

    def count(self) -> int:
        """Return the number of distinct texts."""
        with self._translated():
            return int(self._database.execute("SELECT COUNT(DISTINCT key) FROM chunks").fetchone()[0])

    def load(self, dimension: int) -> tuple[list[tuple[str, Chunk]], NDArray[np.float32]]:
        """Return (file name, chunk) in order, and their vectors.

        Args:
            dimension: Length of a vector.

        Raises:
            DamagedIndexError: A text or a vector is not what was written.
        """
        query = (
            "SELECT name, chunks.key, trail, heading, body, vector, checksum "
            "FROM chunks JOIN vectors ON chunks.key = vectors.key ORDER BY name, position"
        )
        chunks, blobs = [], []
        with self._translated():
            for name, key, *row, blob, checksum in self._database.execute(query):
                chunk = _chunk(*row)
                if chunk.key != key or len(blob) != 4 * dimension or zlib.crc32(blob) != checksum:
                    raise DamagedIndexError(f"an entry of {name!r} fails its check")
                chunks.append((name, chunk))
                blobs.append(blob)
        return chunks, np.frombuffer(b"".join(blobs), dtype="<f4").reshape(len(blobs), dimension)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Tell damage from a disk that is full, read-only or busy."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            # The low byte is the kind; the rest is detail.
            if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF in _DAMAGE:
                raise DamagedIndexError(str(error)) from error
            raise _unusable(self.path, error) from error
        except (TypeError, ValueError, AttributeError) as error:
            # Values of other types than were stored.
            raise DamagedIndexError(f"{type(error).__name__}: {error}") from error


def _chunk(trail: str, heading: str, body: str) -> Chunk:
    return Chunk(trail=tuple(json.loads(trail)), heading=heading, body=body)


def _unusable(path: Path | None, error: Exception) -> UnusableIndexError:
    return UnusableIndexError(
        f"The index {str(path)!r} cannot be used ({error}). "
        "Check the folder and the space on the disk, or name another with --cache-dir."
    )
