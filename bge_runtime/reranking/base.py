"""What a reranker asks of what scores its pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bge_runtime.engine.deadline import Deadline
from bge_runtime.engine.flow import Flow

__all__ = ["INTERACTIVE_PAIRS", "LongDocument", "Method", "Pairs", "Scorer", "Scores"]

INTERACTIVE_PAIRS = 512  # larger calls give way to smaller ones

LongDocument = Literal["truncate", "max_passage"]
Method = Literal["cross_encoder", "late_interaction"]
Pairs: TypeAlias = Sequence[tuple[str, str]]
Scores: TypeAlias = NDArray[np.float32]


class Scorer(Protocol):
    """Scores pairs: `CrossEncoder` or `LateInteraction`."""

    def scores(self, pairs: Pairs, show_progress: bool | None, deadline: Deadline | None) -> Flow[Scores]:
        """Return the raw score of each pair, equal ones being scored once; NaN for what the deadline cuts off.

        Raises:
            BackendError: A score, or what it is made from, is not finite.
        """
        ...

    def warm_up(self) -> None:
        """Load the weights ahead of the first call."""
        ...

    def close(self) -> None:
        """Let go of what the scorer has made itself."""
        ...
