"""What the LlamaIndex classes have in common: how arguments become options, copying, pickling."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Self

from llama_index.core.bridge.pydantic import BaseModel, Field, ValidationError
from llama_index.core.callbacks import CallbackManager

from bge_runtime import ConfigurationError, UnknownArgumentError
from bge_runtime.fields import HandedIn, LoadingFields

__all__ = ["WINDOW", "ConfiguredModel", "Window"]

# The most that LlamaIndex lets one embedding call hold; the runtime forms batches by tokens inside it.
WINDOW = 2048
Window = Annotated[
    int,
    Field(
        gt=0,
        le=WINDOW,
        exclude=True,
        description="Accepted, without effect on forward passes: the runtime forms its own batches. See batch_size.",
    ),
]

# Collaborators of this process; they are neither configuration nor picklable in general.
SERVICES = ("callback_manager", "rate_limiter", "embeddings_cache")


class ConfiguredModel(LoadingFields):
    """Options that say which weights to load and how to run them, fixed after construction."""

    # What dumps carry, which a subclass of a user's keeps.
    _owner: ClassVar[str]

    handed_in: HandedIn = None

    def __init__(self, **given: Any) -> None:
        """Check the arguments; take the runtime object, or build the one that they describe."""
        runtime = given.pop(self.injected, None)
        told = self._read(given).values
        values = self._completed(told, runtime)
        # LlamaIndex's own classes pass None for "no callbacks", which a plain field would keep.
        if values.get("callback_manager", ...) is None:
            del values["callback_manager"]
        super().__init__(**values)
        self._runtime = self.handed_in or self.runtime_type(**self._runtime_arguments())
        self._check_rebuilt(told)

    @classmethod
    def class_name(cls) -> str:
        """Return the name that dumps carry."""
        return cls._owner

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute, checked as at construction; what describes the loaded model is fixed."""
        self._refuse_fixed([name])
        if name not in type(self).model_fields:
            super().__setattr__(name, value)
            return
        if name == "callback_manager" and value is None:
            value = CallbackManager([])
        try:
            self.__pydantic_validator__.validate_assignment(self, name, value)
        except ValidationError as error:
            raise ConfigurationError.from_validation(type(self).__name__, error.errors()) from error
        except TypeError as error:  # of BaseEmbedding, about what is no store
            raise ConfigurationError(f"{type(self).__name__}: {name}={value!r} is not allowed: {error}") from error

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy; updates are checked, and what describes the loaded model cannot be updated."""
        changes = dict(update or {})
        UnknownArgumentError.check(type(self).__name__, changes, {*type(self).model_fields, *self.renamed})
        self._refuse_fixed(changes)
        copy = super().model_copy(deep=deep)
        for name, value in changes.items():
            setattr(copy, name, value)
        return copy

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """Show what differs from the defaults, and what the model's own settings come to."""
        settled = self._resolved()
        yield from settled.items()
        for name, value in super().__repr_args__():
            field = type(self).model_fields.get(name or "")
            if name not in {*settled, *SERVICES} and (field is None or value != field.get_default()):
                yield name, value

    def _resolved(self) -> dict[str, Any]:
        """Return the name and settings in force, for `repr`; must not fetch anything."""
        name = self.renamed.get("model", "model")
        return {name: getattr(self, name)}

    def __getstate__(self) -> dict[str, Any]:
        """Return the configuration: no weights, token, callbacks or stores."""
        # BaseModel's: LlamaIndex's own silently drops whatever does not pickle.
        state = BaseModel.__getstate__(self)
        dropped = {name: None for name in (*SERVICES, "token") if name in state["__dict__"]}
        return {**state, "__dict__": {**state["__dict__"], **dropped}}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        """Restore the configuration; the weights come from the process's store at the first use."""
        fields = {**state["__dict__"], "callback_manager": CallbackManager([])}
        BaseModel.__setstate__(self, {**state, "__dict__": fields})
        self._fix()

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """Return a copy that shares the runtime object, callbacks and stores."""
        parts = [getattr(self, name, None) for name in (*SERVICES, "_runtime")]
        shared = {id(part): part for part in parts if part is not None}
        copy = super().__deepcopy__({**(memo or {}), **shared})
        copy._fix()
        return copy

    def _refuse_fixed(self, names: Iterable[str]) -> None:
        fixed = sorted({self.renamed.get(name, name) for name in names} & {*self.runtime_names, "handed_in"})
        if fixed:
            raise ConfigurationError(
                f"{type(self).__name__}: {', '.join(map(repr, fixed))} cannot change after construction. "
                f"Build a new {type(self).__name__}; it shares the loaded weights, so that costs nothing."
            )
