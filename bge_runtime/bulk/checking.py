"""The whole input looked through before anything is computed: an error in the last row costs no day of work."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from bge_runtime import InputError
from bge_runtime.bulk.manifest import FileRecord
from bge_runtime.bulk.sources import Row, Source

__all__ = ["IDS", "examined"]

IDS = ".ids.sqlite"
ROWS_AT_ONCE = 4096


def examined(
    source: Source, folder: Path, on_rows: Callable[[int], object] = lambda count: None
) -> tuple[FileRecord, ...]:
    """Read the whole input once.

    Args:
        source: The input.
        folder: Where ids are kept meanwhile, on the disk: memory stays flat.
        on_rows: Called with the number of rows just read.

    Raises:
        InputError: A row cannot be used, an id stands twice, or there is no row.
    """
    records = []
    with _Ids(folder) as ids:
        for file in source.files:
            count = 0
            for rows in _portions(source.rows_of(file)):
                if source.id_column:  # those of file and row differ by themselves
                    ids.add(file.name, rows)
                count += len(rows)
                on_rows(len(rows))
            digest = file.digest()
            file.check_unchanged()
            records.append(
                FileRecord(name=file.name, bytes=file.size, mtime_ns=file.mtime_ns, sha256=digest, rows=count)
            )
    if not any(record.rows for record in records):
        names = ", ".join(repr(record.name) for record in records[:3])
        raise InputError(f"The input holds no text ({names}). Name files that hold some.")
    return tuple(records)


def _portions(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while part := list(islice(rows, ROWS_AT_ONCE)):
        yield part


class _Ids:
    """The ids that were seen, in a file that is thrown away."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / IDS

    def __enter__(self) -> _Ids:
        self._file.unlink(missing_ok=True)
        self._table = sqlite3.connect(self._file, isolation_level=None)
        # Nothing of it is needed after a kill.
        self._table.execute("PRAGMA journal_mode = OFF")
        self._table.execute("PRAGMA synchronous = OFF")
        self._table.execute("CREATE TABLE ids (key BLOB PRIMARY KEY, file TEXT, place INTEGER) WITHOUT ROWID")
        return self

    def __exit__(self, *exception: object) -> None:
        self._table.close()
        self._file.unlink(missing_ok=True)

    def add(self, file: str, rows: Sequence[Row]) -> None:
        """Note the ids of some rows of a file.

        Raises:
            InputError: One was there already.
        """
        before = self._table.total_changes
        self._table.execute("BEGIN")
        self._table.executemany(
            "INSERT OR IGNORE INTO ids VALUES (?, ?, ?)", ((_key(row), file, row.number) for row in rows)
        )
        self._table.execute("COMMIT")
        if self._table.total_changes - before == len(rows):
            return
        for row in rows:
            found = self._table.execute("SELECT file, place FROM ids WHERE key = ?", (_key(row),)).fetchone()
            if found != (file, row.number):
                raise InputError(
                    f"{file!r}, row {row.number}: the id {row.id!r} stands in {found[0]!r}, row {found[1]}, already. "
                    "Give each text an id of its own, or pass id_column='' (--id-column '') for FILENAME:row."
                )


def _key(row: Row) -> bytes:
    return hashlib.blake2b(row.id.encode(), digest_size=16).digest()
