"""The executor over an exported graph, whatever runs it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from bge_runtime.backends.base import Output, Pooled, without_layers
from bge_runtime.backends.exported.rectangles import Places, Rectangle, groups, pack
from bge_runtime.errors import BackendError, BGEError, ConfigurationError, OutOfMemoryError
from bge_runtime.inputs.tokenizing import Tokenizing, TokenSequence

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ExportedBackend", "Facts", "Session"]

MEMORY_ERRORS = re.compile(
    r"bad_alloc|(not enough|out of|insufficient) memory|allocat\w* .*(memory|fail)", re.IGNORECASE
)


class Session(Protocol):
    """A graph that is ready to run."""

    def __call__(self, inputs: Rectangle) -> NDArray[np.float32]:
        """Return one row per token in `inputs.read`: its last state, or the logit."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What an executor knows of a model besides its graph.

    Attributes:
        task: `embed` or `score`.
        own_pooling: The model's own pooling: `cls`, `mean`, `last`, or `None`.
        width: Length of a token's vector.
        positions: Rows of the position table.
        words: Rows of the word table.
        segments: Rows of the segment table.
        pad_id: Padding token from which RoBERTa counts positions; `None` for BERT.
        parameters: Number of weights.
        bytes: Size of the weights in memory.
    """

    task: str
    own_pooling: str | None
    width: int
    positions: int
    words: int
    segments: int
    pad_id: int | None
    parameters: int
    bytes: int

    def as_dict(self) -> dict[str, Any]:
        """Return the facts for a JSON file."""
        return asdict(self)


class ExportedBackend:
    """A model that runs from an exported graph."""

    pads = False

    def __init__(self, session: Session, tokenizing: Tokenizing, facts: Facts) -> None:
        """Wrap a graph that is ready to run."""
        self.tokenizing = tokenizing
        self.parameters = facts.parameters
        self.bytes = facts.bytes
        self._session = session
        self._facts = facts
        self._places = Places(facts.width, facts.positions, facts.pad_id, facts.words, facts.segments)
        self._process = os.getpid()

    def forward(self, batch: Sequence[TokenSequence], output: Output) -> Sequence[NDArray[np.float32]]:
        """Run one batch; see `Backend.forward`."""
        if os.getpid() != self._process:
            raise BackendError(
                "This model's threads did not survive the fork of its process. Load it in the child, "
                "start processes with the 'spawn' method, or use backend='packed'."
            )
        pooling = self._pooling(without_layers(output))
        rows: list[Any] = [None] * len(batch)
        with _runtime_errors(len(batch)):
            for group in groups([len(sequence.ids) for sequence in batch], self._facts.width):
                for index, row in zip(group, self._run([batch[index] for index in group], pooling), strict=True):
                    rows[index] = row
        return rows

    def _pooling(self, output: Pooled) -> str:
        if (output == "score") != (self._facts.task == "score"):
            raise ConfigurationError(
                f"output={output!r} is not in the export of this model, which was made to {self._facts.task}. "
                "Use Embedder for vectors and Reranker for scores."
            )
        if output == "score":
            return "cls"
        return (self._facts.own_pooling or "tokens") if output == "model" else output

    def _run(self, batch: Sequence[TokenSequence], pooling: str) -> Sequence[NDArray[np.float32]]:
        rows = self._session(pack(batch, self._places, pooling))
        if self._facts.task == "score":
            return list(rows[: len(batch), 0])
        if pooling in ("cls", "last"):
            return list(rows[: len(batch)])
        ends = np.cumsum([len(sequence.ids) for sequence in batch])
        parts = np.split(rows[: ends[-1]], ends[:-1])
        return [part.mean(axis=0) for part in parts] if pooling == "mean" else parts


@contextmanager
def _runtime_errors(texts: int) -> Iterator[None]:
    """Turn a runtime's errors into ours."""
    try:
        yield
    except BGEError:
        raise
    except Exception as error:  # each runtime has classes of its own
        if isinstance(error, MemoryError) or MEMORY_ERRORS.search(str(error)):
            raise OutOfMemoryError(f"{texts} texts do not fit in memory.") from error
        raise BackendError(f"The forward pass failed: {type(error).__name__}: {error}") from error
