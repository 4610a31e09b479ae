"""A model's inputs to rows: weights on first use, options of running, truncation that is never silent by accident."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from bge_runtime.engine.call import Call, Prepared, Rows
from bge_runtime.engine.deadline import Deadline
from bge_runtime.engine.flow import Flow
from bge_runtime.engine.job import Output
from bge_runtime.errors import InputTooLongError, check_choice, check_count, check_flag
from bge_runtime.inputs.checks import once
from bge_runtime.inputs.tokenizing import characters
from bge_runtime.loading.loaded import LoadedModel
from bge_runtime.loading.source import ModelSource
from bge_runtime.loading.store import STORE

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Progress", "Runner", "Truncation", "distinct"]

logger = logging.getLogger("bge_runtime")

T = TypeVar("T", bound=Hashable)

Truncation = Literal["silent", "warn", "error"]
# Of a text that was too long, in the warning.
SHOWN_CHARACTERS = 60
# Called with the number of items just finished; `None` where no bar is shown.
Progress = Callable[[int], object] | None


class Runner:
    """Runs one model as one public object was told to; holds its weights from the first call on."""

    def __init__(
        self,
        source: ModelSource,
        task: Literal["embed", "score"],
        *,
        max_length: int | None,
        truncation: Truncation,
        batch_size: int | None,
        batch_tokens: int | None,
        show_progress: bool,
    ) -> None:
        """Check the options; nothing is loaded."""
        check_choice(truncation, "truncation", ("silent", "warn", "error"))
        self.source = source
        self.task: Literal["embed", "score"] = task
        self.own_length = check_count(max_length, "max_length")
        self.truncated = 0
        self._truncation: Truncation = truncation
        self._batch_size = check_count(batch_size, "batch_size")
        self._batch_tokens = check_count(batch_tokens, "batch_tokens")
        self._show_progress = check_flag(show_progress, "show_progress")
        self._loaded: LoadedModel | None = None
        self._told = False

    @property
    def max_length(self) -> int:
        """Longest input in tokens."""
        return self.own_length or self.source.spec.max_length

    @property
    def refuses_long(self) -> bool:
        """Whether a text that is too long is an error."""
        return self._truncation == "error"

    @property
    def batch_tokens(self) -> int:
        """Most padded tokens of one forward pass; needs the weights, whose device decides."""
        return self._batch_tokens or self.hold().batch_tokens

    def hold(self) -> LoadedModel:
        """Return the weights in memory, reading them where nobody has.

        Raises:
            BGEError: The model cannot be found, run or loaded.
        """
        if self._loaded is None or self._loaded.engine.closed:
            self._loaded = STORE.acquire(self.source, self.task, self)
        return self._loaded

    def close(self) -> None:
        """Free the weights if nobody else holds them; a later call loads them again."""
        STORE.release(self)
        self._loaded = None

    def rows(
        self,
        items: Sequence[Any],
        prepare: Callable[[Sequence[Any]], Prepared],
        output: Output,
        *,
        bulk: bool = False,
        show_progress: bool | None = False,
        deadline: Deadline | None = None,
        window: int | None = None,
    ) -> Flow[Rows]:
        """Compute one row per input that `prepare` makes of the items; arguments as for `Call`.

        What was cut is counted, but not yet told: see `note_truncation`.
        """
        loaded = self.hold()
        with self.progress(len(items), show_progress) as progress:
            call = Call(
                engine=loaded.engine,
                batch_tokens=self._batch_tokens or loaded.batch_tokens,
                batch_size=self._batch_size,
                bulk=bulk,
                deadline=deadline,
                window=window,
                sizes=characters,
                refuse=self._refuse if self._truncation == "error" else None,
                on_progress=progress,
            )
            return (yield from call.rows(items, prepare, output))

    def progress(self, total: int, shown: bool | None) -> AbstractContextManager[Progress]:
        """Return a progress bar's update while the context lasts, `None` where no bar is shown."""
        visible = self._show_progress if shown is None else shown
        if not isinstance(visible, bool):  # no call where it is one: every text comes this way
            check_flag(visible, "show_progress")
        # No bar that is merely disabled: making one takes a lock of the whole process.
        return _bar(total, self.source.name) if visible else nullcontext()

    def note_truncation(self, rows: Rows, items: Sequence[str | tuple[str, str]]) -> None:
        """Count the items of a call that were cut, and say so the first time, where that was asked for."""
        if rows.cut:
            self.note_cut(rows.cut, len(items), items[rows.first_cut or 0], self.max_length)

    def note_cut(self, cut: int, asked: int, first: str | tuple[str, str], max_length: int) -> None:
        """Do the same for what was read in several parts.

        Args:
            cut: How many items were cut.
            asked: Of how many.
            first: The first that was cut; of a pair the longer text is shown.
            max_length: The tokens that it was cut to.
        """
        self.truncated += cut
        STORE.counters.add(truncated=cut)
        if self._truncation != "warn" or self._told:
            return
        self._told = True
        kind, text = ("texts", first) if isinstance(first, str) else ("pairs", max(first, key=len))
        logger.warning(
            "%d of %d %s were cut to the %d tokens that %r reads; the first that is too long begins %r. "
            "Split long texts, or pass truncation='silent'. "
            "bge_runtime tells this once per object and counts further ones: truncated_count.",
            cut,
            asked,
            kind,
            max_length,
            self.source.name,
            text[:SHOWN_CHARACTERS],
        )

    def options(self) -> dict[str, Any]:
        """Return the arguments that describe this, without the access token."""
        source = {name: getattr(self.source, name) for name in self.source.__dataclass_fields__ if name != "token"}
        return {
            **source,
            "max_length": self.own_length,
            "truncation": self._truncation,
            "batch_size": self._batch_size,
            "batch_tokens": self._batch_tokens,
            "show_progress": self._show_progress,
        }

    def _refuse(self, cut: int, asked: int) -> None:
        raise InputTooLongError(
            f"{cut} of {asked} texts are longer than the {self.max_length} tokens that {self.source.name!r} reads "
            "(truncation='error'). Split them, raise max_length, or use truncation='warn'."
        )


def distinct(items: Sequence[T]) -> tuple[list[T], list[int]]:
    """Return each item of a call once, and where in them each of the items is; counted in `stats`."""
    found, places = once(items)
    STORE.counters.add(texts=len(items), duplicates=len(items) - len(found))
    return found, places


@contextmanager
def _bar(total: int, name: str) -> Iterator[Progress]:
    from tqdm import tqdm

    with tqdm(total=total, desc=name, unit="text") as bar:
        yield bar.update
