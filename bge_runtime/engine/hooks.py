"""What happens to models, told to whoever asked: the hook protocol, its events, and the hooks in force."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import Literal, Protocol, TypedDict

from bge_runtime.errors import ConfigurationError, public

__all__ = [
    "BatchEvent",
    "ErrorEvent",
    "Hook",
    "Hooks",
    "LoadEvent",
    "ModelEvent",
    "OutOfMemoryEvent",
    "Place",
    "UnloadEvent",
]

logger = logging.getLogger("bge_runtime")


class Place(TypedDict):
    """Where something happened: the fields that all events have."""

    model: str
    backend: str
    device: str
    precision: str


@public
@dataclass(frozen=True, kw_only=True, slots=True)
class ModelEvent:
    """Something happened to one copy of a model's weights. No event holds a text.

    Attributes:
        model: Model as first asked for.
        backend: Way of executing.
        device: Device of this copy.
        precision: Number format of the computation.
    """

    model: str
    backend: str
    device: str
    precision: str


@public
@dataclass(frozen=True, kw_only=True, slots=True)
class LoadEvent(ModelEvent):
    """Weights were read into memory.

    Attributes:
        seconds: Time it took.
        parameters: Number of weights.
        bytes: Their size in memory.
    """

    seconds: float
    parameters: int
    bytes: int


@public
@dataclass(frozen=True, kw_only=True, slots=True)
class BatchEvent(ModelEvent):
    """A forward pass was made.

    Attributes:
        output: What was computed: `cls`, `mean`, `last` or `model` for vectors, `tokens`, `lexical`, `all`, `score`.
        inputs: Texts or pairs in the batch.
        jobs: Calls that shared it.
        tokens: Tokens of the inputs.
        padded_tokens: Tokens computed, padding included.
        seconds: Time of the forward pass.
        queue_s: Seconds that each call which began with this batch had waited.
    """

    output: str
    inputs: int
    jobs: int
    tokens: int
    padded_tokens: int
    seconds: float
    queue_s: tuple[float, ...]


@public
@dataclass(frozen=True, kw_only=True, slots=True)
class OutOfMemoryEvent(ModelEvent):
    """A batch did not fit and is tried again in smaller ones.

    Attributes:
        inputs: Inputs of the batch.
        padded_tokens: Tokens of the batch, padding included.
        retry_tokens: Budget of the batches from here on.
    """

    inputs: int
    padded_tokens: int
    retry_tokens: int


@public
@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorEvent(ModelEvent):
    """Calls failed.

    Attributes:
        error: Class of the error that the callers see.
        cause: Class of what made it, or the same.
        jobs: Calls that failed.
    """

    error: str
    cause: str
    jobs: int


@public
@dataclass(frozen=True, kw_only=True, slots=True)
class UnloadEvent(ModelEvent):
    """Weights were freed.

    Attributes:
        reason: `idle` after `keep_alive_s` without work, `closed` when nobody holds them any more.
        bytes: Their size.
    """

    reason: Literal["idle", "closed"]
    bytes: int


@public
class Hook(Protocol):
    """What a hook offers; a subclass overrides the methods it wants.

    The methods run on the thread that does the work, before its callers get their results: keep them short.
    Whatever they raise is logged once and goes no further.
    """

    # Each says `return`, since type checkers take a method without a body for one that a subclass has to write.

    def on_load(self, event: LoadEvent) -> None:
        """Weights were read into memory."""
        return

    def on_batch(self, event: BatchEvent) -> None:
        """A forward pass was made."""
        return

    def on_out_of_memory(self, event: OutOfMemoryEvent) -> None:
        """A batch did not fit and is tried again in smaller ones."""
        return

    def on_error(self, event: ErrorEvent) -> None:
        """Calls failed."""
        return

    def on_unload(self, event: UnloadEvent) -> None:
        """Weights were freed."""
        return


_METHODS = {
    LoadEvent: "on_load",
    BatchEvent: "on_batch",
    OutOfMemoryEvent: "on_out_of_memory",
    ErrorEvent: "on_error",
    UnloadEvent: "on_unload",
}


class Hooks:
    """The hooks in force. Any thread may add, remove and tell."""

    def __init__(self, hooks: tuple[Hook, ...] = ()) -> None:
        """Start with some hooks."""
        self._lock = threading.Lock()
        self._failed: set[int] = set()
        self.active = hooks  # replaced, never changed: telling needs no lock

    def add(self, hook: Hook | type[Hook], *, once: bool = False) -> None:
        """Tell this hook from here on; one that is there already is told once.

        Args:
            hook: The hook.
            once: Whether it is a class, of which an object is made unless one is in force.

        Raises:
            ConfigurationError: A method of `Hook` is missing.
        """
        if once and isinstance(hook, type):
            if any(isinstance(each, hook) for each in self.active):
                return
            hook = hook()
        missing = [name for name in _METHODS.values() if not callable(getattr(hook, name, None))]
        if missing or isinstance(hook, type):
            raise ConfigurationError(
                f"{hook!r} is not a hook: it lacks {', '.join(missing) or 'an instance'}. "
                "Pass an object of a subclass of bge_runtime.Hook."
            )
        with self._lock:
            if not any(hook is each for each in self.active):
                self.active = (*self.active, hook)

    def remove(self, hook: Hook) -> None:
        """Tell this hook no more; nothing happens if it is not there."""
        with self._lock:
            self.active = tuple(each for each in self.active if each is not hook)
            self._failed.discard(id(hook))

    def tell(self, event: ModelEvent) -> None:
        """Hand an event to every hook."""
        # A snapshot: hooks that come or go meanwhile replace the tuple.
        for hook in self.active:
            try:
                getattr(hook, _METHODS[type(event)])(event)
            except KeyboardInterrupt:
                raise
            except BaseException:  # noqa: BLE001 - a worker must survive even a hook that exits
                self._note_failure(hook)

    def _note_failure(self, hook: Hook) -> None:
        with self._lock:
            first = id(hook) not in self._failed
            self._failed.add(id(hook))
        if first:
            logger.exception("The hook %r failed; its further failures are not logged.", type(hook).__name__)
