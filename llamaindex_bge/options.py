"""What the LlamaIndex classes have in common: how arguments become options, copying, pickling."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Self

from llama_index.core.bridge.pydantic import BaseModel, Field
from llama_index.core.callbacks import CallbackManager

from bge_runtime import ConfigurationError
from bge_runtime.fields import LoadingFields

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

    def __init__(self, **given: Any) -> None:
        """Check the arguments; take the runtime object, or build the one that they describe."""
        runtime = given.pop(self.injected, None)
        values = self._completed(self._read(given).values, runtime)
        # LlamaIndex's own classes pass None for "no callbacks", which a plain field would keep.
        if values.get("callback_manager", ...) is None:
            del values["callback_manager"]
        super().__init__(**values)
        self._runtime = runtime or self.runtime_type(**self._runtime_arguments())

    @classmethod
    def class_name(cls) -> str:
        """Return the name that dumps carry."""
        return cls._owner

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; what describes the loaded model is fixed."""
        self._refuse_fixed([name])
        super().__setattr__(name, value)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy; what describes the loaded model cannot be updated."""
        self._refuse_fixed(update or ())
        return super().model_copy(update=update, deep=deep)

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

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """Return a copy that shares the runtime object, callbacks and stores."""
        parts = [getattr(self, name, None) for name in (*SERVICES, "_runtime")]
        shared = {id(part): part for part in parts if part is not None}
        return super().__deepcopy__({**(memo or {}), **shared})

    def _refuse_fixed(self, names: Iterable[str]) -> None:
        fixed = sorted({self.renamed.get(name, name) for name in names} & set(self.runtime_names))
        if fixed:
            raise ConfigurationError(
                f"{type(self).__name__}: {', '.join(map(repr, fixed))} cannot change after construction. "
                f"Build a new {type(self).__name__}; it shares the loaded weights, so that costs nothing."
            )
