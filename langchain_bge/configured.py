"""What the LangChain classes have in common: how options are checked, copied, pickled and shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self, TypeVar

from langchain_core.load.serializable import Serializable
from langchain_core.utils import secret_from_env
from pydantic import ConfigDict, Field, PrivateAttr, SecretStr

from bge_runtime import ModelSpec
from bge_runtime.fields import Arguments, HandedIn, LoadingFields, ModelName
from langchain_bge.arguments import NESTED, read_nested

__all__ = ["ConfiguredModel"]


class Named(Serializable):
    """What has a model's name; a class of its own, so that dumps begin with it."""

    model_name: ModelName


class ConfiguredModel(LoadingFields, Named):
    """Options that describe a runtime object, and that object.

    An option may be set after construction: it is checked as at construction and holds from the next call on. A
    dictionary of options is set as a whole: what the one before it had set goes back to its default, and changes in
    place are refused. Copies and pickles hold the options; weights come from the process's store.
    """

    model_config = ConfigDict(extra="forbid")

    renamed: ClassVar[Mapping[str, str]] = {**LoadingFields.renamed, "model": "model_name"}

    token: SecretStr | None = Field(  # type: ignore[assignment]
        default_factory=secret_from_env("HF_TOKEN", default=None),
        exclude=True,
        repr=False,
        description="Hub token; never dumped or pickled.",
    )
    model_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="As in LangChain's older classes. Entries with a field of their own go there.",
    )

    handed_in: HandedIn = None

    _sources: dict[str, str] = PrivateAttr()  # field -> the dictionary among the arguments that its value came in

    def __init__(self, model: Any = None, **options: Any) -> None:
        """Check the options; load nothing."""
        given = options if model is None else {"model": model, **options}
        runtime = given.pop(self.injected, None)
        arguments = self._read(given)
        values = self._completed(arguments.values, runtime)
        model, handed_in = values.get("model_name"), values.get("handed_in")
        # The field holds a name, because a spec has no place in a dump; the spec of another name is of no use.
        if isinstance(model, ModelSpec):
            values |= {"model_name": model.id, "handed_in": model}
        elif isinstance(handed_in, ModelSpec) and model != handed_in.id:
            values["handed_in"] = None
        super().__init__(**values)
        self._sources = arguments.sources
        built = self.handed_in is None or isinstance(self.handed_in, ModelSpec)
        self._runtime = self.runtime_type(**self._runtime_arguments()) if built else self.handed_in
        self._check_rebuilt(arguments.values)

    @property
    def model(self) -> str:
        """The model's name; `model_name` is the same."""
        return self.model_name

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Say that `langchain_core.load` can dump and load it."""
        return True

    @classmethod
    def get_lc_namespace(cls) -> list[str]:
        """Return the public package, so that saved chains do not depend on the module."""
        return cls.__module__.split(".")[:1]

    @property
    def lc_secrets(self) -> dict[str, str]:
        """Where the token comes from when a dump is loaded."""
        return {"token": "HF_TOKEN"}

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an option, checked as at construction."""
        name = self.renamed.get(name, name)
        if name not in type(self).model_fields:
            super().__setattr__(name, value)
            return
        # Everything at once, past pydantic's own setters, which would come back here: a wrong option changes nothing.
        changed = self._changed({name: value})
        self.__dict__.update(changed.__dict__)
        for part in ("__pydantic_private__", "__pydantic_fields_set__"):
            object.__setattr__(self, part, getattr(changed, part))

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy over the same weights; `update` is checked as at construction."""
        return self._changed(update or {})

    def __copy__(self) -> Self:
        """Return a copy over the same weights."""
        return self._changed({})

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """Return a copy over the same weights."""
        return self._changed({})

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the options, without the token."""
        options = {name: value for name, value in self._options().items() if name != "token"}
        return _rebuild, (type(self), options, set(self.model_fields_set), dict(self._sources))

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """Show what differs from the defaults, and what the model's own settings come to."""
        settled = {"model_name": self.model_name, **self._resolved()}
        yield from settled.items()
        yield from ((name, value) for name, value in super().__repr_args__() if name not in settled and value != {})

    def _resolved(self) -> dict[str, Any]:
        """Return settings in force, for `repr`; must not fetch anything."""
        return {}

    @classmethod
    def _read(cls, given: Mapping[str, Any]) -> Arguments:
        nested = {name: given[name] for name in NESTED if name in given and name in cls.model_fields}
        arguments = super()._read({name: value for name, value in given.items() if name not in nested})
        read_nested(arguments, nested, cls.model_fields)
        return arguments

    @classmethod
    def _description(cls, runtime: Any) -> dict[str, Any]:
        described = super()._description(runtime)
        loader = described.get("model_kwargs")  # which a reranker over an embedder leaves to that
        return {**described, "model_kwargs": {"model_kwargs": loader} if loader else {}}

    def _runtime_arguments(self) -> dict[str, Any]:
        token = self.token.get_secret_value() if self.token else ""
        return {
            **super()._runtime_arguments(),
            "model": self.handed_in or self.model_name,  # a spec, where one was handed in
            "model_kwargs": self.model_kwargs.get("model_kwargs"),
            "token": token or None,
        }

    def _options(self) -> dict[str, Any]:
        """Return arguments that build an equal object."""
        return {name: getattr(self, name) for name in type(self).model_fields}

    def _changed(self, update: Mapping[str, Any]) -> Self:
        """Return a copy; a dictionary in the update takes the place of the one that was given before."""
        given = dict(update)
        runtime = given.pop(self.injected, None)
        arguments = self._read(given)
        dropped = {field for field, source in self._sources.items() if source in given}
        if runtime is not None:
            dropped |= {"handed_in", *self.runtime_names, *self.settled}
        options = {name: value for name, value in self._options().items() if name not in dropped}
        changed = options | arguments.values | ({} if runtime is None else {self.injected: runtime})
        gone = dropped | arguments.values.keys()
        sources = {field: source for field, source in self._sources.items() if field not in gone}
        fields_set = (self.model_fields_set - dropped) | arguments.values.keys()
        return _rebuild(type(self), changed, fields_set, sources | arguments.sources)


K = TypeVar("K", bound=ConfiguredModel)


def _rebuild(
    kind: type[K], options: dict[str, Any], fields_set: set[str] | None = None, sources: dict[str, str] | None = None
) -> K:
    # Pickles of before have the options only.
    made = kind(**options)
    if fields_set is not None:
        object.__setattr__(made, "__pydantic_fields_set__", fields_set)
    if sources is not None:
        made._sources = sources
    return made
