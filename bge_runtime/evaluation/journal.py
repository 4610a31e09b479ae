"""What a migration has finished: vectors in one file that survives a kill, and what they are for."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_runtime import ConfigurationError

__all__ = ["Journal", "locked", "read_state", "settle", "settle_entry", "text_key", "write_state"]

STATE = "state.json"
LOCK = "lock"


def text_key(text: str) -> bytes:
    """Return 16 bytes that stand for a text."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


class Journal:
    """Vectors by text, appended batch by batch; a batch that was cut short by a kill is dropped when it is opened."""

    def __init__(self, file: Path, dimension: int) -> None:
        """Open the file, or begin it.

        Args:
            file: Records of the text's key, the vector in little-endian float32, and a checksum of both.
            dimension: Length of a vector.

        Raises:
            OSError: It cannot be read or written.
        """
        self.dimension = dimension
        self._type = np.dtype([("key", "V16"), ("vector", "<f4", (dimension,)), ("check", "<u4")])
        self._file = file
        self._places = self._whole()
        self._records: NDArray[Any] | None = None

    def __contains__(self, text: str) -> bool:
        """Return whether a text's vector is there."""
        return text_key(text) in self._places

    def add(self, texts: Sequence[str], vectors: NDArray[np.float32]) -> None:
        """Keep the vectors of texts, safely on the disk when it returns.

        Raises:
            OSError: They cannot be written.
        """
        records = np.zeros(len(texts), self._type)
        for record, text, vector in zip(records, texts, vectors, strict=True):
            key = text_key(text)
            record["key"], record["vector"] = np.void(key), vector
            record["check"] = zlib.crc32(record["vector"].tobytes(), zlib.crc32(key))
        with self._file.open("ab") as stream:
            stream.write(records.tobytes())
            stream.flush()
            os.fsync(stream.fileno())
        first = len(self._places)
        self._places.update((text_key(text), first + number) for number, text in enumerate(texts))
        self._records = None

    def of(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the vectors of texts, float32 of shape (number of texts, dimension).

        Raises:
            KeyError: One is not there.
        """
        places = [self._places[text_key(text)] for text in texts]
        if self._records is None:
            self._records = np.memmap(self._file, self._type, mode="r")
        return np.ascontiguousarray(self._records["vector"][places], dtype=np.float32)

    def _whole(self) -> dict[bytes, int]:
        """Return the place of each text, and cut off what follows the last whole record."""
        places: dict[bytes, int] = {}
        self._file.touch()
        with self._file.open("r+b") as stream:
            while len(data := stream.read(self._type.itemsize)) == self._type.itemsize:
                key, vector, check = data[:16], data[16:-4], int.from_bytes(data[-4:], "little")
                if zlib.crc32(vector, zlib.crc32(key)) != check:
                    break
                places[key] = len(places)
            stream.truncate(len(places) * self._type.itemsize)
        return places


def read_state(folder: Path) -> dict[str, Any] | None:
    """Return what a migration in this folder is about; `None` where there is none that has begun."""
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{str(folder / STATE)!r} does not say what was migrated ({error}). Delete {str(folder)!r} and begin anew."
        ) from error
    return dict(state)


def write_state(folder: Path, state: dict[str, Any]) -> None:
    """Write it whole, safely on the disk.

    Raises:
        OSError: It cannot be written.
    """
    made = folder / f"{STATE}.new"
    with made.open("w", encoding="utf-8") as stream:
        json.dump(state, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    made.replace(folder / STATE)


@contextmanager
def locked(folder: Path, *, doing: str = "migrating", name: str = LOCK) -> Iterator[None]:
    """Keep other processes from the folder; the lock ends with the process that holds it.

    Args:
        folder: Where the lock's file is.
        doing: What is done there, for the error.
        name: Of the lock's file, which stays.

    Raises:
        ConfigurationError: Another process is there.
    """
    with closing(sqlite3.connect(folder / name, timeout=0, isolation_level=None)) as lock:
        try:
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            raise ConfigurationError(
                f"Another process is {doing} into {str(folder)!r} ({error}). Wait for it, or end it and call again."
            ) from error
        yield


def settle(folder: Path) -> None:
    """Have everything below a folder on the disk, where the system can promise it."""
    for parent, _, files in os.walk(folder):
        for file in files:
            settle_entry(Path(parent, file))
        settle_entry(Path(parent))


def settle_entry(path: Path) -> None:
    """Have one file, or the names in one folder, on the disk."""
    with suppress(PermissionError):  # of Windows, about folders and handles that only read
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
