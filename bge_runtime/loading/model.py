"""What embedders and rerankers share as objects: facts, options, closing, copying, pickling."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, Self, TypeVar

from bge_runtime.backends.execution import Execution
from bge_runtime.engine.flow import Flow
from bge_runtime.errors import ConfigurationError, UnknownArgumentError
from bge_runtime.loading.runner import Runner
from bge_runtime.loading.source import ModelSource
from bge_runtime.loading.store import arun
from bge_runtime.locks import cached_property
from bge_runtime.models.spec import ModelSpec

__all__ = ["Model"]

T = TypeVar("T")


class Model(ABC):
    """A model by name: nothing is loaded before the first call, and pickling keeps the options only.

    Attributes:
        other_names: Further names of the constructor's arguments -> the argument; see `with_other_names`.
    """

    other_names: ClassVar[Mapping[str, str]] = {}

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Refuse arguments that do not exist, naming those that do."""
        # Here and not in __init__, before which Python itself would refuse, without naming a neighbour.
        own = list(inspect.signature(cls.__init__).parameters)[1:]
        UnknownArgumentError.check(cls.__name__, kwargs, [*own, *cls.other_names])
        return super().__new__(cls)

    def __init__(self, runner: Runner) -> None:
        """Take what runs the model; a subclass's constructor ends with `_check_known`."""
        self._runner = runner

    @property
    def source(self) -> ModelSource:
        """The model as the caller named it, and how it is loaded."""
        return self._runner.source

    @property
    def model(self) -> str:
        """The model as named by the caller."""
        return self.source.name

    @property
    def known_spec(self) -> ModelSpec | None:
        """Facts about the model when they can be had without fetching anything."""
        return self.source.known_spec

    @cached_property
    def spec(self) -> ModelSpec:
        """Facts about the model; for a hub id outside the table its files are fetched."""
        spec = self.source.spec
        self._check_spec(spec)
        return spec

    @property
    def adapter_digest(self) -> str | None:
        """SHA-256 that names the LoRA adapter's weights, wherever they are stored; `None` without one."""
        return self.source.adapter_digest

    @property
    def max_length(self) -> int:
        """Longest input in tokens, special tokens included."""
        _ = self.spec
        return self._runner.max_length

    @property
    def device(self) -> str:
        """Device that the model runs on; the first of several."""
        return self._execution.device

    @property
    def precision(self) -> str:
        """Number format of the computation."""
        return self._execution.precision

    @property
    def truncated_count(self) -> int:
        """Inputs cut to `max_length` so far."""
        return self._runner.truncated

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """Return the constructor's arguments, without the access token."""

    @abstractmethod
    def warm_up(self) -> Self:
        """Load the weights ahead of the first call."""

    async def awarm_up(self) -> Self:
        """Load the weights without blocking the event loop; see `warm_up`."""
        return await arun(_body(self.warm_up))

    def close(self) -> None:
        """Free the weights if nobody else holds them; a later call loads them again."""
        self._runner.close()

    async def aclose(self) -> None:
        """Close without blocking the event loop; see `close`."""
        await arun(_body(self.close))

    def __enter__(self) -> Self:
        """Return itself; leaving the block closes it."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close."""
        self.close()

    async def __aenter__(self) -> Self:
        """Return itself; leaving the block closes it."""
        return self

    async def __aexit__(self, *exception: object) -> None:
        """Close."""
        await self.aclose()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy as options, the access token included."""
        options = self.options()
        if "revision" in options:  # not so where an embedder's own options hold
            options["token"] = self.source.token
        return type(self)(**options)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy as options; the copy shares the loaded weights of its process.

        By the class, which names its public module: what a pickle names must not move.
        """
        return partial(type(self), **self.options()), ()

    def _check_known(self) -> None:
        """Raise in the constructor what needs no files to be known."""
        if self.known_spec is not None:
            _ = self.spec

    @property
    def _execution(self) -> Execution:
        return self.source.execution

    def _check_spec(self, spec: ModelSpec) -> None:
        """Refuse what this class cannot run."""
        self.source.check_supported()
        self.source.check_executions(spec)
        limit, asked = spec.positions or spec.max_length, self._runner.own_length
        if asked is not None and asked > limit:
            raise ConfigurationError(
                f"max_length={asked} is more than the {limit} tokens that {self.model!r} can read. "
                f"Use at most {limit}, or None for {spec.max_length}."
            )


def _body(function: Callable[[], T]) -> Flow[T]:
    """Return the body of a call that waits for nothing in between, to be run on one of the process's threads."""
    return function()
    yield  # what makes it a body
