"""Token vectors of many documents side by side: exact search through them, and their file."""

from __future__ import annotations

import hashlib
import json
import stat
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from bge_runtime.vectors.similarity import best_passages

__all__ = ["TokenBlock", "compacted", "read_blocks", "write_blocks"]

# Vectors of one matrix product: 64 MB of float32 at 1024 dimensions.
BLOCK_TOKENS = 16384
PARTS = ("sizes", "lengths", "vectors")
DIGEST = "digest"
# Of a vector of length 1: float16 moves it by less than 0.001, a flipped bit of a large number by more than this.
LENGTH_TOLERANCE = 0.01


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
        kinds = [(array.dtype.name, array.ndim) for array in (self.sizes, self.lengths, self.vectors)]
        if kinds[:2] != [("int64", 1)] * 2 or kinds[2] not in (("float16", 2), ("float32", 2)):
            raise ValueError(f"arrays of {kinds} are not those of documents, passages and tokens")
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

    arrays: dict[str, NDArray[Any]] = {}
    for number, block in enumerate(blocks):
        arrays |= {f"{number}.{part}": np.ascontiguousarray(getattr(block, part)) for part in PARTS}
    facts = {**record, "ids": json.dumps([block.ids for block in blocks])}
    # An array, since older versions and other readers take what stands in the record for theirs.
    digest = {DIGEST: np.frombuffer(_digest(arrays, facts), np.uint8)}
    file.parent.mkdir(parents=True, exist_ok=True)
    made = file.with_name(f".{file.name}-{uuid.uuid4().hex}")
    try:
        made.touch(exist_ok=False)
        mode = stat.S_IMODE(made.stat().st_mode)
        save_file(arrays | digest, made, facts)
        made.chmod(mode)  # safetensors lets the owner alone read, whatever the umask
        made.replace(file)
    finally:
        made.unlink(missing_ok=True)


def read_blocks(file: Path, format: str) -> tuple[tuple[TokenBlock, ...], dict[str, str]]:
    """Return what `write_blocks` wrote.

    Args:
        file: The file.
        format: What its record is to say of itself; a newer version may have other digests too.

    Raises:
        OSError: There is no such file.
        ValueError: It is damaged, or another kind of file.
    """
    from safetensors import SafetensorError, safe_open

    if not file.is_file():  # opening a pipe would wait for ever
        raise FileNotFoundError(f"no such file: {str(file)!r}")
    try:
        with safe_open(file, framework="np") as stored:
            facts = dict(stored.metadata() or {})
            arrays = {name: stored.get_tensor(name) for name in stored.keys()}
        if facts.get("format") != format:
            raise ValueError(f"its format is {facts.get('format')!r}, not {format!r}")
        ids = json.loads(facts["ids"])
        digest = arrays.pop(DIGEST, None)
        if digest is not None and digest.tobytes() != _digest(arrays, facts):
            raise ValueError("its content is not what was written")
        if arrays.keys() != {f"{number}.{part}" for number in range(len(ids)) for part in PARTS}:
            raise ValueError("its arrays are not those of an index")
        blocks = tuple(
            TokenBlock(tuple(each), *(arrays[f"{number}.{part}"] for part in PARTS)) for number, each in enumerate(ids)
        )
        _check(blocks, vectors=digest is None)
    except (SafetensorError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    del facts["ids"]
    return blocks, facts


def _digest(arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, str]) -> bytes:
    """Return a digest of all that a file says."""
    digest = hashlib.blake2b(json.dumps(dict(facts), sort_keys=True).encode(), digest_size=16)
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.digest()


def _check(blocks: Sequence[TokenBlock], *, vectors: bool) -> None:
    """Refuse blocks that no index can have written, in a file whose digest does not vouch for them.

    Args:
        blocks: Whose arrays fit together.
        vectors: Whether to look at every vector.

    Raises:
        ValueError: Says what cannot be.
    """
    ids = [id for block in blocks for id in block.ids]
    if not all(isinstance(id, str) for id in ids) or len(set(ids)) < len(ids):
        raise ValueError("its ids are not strings, or not distinct")
    if len({(block.vectors.dtype, block.vectors.shape[1]) for block in blocks}) > 1:
        raise ValueError("its vectors are of several kinds")
    for block in blocks if vectors else ():
        lengths = np.linalg.norm(block.vectors.astype(np.float32, copy=False), axis=1)
        if not ((np.abs(lengths - 1) <= LENGTH_TOLERANCE) | (lengths == 0)).all():
            raise ValueError("some of its vectors are not of length 1")
