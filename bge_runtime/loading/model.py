"""What embedders and rerankers share: options, loading on first use, closing, pickling."""

from __future__ import annotations

import inspect
import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Protocol, Self

from tqdm import tqdm

from bge_runtime.backends import ModelInput, Output
from bge_runtime.backends.execution import Execution, check_backend_runs, choose_execution
from bge_runtime.engine.deadline import Deadline
from bge_runtime.engine.engine import Engine, Job
from bge_runtime.engine.flow import Steps
from bge_runtime.errors import ConfigurationError, InputTooLongError, UnknownArgumentError
from bge_runtime.inputs.checks import check_count
from bge_runtime.loading.source import ModelSource
from bge_runtime.loading.store import STORE, LoadedModel
from bge_runtime.models.spec import ModelSpec

__all__ = ["Model", "Rows", "Truncation"]

logger = logging.getLogger("bge_runtime")

# Inputs tokenised and sorted together: enough for batches of equal lengths, little enough to bound memory.
WINDOW = 4096
IN_FLIGHT = 2

# With a deadline: what is lost at most of a call whose time ran out. The engine fills batches from many of them.
DEADLINE_WINDOW = 16

Truncation = Literal["silent", "warn", "error"]


class Prepared(Protocol):
    """What some items of a call become: inputs, how many items were cut, and how many inputs each gave."""

    @property
    def sequences(self) -> Sequence[ModelInput]: ...

    @property
    def truncated(self) -> int: ...

    @property
    def passages(self) -> list[int]: ...


@dataclass(slots=True)
class Rows:
    """Results of a call.

    Attributes:
        values: One per sequence, in order.
        passages: How many sequences each item gave.
        cut: Items that were too long.
    """

    values: list[Any] = field(default_factory=list)
    passages: list[int] = field(default_factory=list)
    cut: int = 0


