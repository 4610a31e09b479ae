"""One call's inputs through an engine: prepared window by window, computed in jobs, gathered in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from bge_runtime.engine.deadline import Deadline
from bge_runtime.engine.engine import Engine
from bge_runtime.engine.flow import Flow
from bge_runtime.engine.job import Input, Job, Output

__all__ = ["Call", "Prepared", "Rows"]

# Items prepared and sorted together: enough for batches of equal lengths, little enough to bound memory.
WINDOW = 4096
WINDOW_SIZE = 1_000_000  # characters of texts: some 250,000 tokens of English, four of a GPU's batches
# One window waits while another is computed; a third would only hold memory.
IN_FLIGHT = 2

# With a deadline: what is lost at most of a call whose time ran out. The engine fills batches from many of them.
DEADLINE_WINDOW = 16


class Prepared(Protocol):
    """What some items of a call become: inputs, how many items were cut, and how many inputs each gave."""

    @property
    def sequences(self) -> Sequence[Input]:
        """The inputs, item after item."""
        ...

    @property
    def truncated(self) -> int:
        """How many items were cut."""
        ...

    @property
    def first_cut(self) -> int | None:
        """Which item was the first of them."""
        ...

    @property
    def passages(self) -> list[int]:
        """How many inputs each item gave."""
        ...


@dataclass(slots=True)
class Rows:
    """Results of a call.

    Attributes:
        values: One per input, in order.
        passages: How many inputs each item gave.
        cut: Items that were too long.
        first_cut: Which item was the first of them.
    """

    values: list[Any] = field(default_factory=list)
    passages: list[int] = field(default_factory=list)
    cut: int = 0
    first_cut: int | None = None


# A window that is being computed, what it was made of, and at which item it begins.
Pending = tuple[Job, Prepared, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """How the inputs of one call are to be computed.

    Attributes:
        engine: Computes them.
        batch_tokens: Most padded tokens of one forward pass.
        batch_size: Most inputs of one forward pass; `None` sets no limit.
        bulk: Whether interactive work goes first.
        deadline: When to stop: small windows are then computed in order, and those that it cuts off are missing.
        window: Items prepared at a time.
        sizes: Returns what each item adds to its window, which holds `WINDOW_SIZE` at most, or one item; `None` counts
            items only.
        refuse: Called with the number of items cut so far and of all; may raise.
        on_progress: Called on a worker with the number of inputs just finished.
    """

    engine: Engine
    batch_tokens: int
    batch_size: int | None = None
    bulk: bool = False
    deadline: Deadline | None = None
    window: int | None = None
    sizes: Callable[[Sequence[Any]], Sequence[int]] | None = None
    refuse: Callable[[int, int], object] | None = None
    on_progress: Callable[[int], object] | None = None

    def rows(self, items: Sequence[Any], prepare: Callable[[Sequence[Any]], Prepared], output: Output) -> Flow[Rows]:
        """Compute one result per input; one window of items is prepared while another is computed."""
        window, in_flight = self.window or WINDOW, IN_FLIGHT
        if self.deadline is not None:
            window, in_flight = DEADLINE_WINDOW, len(items) + 1
        pending: deque[Pending] = deque()
        rows = Rows()
        read = 0
        try:
            for part in self._windows(items, window):
                if self.deadline is not None and self.deadline.passed:
                    break
                inputs = yield from self._prepared(partial(prepare, part))
                if inputs.truncated and self.refuse is not None:
                    self.refuse(inputs.truncated, len(items))
                rows.passages += inputs.passages
                pending.append((self.engine.submit(self._job(inputs, output)), inputs, read))
                read += len(part)
                if len(pending) == in_flight:
                    yield from self._collect(pending, rows, len(items))
            while pending and (yield from self._collect(pending, rows, len(items))):
                pass
        finally:
            for job, inputs, start in pending:
                if inputs.truncated:
                    _note_cut(rows, inputs, start)
                job.future.cancel()
        return rows

    def _windows(self, items: Sequence[Any], most: int) -> list[Sequence[Any]]:
        """Divide the items, in their order."""
        sizes = self.sizes(items) if self.sizes is not None else [0] * len(items)
        windows, start, total = [], 0, 0
        for end, size in enumerate(sizes):
            if end > start and (end - start == most or total + size > WINDOW_SIZE):
                windows.append(items[start:end])
                start, total = end, 0
            total += size
        if start < len(items):
            windows.append(items[start:])
        return windows

    def _prepared(self, prepare: Callable[[], Prepared]) -> Flow[Prepared]:
        """Tokenise texts, or read pictures, when the queue has room for the result."""
        engine, bulk = self.engine, self.bulk

        def prepare_now() -> Prepared | Future[None]:
            # Others may have filled the queue while this waited for a thread.
            # (A future is true, and so is never mistaken for room.)
            return engine.room(bulk=bulk) or prepare()

        while True:
            found: Prepared | Future[None] | None = engine.room(bulk=bulk)
            if found is None:
                found = (yield prepare_now) if bulk else prepare()
            if not isinstance(found, Future):
                return found
            yield found

    def _job(self, inputs: Prepared, output: Output) -> Job:
        return Job(
            inputs.sequences,
            output,
            batch_tokens=self.batch_tokens,
            batch_size=self.batch_size,
            bulk=self.bulk,
            on_progress=self.on_progress,
        )

    def _collect(self, pending: deque[Pending], rows: Rows, asked: int) -> Flow[bool]:
        """Add the results of the oldest job to the rows; `False` if the deadline came first."""
        job, inputs, start = pending[0]
        future = job.future
        found = yield (future if self.deadline is None else self.deadline.limit(future))
        if found is None:
            return False
        rows.values += found
        if inputs.truncated and self.refuse is not None:  # a server says with its answer what it has cut
            self.refuse(inputs.truncated, asked)
        pending.popleft()
        if inputs.truncated:
            _note_cut(rows, inputs, start)
        return True


def _note_cut(rows: Rows, inputs: Prepared, start: int) -> None:
    if not rows.cut:
        rows.first_cut = start + (inputs.first_cut or 0)
    rows.cut += inputs.truncated
