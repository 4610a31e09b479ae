"""One call's inputs on their way through the engine."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import InvalidStateError
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from bge_runtime.locks import Promise

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Input", "Job", "Output"]

# What a call wants of each input. The engine only compares it: calls that want the same share batches.
Output: TypeAlias = Hashable


class Input(Protocol):
    """One input of a forward pass: a token sequence, or a picture."""

    @property
    def length(self) -> int:
        """What it costs, in tokens or what compares to them."""
        ...


class Job:
    """The inputs of one call, taken longest first, and the place where their results gather.

    Several workers may compute inputs of one job at once. `take` and `put_back` are guarded by the engine's lock,
    `deliver` by the job's own.
    """

    def __init__(
        self,
        sequences: Sequence[Input],
        output: Output,
        *,
        batch_tokens: int,
        batch_size: int | None = None,
        bulk: bool = False,
        on_progress: Callable[[int], object] | None = None,
    ) -> None:
        """Describe the work; `Engine.submit` starts it.

        Args:
            sequences: Token sequences or pictures; results come back in this order.
            output: What to return for each.
            batch_tokens: Most padded tokens of one forward pass.
            batch_size: Most inputs of one forward pass.
            bulk: Whether interactive work goes first.
            on_progress: Called on a worker with the number of inputs just finished; never by two at once.
        """
        self.future: Promise[list[NDArray[np.float32]]] = Promise()
        self.sequences = sequences
        self.output = output
        self.batch_tokens = batch_tokens
        self.batch_size = batch_size
        self.bulk = bulk
        self.lengths = [sequence.length for sequence in sequences]
        self.tokens = sum(self.lengths)
        self.queued_at = time.perf_counter()
        self.started = False
        self._on_progress = on_progress
        self._results: list[Any] = [None] * len(sequences)
        # Longest first: what shares a batch is then of like length, and the last batch is the cheapest.
        self._waiting = deque(sorted(range(len(sequences)), key=self.lengths.__getitem__, reverse=True))
        self._missing = len(sequences)
        self._delivering = threading.Lock()

    @property
    def waiting(self) -> bool:
        """Whether inputs are left to compute for somebody who still wants them."""
        return bool(self._waiting) and not self.future.done()

    @property
    def cancelled_inputs(self) -> int:
        """Inputs that nobody will compute, because their caller went away."""
        return len(self._waiting) if self.future.cancelled() else 0

    def next_length(self) -> int:
        """Return the number of tokens of the next input."""
        return self.lengths[self._waiting[0]]

    def take(self) -> int:
        """Return the index of the next input."""
        self.started = True
        return self._waiting.popleft()

    def put_back(self, indices: Sequence[int]) -> None:
        """Undo `take` for these indices, in their order."""
        self._waiting.extendleft(reversed(indices))

    def deliver(self, results: Sequence[tuple[int, NDArray[np.float32]]]) -> None:
        """Store results; the last one completes the call."""
        # Two workers may finish inputs of one call at once, and its callback is never to run twice at a time.
        with self._delivering:
            for index, value in results:
                self._results[index] = value
            self._missing -= len(results)
            if self._on_progress is not None and not self.future.done():
                self._on_progress(len(results))
            if not self._missing:
                with suppress(InvalidStateError):
                    self.future.set_result(self._results)

    def fail(self, error: BaseException) -> None:
        """Give the caller an error."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)
