"""Token vectors of many documents side by side: exact search through them, and their file."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from bge_runtime.vectors.similarity import best_passages

__all__ = ["TokenBlock", "compacted", "read_blocks", "write_blocks"]

# Vectors of one matrix product: 64 MB of float32 at 1024 dimensions.
BLOCK_TOKENS = 16384


@dataclass(frozen=True, slots=True)
class TokenBlock:
    """Documents side by side; never changed once made, so that searches need no lock.

    Attributes:
        ids: One per document.
        sizes: Passages of each document, int64, at least 1.
        lengths: Tokens of each passage, int64, at least 1.
        vectors: Unit vectors of all tokens in order, float32 or float16 of shape (tokens, dimension).
    """

    ids: tuple[str, ...]
    sizes: NDArray[np.int64]
    lengths: NDArray[np.int64]
    vectors: NDArray[np.floating]

    @classmethod
    def of(cls, id: str, passages: Sequence[NDArray[np.floating]]) -> Self:
        """Return a block of one document."""
        lengths = np.array([len(each) for each in passages], np.int64)
        return cls((id,), np.array([len(passages)], np.int64), lengths, np.concatenate(passages))

    def __post_init__(self) -> None:
        """Refuse arrays that do not fit together, as of a damaged file."""
        counts = len(self.sizes), int(self.sizes.sum()), int(self.lengths.sum())
        ends = min(self.sizes, default=0), min(self.lengths, default=0)
        if counts != (len(self.ids), len(self.lengths), len(self.vectors)) or min(ends) < 1:
            raise ValueError(f"{len(self.ids)} documents do not fit to {counts} documents, passages and tokens")

    def scores(self, query: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the mean over query vectors of the best dot product with each document's vectors.

        A document's score is that of its best passage.

        Args:
            query: Unit vectors, float32 of shape (query tokens, dimension).

        Returns:
            Array float32 of shape (documents,).
        """
        similarity = self.vectors.astype(np.float32, copy=False) @ query.T
        starts = np.cumsum(self.lengths) - self.lengths
        passages = np.maximum.reduceat(similarity, starts, axis=0).mean(axis=1)
        return best_passages(passages, self.sizes)  # type: ignore[arg-type]

    def without(self, ids: Collection[str]) -> Iterator[TokenBlock]:
        """Yield the block without these documents, unless none is left."""
        kept = np.array([id not in ids for id in self.ids])
        if kept.all():
            yield self
        elif kept.any():
            passages = np.repeat(kept, self.sizes)
            tokens = np.repeat(passages, self.lengths)
            left = tuple(id for id in self.ids if id not in ids)
            yield TokenBlock(left, self.sizes[kept], self.lengths[passages], self.vectors[tokens])


def compacted(blocks: Iterable[TokenBlock]) -> tuple[TokenBlock, ...]:
    """Return the same documents in the same order, in fewer blocks where small ones stand side by side."""
    groups: list[list[TokenBlock]] = []
    tokens = 0
    for block in blocks:
        if not groups or tokens + len(block.vectors) > BLOCK_TOKENS:
            groups.append([])
            tokens = 0
        groups[-1].append(block)
        tokens += len(block.vectors)
    return tuple(group[0] if len(group) == 1 else _joined(group) for group in groups)


def _joined(blocks: Sequence[TokenBlock]) -> TokenBlock:
    return TokenBlock(
        tuple(id for block in blocks for id in block.ids),
        np.concatenate([block.sizes for block in blocks]),
        np.concatenate([block.lengths for block in blocks]),
        np.concatenate([block.vectors for block in blocks]),
    )


def write_blocks(file: Path, blocks: Sequence[TokenBlock], record: Mapping[str, str]) -> None:
    """Write blocks as one safetensors file, whole or not at all.

    Args:
        file: Its folder is created.
        blocks: What to write.
        record: What else the file says.

    Raises:
        OSError: The disk refuses.
    """
    from safetensors.numpy import save_file

    arrays: dict[str, NDArray[np.generic]] = {}
    for number, block in enumerate(blocks):
        parts = {"sizes": block.sizes, "lengths": block.lengths, "vectors": block.vectors}
        arrays |= {f"{number}.{name}": np.ascontiguousarray(part) for name, part in parts.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}-")
    os.close(handle)
    try:
        save_file(arrays, name, {**record, "ids": json.dumps([block.ids for block in blocks])})
        Path(name).replace(file)
    finally:
        Path(name).unlink(missing_ok=True)


def read_blocks(file: Path) -> tuple[tuple[TokenBlock, ...], dict[str, str]]:
    """Return what `write_blocks` wrote.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, or another kind of file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as stored:
            record = dict(stored.metadata() or {})
            ids = json.loads(record.pop("ids"))
            blocks = tuple(
                TokenBlock(tuple(each), *(stored.get_tensor(f"{n}.{part}") for part in ("sizes", "lengths", "vectors")))
                for n, each in enumerate(ids)
            )
    except (SafetensorError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return blocks, record
