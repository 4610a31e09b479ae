"""What a migration asks of every kind of store."""

from __future__ import annotations

import hashlib
import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from bge_runtime import ConfigurationError, InputError

__all__ = ["PAGE", "Row", "Store", "Vectors", "client", "digest", "no_text", "pages", "read_json"]

PAGE = 1000  # rows read or written at a time


@dataclass(frozen=True, slots=True)
class Row:
    """One entry of an index, without its vector.

    Attributes:
        id: As the store knows it, as a text.
        text: What the embedder is to read.
        rest: Digest of everything else that the entry holds.
    """

    id: str
    text: str
    rest: bytes


class Vectors(Protocol):
    """Where the new vectors are."""

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        ...

    def of(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the vectors of texts, float32 of shape (number of texts, dimension)."""
        ...


class Store(ABC):
    """One index of one kind in a folder. It is only read."""

    kind: ClassVar[str]

    def __init__(self, folder: Path, name: str, scratch: Path, *, allow_pickle: bool = False) -> None:
        """Describe the index; nothing is opened.

        Args:
            folder: Where it is.
            name: One of `names(folder)`.
            scratch: Folder for files that are needed for a moment.
            allow_pickle: Whether classes may be loaded that a pickled file names.
        """
        self.folder = folder
        self.name = name
        self.scratch = scratch
        self.allow_pickle = allow_pickle

    @classmethod
    @abstractmethod
    def names(cls, folder: Path) -> list[str]:
        """Return the names of the indexes of this kind in a folder; none where it holds another kind."""

    @abstractmethod
    def rows(self) -> Iterator[Row]:
        """Yield every entry, in an order that stays while nothing changes.

        Raises:
            InputError: An entry does not hold the text that it stands for.
            ConfigurationError: The files are not what this kind writes, or a package is missing.
        """

    @abstractmethod
    def write(self, target: Path, vectors: Vectors) -> list[str]:
        """Write the index into a folder that exists, with other vectors; return what could not be taken along."""

    @abstractmethod
    def owns(self, file: str) -> bool:
        """Return whether a name in the folder is of the store's own files, which `write` makes."""

    def left_behind(self) -> list[str]:
        """Return the names of other indexes that share the files and that `write` leaves out."""
        return [name for name in self.names(self.folder) if name != self.name]

    def copy_rest(self, target: Path) -> None:
        """Copy what else lies in the folder: docstores, graphs, notes."""
        for path in self.folder.iterdir():
            if self.owns(path.name):
                continue
            if path.is_dir():
                shutil.copytree(path, target / path.name, dirs_exist_ok=True)
            elif path.is_file():
                shutil.copy2(path, target / path.name)


def client(module: str, package: str) -> Any:
    """Import a store's own package.

    Raises:
        ConfigurationError: It is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"This index is read with the package {package!r}, which is not installed. "
            f"Install it with: pip install {package}"
        ) from error


def digest(value: object) -> bytes:
    """Return 16 bytes that differ where values differ; what JSON does not know counts by its `repr`."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, default=repr)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def no_text(store: Store, entry: object, why: str) -> InputError:
    """Return the error for an index that cannot list its texts."""
    return InputError(
        f"The {store.kind} index {store.name!r} in {str(store.folder)!r} cannot list its texts: entry {entry!r} {why}. "
        "A migration needs the text of every entry. Fill a new index from the source documents."
    )


def read_json(file: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        ConfigurationError: It is not JSON, or it cannot be read.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"{str(file)!r} cannot be read as JSON ({error}). It is damaged, or was being written: "
            "try again while nothing writes to the index, or restore the file."
        ) from error


def pages(items: Iterable[Any], size: int = PAGE) -> Iterator[list[Any]]:
    """Yield lists of at most `size` items."""
    page: list[Any] = []
    for item in items:
        page.append(item)
        if len(page) == size:
            yield page
            page = []
    if page:
        yield page
