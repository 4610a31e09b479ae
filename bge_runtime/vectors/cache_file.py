"""The vector cache's file: SQLite in WAL mode, bounded, shared by processes."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
import weakref
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from bge_runtime.locks import ForkLock

__all__ = ["CacheFile"]

logger = logging.getLogger("bge_runtime")

BUSY_TIMEOUT_S = 30.0
KEYS_PER_QUERY = 500  # SQLite's limit on variables was 999 for long
USED_STEP_S = 3600  # reading marks an entry as used at most this often, so that most reads write nothing
WIDTHS = (4, 2)  # bytes of a number in float32 and float16
LONGEST_HOLD_S = 1.0  # a fork waits for what is being read or written, but not for another process's long write
KEPT_SHARE = 0.9  # eviction makes room for more than one call
# With WAL, `synchronous = NORMAL` may lose the last writes of a power cut but never damages the file. `WITHOUT ROWID`:
# keys are digests, and a second tree over them would be as large again. Triggers count: counting rows reads all.
_TABLES = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
CREATE TABLE IF NOT EXISTS vectors (
    key BLOB PRIMARY KEY, vector BLOB NOT NULL, checksum INTEGER NOT NULL, used INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_use ON vectors (used);
CREATE TABLE IF NOT EXISTS total (entries INTEGER NOT NULL, bytes INTEGER NOT NULL);
INSERT INTO total SELECT 0, 0 WHERE NOT EXISTS (SELECT 1 FROM total);
CREATE TRIGGER IF NOT EXISTS added AFTER INSERT ON vectors BEGIN
    UPDATE total SET entries = entries + 1, bytes = bytes + length(NEW.vector);
END;
CREATE TRIGGER IF NOT EXISTS removed AFTER DELETE ON vectors BEGIN
    UPDATE total SET entries = entries - 1, bytes = bytes - length(OLD.vector);
END;
"""
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_MISMATCH)

T = TypeVar("T")


