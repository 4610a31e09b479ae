"""What the LangChain classes have in common: options, how they are checked, copied, pickled and shown."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from langchain_core.load.serializable import Serializable
from langchain_core.utils import secret_from_env
from pydantic import ConfigDict, Field, PrivateAttr, SecretStr, ValidationError

from bge_runtime import ConfigurationError, Embedder, ModelSpec, Reranker, UnknownArgumentError
from langchain_bge.arguments import NESTED, Arguments, refuse_retired

__all__ = ["LOADING_NAMES", "ConfiguredModel", "Count"]

Count = Annotated[int, Field(gt=0, strict=True)]


class ConfiguredModel(Serializable):
    """Options that describe a runtime object, and that object.

    An option may be set after construction: it is checked as at construction and holds from the next call on.
    Copies and pickles hold the options; weights come from the process's store.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    injected: ClassVar[str]
    runtime_type: ClassVar[type[Embedder] | type[Reranker]]
    # Field -> the runtime's argument.
    runtime_names: ClassVar[Mapping[str, str]]
    renamed: ClassVar[Mapping[str, str]] = {"model": "model_name", "dtype": "precision", "torch_dtype": "precision"}
    retired: ClassVar[Mapping[str, str]] = {}

    model_name: str = Field(description="Hub id, name in the model table, or folder. `model` is the same.")
    max_length: Count | None = Field(default=None, description="Longest input in tokens; None is the model's own.")
    truncation: Literal["silent", "warn", "error"] = Field(
        default="warn", description="What happens when a text is longer than max_length."
    )
    device: str | None = Field(default=None, description="cpu, cuda, cuda:N or mps; None chooses.")
    precision: str | None = Field(default=None, description="float32, float16, bfloat16 or int8; None chooses.")
    backend: str = Field(default="auto", description="packed, torch, onnx, openvino, llm; auto chooses.")
    calibration: str | None = Field(default=None, description="File of texts that calibrate an int8 export.")
    devices: list[str] | None = Field(default=None, description="Devices that each hold a replica.")
    keep_alive_s: float | None = Field(default=None, description="Seconds until idle weights are freed; None never.")
    batch_size: Count | None = Field(default=None, description="Most texts in one forward pass.")
    batch_tokens: Count | None = Field(default=None, description="Most padded tokens in one forward pass.")
    show_progress: bool = Field(default=False, description="Whether calls show a progress bar.")
    revision: str | None = Field(default=None, description="Branch, tag or commit of the hub repository.")
    token: SecretStr | None = Field(
        default_factory=secret_from_env("HF_TOKEN", default=None),
        exclude=True,
        repr=False,
        description="Hub token; never dumped or pickled.",
    )
    cache_folder: str | None = Field(default=None, description="Folder of downloaded models.")
    local_files_only: bool = Field(default=False, description="Whether to leave the network alone.")
    trust_remote_code: bool = Field(default=False, description="Whether to run the repository's Python code.")
    base_model: str | None = Field(
        default=None, description="Model of the table whose instructions and pooling a fine-tune inherits."
    )
    adapter: str | None = Field(default=None, description="LoRA adapter: a folder that peft saved, or a hub id.")
    model_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="As in LangChain's older classes. Entries with a field of their own go there.",
    )
    processor_kwargs: dict[str, Any] | None = Field(default=None, description="For the tokenizer's loader.")
    config_kwargs: dict[str, Any] | None = Field(default=None, description="For the configuration's loader.")

    _model: str | ModelSpec = PrivateAttr()
    _is_injected: bool = PrivateAttr(default=False)

    def __init__(self, model: Any = None, **options: Any) -> None:
        """Check the options; load nothing."""
        given = options if model is None else {"model": model, **options}
        runtime = given.get(self.injected)
        values = self._read({name: value for name, value in given.items() if name != self.injected})
        if runtime is not None:
            values |= self._described(values, runtime)
        model = values.get("model_name")
        if isinstance(model, ModelSpec):
            values["model_name"] = model.id
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigurationError.from_validation(type(self).__name__, error.errors()) from error
        self._model = model if isinstance(model, ModelSpec) else self.model_name
        self._is_injected = runtime is not None
        self._adopt(runtime)

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
        changed = self._changed({name: value})
        self.__dict__.update(changed.__dict__)
        object.__setattr__(self, "__pydantic_private__", changed.__pydantic_private__)

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
        return _rebuild, (type(self), options)

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """Show what differs from the defaults, and what the model's own settings come to."""
        settled = {"model_name": self.model_name, **self._resolved()}
        yield from settled.items()
        yield from ((name, value) for name, value in super().__repr_args__() if name not in settled and value != {})

    @abstractmethod
    def _adopt(self, runtime: Any) -> None:
        """Take the runtime object, or build one when it is `None`."""

    def _resolved(self) -> dict[str, Any]:
        """Return settings in force, for `repr`; must not fetch anything."""
        return {}

    def _runtime_arguments(self) -> dict[str, Any]:
        values = {theirs: getattr(self, ours) for ours, theirs in self.runtime_names.items()}
        token = self.token.get_secret_value() if self.token else ""
        return {
            **values,
            "model": self._model,
            "model_kwargs": self.model_kwargs.get("model_kwargs"),
            "token": token or None,
        }

    @classmethod
    def _read(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        owner = cls.__name__
        fields = list(cls.model_fields)
        UnknownArgumentError.check(owner, set(given) - set(cls.retired), {*fields, *cls.renamed, cls.injected})
        for name in cls.retired.keys() & given.keys():
            refuse_retired(owner, name, given[name], cls.retired[name])
        return Arguments(owner, fields, cls.renamed).read(
            {name: value for name, value in given.items() if name not in cls.retired}
        )

    @classmethod
    def _described(cls, values: Mapping[str, Any], runtime: Any) -> dict[str, Any]:
        """Return the fields that describe an injected runtime object."""
        if not isinstance(runtime, cls.runtime_type):
            wanted = f"bge_runtime.{cls.runtime_type.__name__}"
            raise ConfigurationError(f"{cls.__name__}: {cls.injected}={runtime!r} is not a {wanted}. Pass one.")
        settled = {*cls.runtime_names, "model_kwargs", "query_encode_kwargs"}
        both = sorted(name for name in settled & values.keys() if values[name] is not None)
        if both:
            raise ConfigurationError(
                f"{cls.__name__} got {cls.injected}= together with {', '.join(map(repr, both))}, which the "
                f"{cls.injected} settles. Pass them to the {cls.injected}, or leave {cls.injected}= out."
            )
        options = {**runtime.options(), "model": runtime.model}
        loader = options.get("model_kwargs")
        fields = {ours: options[theirs] for ours, theirs in cls.runtime_names.items() if theirs in options}
        return {**fields, "model_kwargs": {"model_kwargs": loader} if loader else {}}

    def _options(self) -> dict[str, Any]:
        """Return arguments that build an equal object."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        if not self._is_injected:
            return {**values, "model_name": self._model}
        described = {*self.runtime_names, *NESTED, "token"}
        kept = {name: value for name, value in values.items() if name not in described}
        return {**kept, self.injected: getattr(self, self.injected)}

    def _changed(self, update: Mapping[str, Any]) -> Self:
        renamed = {self.renamed.get(name, name): value for name, value in update.items()}
        return type(self)(**{**self._options(), **renamed})


def _rebuild(kind: type[ConfiguredModel], options: dict[str, Any]) -> ConfiguredModel:
    return kind(**options)


_OWN = ("model_name", "token", "model_kwargs")
LOADING_NAMES: Iterable[str] = tuple(name for name in ConfiguredModel.model_fields if name not in _OWN)
