"""A batch as the arrays that an exported graph reads.

The tokens of all texts stand in one list, without padding; only attention, which is a small part of the work,
sees a rectangle. Texts whose lengths differ so much that the rectangle would cost are run one group after another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bge_runtime.backends.base import check_table
from bge_runtime.errors import BackendError
from bge_runtime.inputs.tokenizing import TokenSequence

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["INPUTS", "MASKED", "Places", "Rectangle", "groups", "pack"]

MASKED = -1e9  # added to the attention scores of padding
# A group may waste so many tokens' worth of work on padding before the next one starts: what a start costs.
FREE_WASTE_TOKENS = 64
WASTE_SHARE = 0.04
ATTENTION_WEIGHT = 3  # attention is bound by memory: so many times the cost that its arithmetic has


@dataclass(frozen=True, slots=True)
class Places:
    """Where a model's tables have the vector of a position and segment.

    Attributes:
        width: Length of a token's vector.
        positions: Rows of the position table.
        pad_id: Padding token from which RoBERTa counts positions; `None` for BERT.
        words: Rows of the word table; `None` if they are not known.
        segments: Rows of the segment table; `None` if they are not known.
    """

    width: int
    positions: int
    pad_id: int | None
    words: int | None = None
    segments: int | None = None

    def of(self, batch: Sequence[TokenSequence]) -> NDArray[np.int32]:
        """Return each token's row in the table of positions and segments.

        Raises:
            BackendError: A text is longer than the table, or of a segment that it does not have.
        """
        check_table("segment", max((max(type_ids, default=0) for _, type_ids in batch), default=0), self.segments)
        found = []
        for ids, type_ids in batch:
            if self.pad_id is None:
                place = np.arange(len(ids))
            else:  # a literal `<pad>` in a text stands still, as in transformers
                real = np.asarray(ids) != self.pad_id
                place = np.cumsum(real) * real + self.pad_id
            if len(ids) and place.max() >= self.positions:
                raise BackendError(
                    f"A text of {len(ids)} tokens is longer than the model's {self.positions} positions. "
                    "Lower max_length."
                )
            found.append(place + np.asarray(list(type_ids)) * self.positions)
        return np.concatenate(found).astype(np.int32)


@dataclass(frozen=True, slots=True)
class Rectangle:
    """The inputs of a graph, all int32 but `mask`.

    Attributes:
        ids: Token ids, [tokens].
        places: Rows of the position and segment table, [tokens].
        pad: Number of the token in each cell of the rectangle, [texts, length].
        mask: Summand of the attention scores, float32 [texts, 1, 1, length].
        unpad: Number of each token's cell, [tokens].
        read: Numbers of the tokens whose last states are wanted, [rows].
        read_pad: Like `pad`, for the tokens in `read`, [texts, rows per text].
        read_unpad: Like `unpad`, for the tokens in `read`, [rows].
    """

    ids: NDArray[np.int32]
    places: NDArray[np.int32]
    pad: NDArray[np.int32]
    mask: NDArray[np.float32]
    unpad: NDArray[np.int32]
    read: NDArray[np.int32]
    read_pad: NDArray[np.int32]
    read_unpad: NDArray[np.int32]

    def arrays(self) -> dict[str, NDArray[np.int32] | NDArray[np.float32]]:
        """Return the inputs by name."""
        return {name: getattr(self, name) for name in INPUTS}


# Name -> number of dimensions.
INPUTS = {"ids": 1, "places": 1, "pad": 2, "mask": 4, "unpad": 1, "read": 1, "read_pad": 2, "read_unpad": 1}


def groups(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Return the indices of texts that run together, longest first."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    found: list[list[int]] = []
    tokens, waste, longest = 0, 0.0, 0
    for index in order:
        length = lengths[index]
        # A token's linear layers cost 24 width^2, its attention 4 width length.
        extra = ATTENTION_WEIGHT * (longest**2 - length**2) / (6 * width)
        if found and waste + extra <= FREE_WASTE_TOKENS + WASTE_SHARE * tokens:
            found[-1].append(index)
            tokens, waste = tokens + length, waste + extra
        else:
            found.append([index])
            tokens, waste, longest = length, 0.0, length
    return found


def pack(batch: Sequence[TokenSequence], places: Places, pooling: str) -> Rectangle:
    """Lay out texts of similar lengths.

    Args:
        batch: The texts.
        places: The model's position table.
        pooling: `cls` or `last` to read one token of each text, anything else to read all.
    """
    lengths = np.array([len(sequence.ids) for sequence in batch])
    starts = np.cumsum(lengths) - lengths
    tokens = int(lengths.sum())
    idle = _rounded(tokens) - tokens
    ids = np.fromiter((token for sequence in batch for token in sequence.ids), np.int32, tokens)
    check_table("token", int(ids.max(initial=0)), places.words)
    column = np.arange(lengths.max())
    outside = column >= lengths[:, None]
    # Padding repeats a token of the same text, so that not even a NaN gets from one text to another.
    pad = (starts[:, None] + np.where(outside, 0, column)).astype(np.int32)
    unpad = _with_idle(np.flatnonzero(~outside), idle)
    if pooling in ("cls", "last"):
        numbers = np.arange(len(batch))
        spare = _rounded(len(batch)) - len(batch)
        read = _with_idle(starts if pooling == "cls" else starts + lengths - 1, spare)
        read_pad, read_unpad = numbers[:, None].astype(np.int32), _with_idle(numbers, spare)
    else:
        read, read_pad, read_unpad = _with_idle(np.arange(tokens), idle), pad, unpad
    return Rectangle(
        ids=_with_idle(ids, idle),
        places=_with_idle(places.of(batch), idle),
        pad=pad,
        mask=np.where(outside, np.float32(MASKED), np.float32(0))[:, None, None, :],
        unpad=unpad,
        read=read,
        read_pad=read_pad,
        read_unpad=read_unpad,
    )


def _with_idle(numbers: NDArray[np.signedinteger], count: int) -> NDArray[np.int32]:
    return np.concatenate([numbers, np.zeros(count, np.int64)]).astype(np.int32)


def _rounded(rows: int) -> int:
    """Return `rows` rounded up to one of 16 numbers per power of two.

    Runtimes keep a kernel for each number of rows that they meet.
    """
    step = max(8, 1 << ((rows - 1).bit_length() - 5)) if rows > 16 else 8
    return -(-rows // step) * step if rows > 8 else rows
