"""Vectors that were computed before, in memory or in a file, by identity, role and text."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from bge_runtime.errors import ConfigurationError, check_count, check_path, public
from bge_runtime.locks import ForkLock
from bge_runtime.vectors.cache_file import CacheFile

__all__ = ["CacheStats", "VectorCache", "check_cache"]

DEFAULT_MEMORY_BYTES = 256 * 2**20
DEFAULT_FILE_BYTES = 4 * 2**30
ENTRY_OVERHEAD_BYTES = 96  # key and bookkeeping, counted with each vector

Storage = Literal["float32", "float16"]
# Little-endian on every machine: files are shared and copied.
FORMATS: dict[int, np.dtype[Any]] = {4: np.dtype("<f4"), 2: np.dtype("<f2")}


@public
@dataclass(frozen=True, kw_only=True, slots=True)
class CacheStats:
    """What a cache has done since it was opened, and what it holds.

    Attributes:
        hits: Texts answered from it.
        misses: Texts that had to be computed.
        evicted: Vectors dropped to stay inside `max_bytes`.
        entries: Vectors held.
        bytes: Their size.
    """

    hits: int
    misses: int
    evicted: int
    entries: int
    bytes: int


class _Entries(Protocol):
    """Where the vectors are, with the bytes of one of their numbers: memory or a file."""

    evicted: int

    def get(self, keys: Sequence[bytes]) -> dict[bytes, tuple[bytes, int]]: ...

    def put(self, rows: Sequence[tuple[bytes, bytes]]) -> None: ...

    def drop(self, keys: Sequence[bytes]) -> None: ...

    def size(self) -> tuple[int, int]: ...

    def clear(self) -> None: ...

    def close(self) -> None: ...


@public
class VectorCache:
    """Remembers vectors, so that no text is computed twice by the same model.

    The key is the embedder's identity on that side (query or document), and the text; another model, instruction,
    length or precision class never finds them. Least recently used vectors are dropped first. Safe from any number
    of threads; a file is safe from any number of processes. A damaged file is set aside and said so; a disk that is
    full or locked costs the caching, never the result. What is not finite is neither kept nor given back.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        max_bytes: int | None = None,
        storage: Storage = "float32",
    ) -> None:
        """Describe the cache; a file is opened at the first use.

        Args:
            path: SQLite file, created when there is none; `None` keeps the vectors in this process's memory.
            max_bytes: Most bytes of vectors to hold; `None` is 256 MiB in memory and 4 GiB in a file.
            storage: Number format of stored vectors. float16 halves the size; the cosine with the float32 vector
                stays above 0.999999. Each entry of a file says its own: where float32 is asked for, one in float16
                counts as missing.

        Raises:
            ConfigurationError: An argument has a wrong value.
        """
        if storage not in ("float32", "float16"):
            raise ConfigurationError(f"storage={storage!r} is not allowed. Use 'float32' or 'float16'.")
        default = DEFAULT_MEMORY_BYTES if path is None else DEFAULT_FILE_BYTES
        self.path = None if path is None else Path(check_path(path, "path"))
        self.storage: Storage = storage
        self.max_bytes = check_count(max_bytes, "max_bytes") or default
        self._width = 4 if storage == "float32" else 2
        self._entries: _Entries = (
            _Memory(self.max_bytes, self._width)
            if self.path is None
            else CacheFile(self.path, self.max_bytes, ENTRY_OVERHEAD_BYTES, self._width)
        )
        self._lock = ForkLock()
        self._fits: dict[str, Callable[[NDArray[np.float32]], bool]] = {}
        self._hits = self._misses = 0

    @property
    def stats(self) -> CacheStats:
        """What the cache has done and holds."""
        entries, size = self._entries.size()
        with self._lock:
            return CacheStats(
                hits=self._hits, misses=self._misses, evicted=self._entries.evicted, entries=entries, bytes=size
            )

    def expect(self, identity: str, fits: Callable[[NDArray[np.float32]], bool]) -> None:
        """Say what the vectors of an identity look like: entries that do not are dropped, and count as missing.

        Args:
            identity: What changes vectors.
            fits: Whether such numbers can be what was stored. It is kept, so let it hold on to nothing large.
        """
        self._fits[identity] = fits

    def get(self, identity: str, texts: Sequence[str]) -> list[NDArray[np.float32] | None]:
        """Return the vector of each text, float32 and flat, or `None`."""
        fits = self._fits.get(identity)
        keys = [_key(identity, text) for text in texts]
        found = {key: self._read(*entry, fits) for key, entry in self._entries.get(keys).items()}
        if useless := [key for key, vector in found.items() if vector is None]:
            self._entries.drop(useless)  # or what is computed in their place would not be stored
        rows = [found.get(key) for key in keys]
        hits = sum(row is not None for row in rows)
        with self._lock:
            self._hits += hits
            self._misses += len(keys) - hits
        return rows

    def put(self, identity: str, texts: Sequence[str], vectors: Iterable[NDArray[np.float32]]) -> None:
        """Store a vector, or any array, per text; all of them or, when the disk refuses, none.

        Those that are not finite, or not in float16 where that is the storage, are left out.
        """
        with np.errstate(over="ignore"):
            rows = [np.asarray(vector, dtype=FORMATS[self._width]) for vector in vectors]
        pairs = zip(texts, rows, strict=True)
        self._entries.put([(_key(identity, text), row.tobytes()) for text, row in pairs if np.isfinite(row).all()])

    def _read(
        self, blob: bytes, width: int, fits: Callable[[NDArray[np.float32]], bool] | None
    ) -> NDArray[np.float32] | None:
        """Return an entry's numbers; `None` if they are fewer bits than were asked for, or not what was stored."""
        if width < self._width or len(blob) % width:
            return None
        vector = np.frombuffer(blob, FORMATS[width]).astype(np.float32)
        return vector if np.isfinite(vector).all() and (fits is None or fits(vector)) else None

    def clear(self) -> None:
        """Drop all vectors."""
        self._entries.clear()

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        self._entries.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as configuration: a file is shared, memory starts empty."""
        return partial(type(self), self.path, max_bytes=self.max_bytes, storage=self.storage), ()

    def __repr__(self) -> str:
        """Show where and how large."""
        where = "memory" if self.path is None else str(self.path)
        return f"VectorCache({where!r}, max_bytes={self.max_bytes}, storage={self.storage!r})"


def _key(identity: str, text: str) -> bytes:
    # NUL stands in no identity, so that no two pairs of identity and text read the same.
    return hashlib.blake2b(f"{identity}\0{text}".encode(), digest_size=20).digest()


class _Memory:
    """The least recently used entry is first."""

    def __init__(self, max_bytes: int, width: int) -> None:
        self.evicted = 0
        self._max_bytes = max_bytes
        self._width = width
        self._bytes = 0
        self._rows: OrderedDict[bytes, bytes] = OrderedDict()
        self._lock = ForkLock()

    def get(self, keys: Sequence[bytes]) -> dict[bytes, tuple[bytes, int]]:
        with self._lock:
            found = {key: (self._rows[key], self._width) for key in keys if key in self._rows}
            for key in found:
                self._rows.move_to_end(key)
            return found

    def put(self, rows: Sequence[tuple[bytes, bytes]]) -> None:
        with self._lock:
            for key, blob in rows:
                replaced = self._rows.pop(key, None)
                self._bytes += _size(blob) - (0 if replaced is None else _size(replaced))
                self._rows[key] = blob
            # Nothing is left before the sum is small enough only where a fork or an interrupt came between the two.
            while self._bytes > self._max_bytes and self._rows:
                _, dropped = self._rows.popitem(last=False)
                self._bytes -= _size(dropped)
                self.evicted += 1

    def drop(self, keys: Sequence[bytes]) -> None:
        with self._lock:
            for key in keys:
                dropped = self._rows.pop(key, None)
                self._bytes -= 0 if dropped is None else _size(dropped)

    def size(self) -> tuple[int, int]:
        with self._lock:
            return len(self._rows), self._bytes

    def clear(self) -> None:
        with self._lock:
            self._rows.clear()
            self._bytes = 0

    def close(self) -> None:
        """Keep the vectors: they are nowhere else."""


def _size(blob: bytes) -> int:
    return len(blob) + ENTRY_OVERHEAD_BYTES


def check_cache(cache: VectorCache | str | os.PathLike[str] | None) -> VectorCache | None:
    """Return the cache that an option names.

    Raises:
        ConfigurationError: It is neither a cache nor a path.
    """
    if isinstance(cache, str | os.PathLike):
        return VectorCache(cache)
    if cache is not None and not isinstance(cache, VectorCache):
        raise ConfigurationError(f"vector_cache={cache!r} is not allowed. Pass a VectorCache, or the path of its file.")
    return cache