class Model(ABC):
    """A model by name: nothing is loaded before the first call, and pickling keeps the options only."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Refuse arguments that do not exist, naming those that do."""
        UnknownArgumentError.check(cls.__name__, kwargs, list(inspect.signature(cls.__init__).parameters)[1:])
        return super().__new__(cls)

    def __init__(
        self,
        source: ModelSource,
        *,
        max_length: int | None,
        truncation: Truncation,
        batch_size: int | None,
        batch_tokens: int | None,
        show_progress: bool,
    ) -> None:
        """Check the options that both kinds have."""
        if truncation not in ("silent", "warn", "error"):
            raise ConfigurationError(f"truncation={truncation!r} is not allowed. Use 'silent', 'warn' or 'error'.")
        self.source = source
        self._max_length = check_count(max_length, "max_length")
        self._truncation = truncation
        self._batch_size = check_count(batch_size, "batch_size")
        self._batch_tokens = check_count(batch_tokens, "batch_tokens")
        self._show_progress = show_progress
        self._loaded: LoadedModel | None = None
        self._truncated = 0
        if source.known_spec is not None:
            self._check_spec(source.known_spec)

    @property
    def model(self) -> str:
        """The model as named by the caller."""
        return self.source.name

    @property
    def spec(self) -> ModelSpec:
        """Facts about the model; for a hub id outside the table its files are fetched."""
        spec = self.source.spec
        self._check_spec(spec)
        return spec

    @property
    def known_spec(self) -> ModelSpec | None:
        """Facts about the model where nothing has to be fetched to know them, else `None`."""
        return self.source.known_spec

    @property
    def adapter_digest(self) -> str | None:
        """SHA-256 that names the LoRA adapter's weights, wherever they are stored; `None` without one."""
        return self.source.adapter_digest

    @property
    def max_length(self) -> int:
        """Longest input in tokens, special tokens included."""
        return self._max_length or self.spec.max_length

    @property
    def device(self) -> str:
        """Device that the model runs on; the first of several."""
        return self._execution.device

    @property
    def precision(self) -> str:
        """Number format of the computation."""
        return self._execution.precision

    @property
    def _execution(self) -> Execution:
        source = self.source
        if source.known_spec is not None:
            return source.executions[0]
        return choose_execution((source.devices or (source.device,))[0], source.precision, source.backend)

    @property
    def truncated_count(self) -> int:
        """Inputs cut to `max_length` so far."""
        return self._truncated

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """Return the constructor's arguments, without the access token."""

    @abstractmethod
    def warm_up(self) -> Self:
        """Load the weights ahead of the first call."""

    def close(self) -> None:
        """Free the weights if nobody else holds them; a later call loads them again."""
        STORE.release(self)
        self._loaded = None

    def __enter__(self) -> Self:
        """Return itself; leaving the block closes it."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close."""
        self.close()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy as options, the access token included."""
        options = self.options()
        if "revision" in options:
            options["token"] = self.source.token
        return type(self)(**options)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy as options; the copy shares the loaded weights of its process."""
        return _rebuild, (type(self), self.options())

    def _check_spec(self, spec: ModelSpec) -> None:
        """Refuse what this class cannot run."""
        self.source.check_supported()
        check_backend_runs(self.source.backend, spec.score)
        limit = spec.positions or spec.max_length
        if self._max_length is not None and self._max_length > limit:
            raise ConfigurationError(
                f"max_length={self._max_length} is more than the {limit} tokens that {self.model!r} can read. "
                f"Use at most {limit}, or None for {spec.max_length}."
            )

    def _hold(self, task: Literal["embed", "score"]) -> LoadedModel:
        if self._loaded is None or self._loaded.engine.closed:
            self._check_spec(self.source.spec)
            self._loaded = STORE.acquire(self.source, task, self)
        return self._loaded

    def _rows(
        self,
        loaded: LoadedModel,
        items: Sequence[Any],
        prepare: Callable[[Sequence[Any], int], Prepared],
        output: Output,
        *,
        bulk: bool,
        show_progress: bool | None,
        deadline: Deadline | None = None,
        window: int | None = None,
    ) -> Steps[Rows]:
        """Compute one result per sequence; one window of items is prepared while another is computed.

        With a deadline, small windows are computed in order, and those that it cuts off are missing at the end.
        """
        batch_tokens = self._batch_tokens or loaded.batch_tokens
        window, in_flight = (window or WINDOW, IN_FLIGHT) if deadline is None else (DEADLINE_WINDOW, len(items) + 1)
        pending: deque[Job] = deque()
        rows = Rows()
        with self._progress(len(items), show_progress) as progress:
            try:
                for start in range(0, len(items), window):
                    if deadline is not None and deadline.passed:
                        break
                    part = partial(prepare, items[start : start + window], self.max_length)
                    inputs = yield from self._prepared(loaded.engine, part, bulk)
                    rows.cut += inputs.truncated
                    rows.passages += inputs.passages
                    self._refuse_truncation(rows.cut, len(items))
                    job = Job(
                        inputs.sequences,
                        output,
                        batch_tokens=batch_tokens,
                        batch_size=self._batch_size,
                        bulk=bulk,
                        on_progress=progress.update,
                    )
                    pending.append(loaded.engine.submit(job))
                    if len(pending) == in_flight:
                        yield from _collect(pending, rows, deadline)
                while pending and (yield from _collect(pending, rows, deadline)):
                    pass
            finally:
                for job in pending:
                    job.future.cancel()
        return rows

    def _prepared(self, engine: Engine, prepare: Callable[[], Prepared], bulk: bool) -> Steps[Prepared]:
        """Tokenise texts, or read pictures, when the queue has room for the result."""

        def prepare_now() -> Prepared | None:
            # Others may have filled the queue while this waited for a thread.
            return None if engine.full(bulk=bulk) else prepare()

        while True:
            while (room := engine.room(bulk=bulk)) is not None:
                yield room
            inputs = (yield prepare_now) if bulk else prepare_now()
            if inputs is not None:
                return inputs

    def _refuse_truncation(self, cut: int, asked: int) -> None:
        if cut and self._truncation == "error":
            raise InputTooLongError(
                f"{cut} of {asked} texts are longer than the {self.max_length} tokens that {self.model!r} reads "
                "(truncation='error'). Split them, raise max_length, or use truncation='warn'."
            )

    def _note_truncation(self, cut: int, asked: int) -> None:
        if not cut:
            return
        self._truncated += cut
        STORE.counters.add(truncated=cut)
        if self._truncation == "warn":
            logger.warning(
                "%d of %d texts were cut to the %d tokens that %r reads. "
                "Split long texts, or pass truncation='silent'.",
                cut,
                asked,
                self.max_length,
                self.model,
            )

    def _shared_options(self) -> dict[str, Any]:
        source = {name: getattr(self.source, name) for name in self.source.__dataclass_fields__ if name != "token"}
        return {
            **source,
            "max_length": self._max_length,
            "truncation": self._truncation,
            "batch_size": self._batch_size,
            "batch_tokens": self._batch_tokens,
            "show_progress": self._show_progress,
        }

    def _progress(self, total: int, shown: bool | None) -> tqdm[Any]:
        visible = self._show_progress if shown is None else shown
        return tqdm(total=total, desc=self.model, unit="text", disable=not visible)


def _collect(pending: deque[Job], rows: Rows, deadline: Deadline | None) -> Steps[bool]:
    """Add the results of the oldest job to the rows; `False` if the deadline came first."""
    future = pending[0].future
    found = yield (future if deadline is None else deadline.limit(future))
    if found is None:
        return False
    rows.values += found
    pending.popleft()
    return True


def _rebuild(kind: type[Model], options: dict[str, Any]) -> Model:
    return kind(**options)