class CacheFile:
    """Entries of bytes by key. No error of the disk or the file reaches the caller: it costs the caching only."""

    def __init__(self, path: Path, max_bytes: int, entry_overhead: int, width: int) -> None:
        """Describe the file; the first use opens it.

        Args:
            path: The file.
            max_bytes: Most bytes of entries.
            entry_overhead: Bytes that each entry counts for beside its own.
            width: Bytes of a number in what is stored from here.
        """
        self.evicted = 0
        self._width = width
        self._path = path
        self._max_bytes = max_bytes
        self._overhead = entry_overhead
        self._lock = ForkLock(threading.RLock)
        self._inherited: list[sqlite3.Connection | None] = []
        self._held: tuple[Any, int] | None = None  # the lock, and the thread that forks
        self._reset()
        _FILES.add(self)

    def _reset(self) -> None:
        self._database: sqlite3.Connection | None = None
        self._pid = os.getpid()
        self._warned = False

    def get(self, keys: Sequence[bytes]) -> dict[bytes, tuple[bytes, int]]:
        """Return the entries that are there and whole, each with the bytes of a number in it."""
        return self._try(lambda database: self._read(database, list(dict.fromkeys(keys))), {})

    def put(self, rows: Sequence[tuple[bytes, bytes]]) -> None:
        """Store entries, all or none, and drop the least recently used when there are too many."""
        self._try(lambda database: self._write(database, rows), None)

    def drop(self, keys: Sequence[bytes]) -> None:
        """Drop entries."""

        def delete(database: sqlite3.Connection) -> None:
            with database:
                database.executemany("DELETE FROM vectors WHERE key = ?", [(key,) for key in keys])

        self._try(delete, None)

    def size(self) -> tuple[int, int]:
        """Return the number of entries and their bytes."""
        return self._try(self._size, (0, 0))

    def clear(self) -> None:
        """Drop all entries."""

        def drop(database: sqlite3.Connection) -> None:
            with database:
                database.execute("DELETE FROM vectors")

        self._try(drop, None)

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        with self._lock:
            if self._database is not None and self._pid == os.getpid():
                self._database.close()
                self._database = None

    def hold_still(self) -> None:
        """Keep all threads out of the file, until `go_on`."""
        lock = self._lock.own
        if lock.acquire(timeout=LONGEST_HOLD_S):
            self._held = lock, threading.get_ident()

    def go_on(self) -> None:
        """Undo `hold_still`."""
        lock = self._lock.own  # a forked child has one of its own, which nobody has taken
        if self._held == (lock, threading.get_ident()):
            self._held = None
            lock.release()

    def _read(self, database: sqlite3.Connection, keys: Sequence[bytes]) -> dict[bytes, tuple[bytes, int]]:
        now = int(time.time()) // USED_STEP_S
        found: dict[bytes, tuple[bytes, int]] = {}
        stale, damaged = [], []
        for start in range(0, len(keys), KEYS_PER_QUERY):
            part = keys[start : start + KEYS_PER_QUERY]
            marks = ",".join("?" * len(part))
            query = f"SELECT key, vector, checksum, used FROM vectors WHERE key IN ({marks})"
            for key, vector, checksum, used in database.execute(query, part):
                width = self._width_of(vector, checksum)
                if width is None:
                    damaged.append((key,))
                    continue
                found[key] = vector, width
                if used < now:
                    stale.append((now, key))
        if stale or damaged:
            with database:
                database.executemany("UPDATE vectors SET used = ? WHERE key = ?", stale)
                database.executemany("DELETE FROM vectors WHERE key = ?", damaged)
        return found

    def _width_of(self, vector: bytes, checksum: int) -> int | None:
        """Return the bytes of a number in an entry, `None` if it is damaged.

        An entry says it by what its checksum starts from. Those that start from nothing are older, and taken to be in
        the format that is stored now, as they were then.
        """
        for start in (self._width, 0, *WIDTHS):
            if zlib.crc32(vector, start) == checksum:
                return start or self._width
        return None

    def _write(self, database: sqlite3.Connection, rows: Sequence[tuple[bytes, bytes]]) -> None:
        now = int(time.time()) // USED_STEP_S
        with database:
            # The lock for writing at once: of two processes that read first, SQLite would refuse one.
            database.execute("BEGIN IMMEDIATE")
            database.executemany(
                # Another process may have stored the same text meanwhile, with the same vector.
                "INSERT OR IGNORE INTO vectors VALUES (?, ?, ?, ?)",
                [(key, blob, zlib.crc32(blob, self._width), now) for key, blob in rows],
            )
            self._evict(database)

    def _evict(self, database: sqlite3.Connection) -> None:
        entries, size = self._size(database)
        if size <= self._max_bytes:
            return
        average = size / entries
        surplus = int((size - KEPT_SHARE * self._max_bytes) / average) + 1
        database.execute("DELETE FROM vectors WHERE key IN (SELECT key FROM vectors ORDER BY used LIMIT ?)", (surplus,))
        self.evicted += min(surplus, entries)

    def _size(self, database: sqlite3.Connection) -> tuple[int, int]:
        entries, size = database.execute("SELECT entries, bytes FROM total").fetchone()
        return int(entries), int(size) + int(entries) * self._overhead

    def _try(self, work: Callable[[sqlite3.Connection], T], otherwise: T) -> T:
        """Run `work`; set a damaged file aside and try once on a new one; warn once about anything else."""
        with self._lock:
            if self._pid != os.getpid():
                # SQLite's connections must not cross a fork, not even to be closed.
                self._inherited.append(self._database)
                self._reset()
            for attempt in (1, 2):
                try:
                    return work(self._open())
                except (sqlite3.Error, OSError, TypeError, ValueError) as error:
                    if attempt == 1 and _is_damage(error):
                        self._set_aside(error)
                    else:
                        self._warn(error)
                        break
        return otherwise

    def _open(self) -> sqlite3.Connection:
        if self._database is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            database = sqlite3.connect(self._path, timeout=BUSY_TIMEOUT_S, check_same_thread=False)
            try:
                database.executescript(_TABLES)
                self._size(database)
            except BaseException:
                database.close()
                raise
            self._database = database
        return self._database

    def _set_aside(self, error: Exception) -> None:
        self.close()
        target = self._path.with_name(f"{self._path.name}.damaged")
        try:
            for suffix in ("-wal", "-shm"):  # left where it is, the log would be replayed into the next file
                Path(f"{self._path}{suffix}").unlink(missing_ok=True)
            self._path.replace(target)
        except OSError as refused:
            logger.warning("The vector cache %r is damaged and cannot be moved (%s).", str(self._path), refused)
            return
        logger.warning(
            "The vector cache %r is damaged (%s). It is kept as %r; a new one starts.",
            str(self._path),
            error,
            str(target),
        )

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            logger.warning(
                "The vector cache %r cannot be used (%s: %s). Vectors are computed and not stored. "
                "Check the folder and the space on the disk.",
                str(self._path),
                type(error).__name__,
                error,
            )
        self._warned = True


# SQLite keeps locks for each file that a process has open, and a child of a fork has no others: one that a thread of
# the parent held at that moment would stay taken in the child, for every new connection to the file.
_FILES = weakref.WeakSet[CacheFile]()


def _before_fork() -> None:
    for file in list(_FILES):
        file.hold_still()


def _after_fork() -> None:
    for file in list(_FILES):
        file.go_on()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork)


def _is_damage(error: Exception) -> bool:
    if isinstance(error, TypeError | ValueError):  # values of other types than were stored
        return True
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT if isinstance(error, sqlite3.Error) else 0)
    return isinstance(error, sqlite3.DatabaseError) and code & 0xFF in _DAMAGE
