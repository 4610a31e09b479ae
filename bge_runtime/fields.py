"""Options that the adapters share: pydantic fields, and the rules for the arguments that fill them.

For framework packages, which bring pydantic along. The runtime does without it, so nothing here imports this module.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NoReturn, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, SecretStr, ValidationError

from bge_runtime import ConfigurationError, Embedder, ModelSpec, Reranker, ScoreCalibrator, UnknownArgumentError
from bge_runtime.embedding.instructions import OTHER_NAMES
from bge_runtime.inputs.checks import check_items
from bge_runtime.loading.options import LoadingOptions

__all__ = [
    "Arguments",
    "Calibrator",
    "Count",
    "DocumentInstruction",
    "EmbedderArguments",
    "EmbedderFields",
    "Flag",
    "HandedIn",
    "LoadingArguments",
    "LoadingFields",
    "ModelName",
    "QueryInstruction",
    "RerankerArguments",
    "RerankerFields",
    "Seconds",
    "check_items",
    "document_names",
    "fixed",
    "names_of",
    "plain",
]

Count = Annotated[int, Field(gt=0, strict=True)]
Flag = Annotated[bool, Field(strict=True)]  # pydantic would take "no" and 0 too
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]

# Types, not fields of the classes below: the frameworks call them differently, or want them at another place in dumps.
HandedIn = Annotated[
    Any,
    Field(
        exclude=True,
        repr=False,
        description="What was handed in instead of a name, so that the fields alone build an equal object; not dumped.",
    ),
]
ModelName = Annotated[str, Field(description="Hub id, name in the model table, or folder.")]
QueryInstruction = Annotated[
    str | None, Field(description="Text before queries; '' for none, None for the model's own.")
]
DocumentInstruction = Annotated[
    str | None, Field(description="Text before documents; '' for none, None for the model's own.")
]


def _calibrator_content(value: Any) -> Any:
    # As what dumps, pickles and copies carry without knowing it.
    return value.as_dict() if isinstance(value, ScoreCalibrator) else value


Calibrator = Annotated[
    str | dict[str, Any] | None,
    BeforeValidator(_calibrator_content),
    # Left out of dumps while there is none: dumps of before have no such entry.
    Field(
        exclude_if=lambda value: value is None,
        description="Makes probabilities of raw scores: a bge_runtime.ScoreCalibrator, or the path of its file.",
    ),
]


class LoadingArguments(LoadingOptions, total=False):
    """Arguments by which `LoadingFields` is filled, for type checkers, which then see a misspelt one."""

    max_length: int | None
    truncation: Literal["silent", "warn", "error"]
    batch_size: int | None
    batch_tokens: int | None
    show_progress: bool
    dtype: Any
    torch_dtype: Any


class EmbedderArguments(LoadingArguments, total=False):
    """Those of `EmbedderFields` too."""

    task: str | None
    examples: Iterable[Mapping[str, str]] | None
    legacy: bool
    normalize: bool | None
    truncate_dim: int | None
    vector_cache: Any


class RerankerArguments(LoadingArguments, total=False):
    """Those of `RerankerFields` too."""

    normalize: bool
    mode: Literal["multi_vector", "sparse", "dense", "hybrid"] | None
    weights: Sequence[float] | None
    token_pooling: int
    long_document: Literal["truncate", "max_passage"]
    passage_overlap: int
    vector_cache: Any
    cutoff_layers: int | Sequence[int] | None
    compress_ratio: int | None
    compress_layers: Sequence[int] | None
    prompt: str | None
    calibrator: Any


class LoadingFields(BaseModel):
    """Which weights to load and how to run them; the base of every adapter class.

    Dumps list fields by class, bases first and the last base first of all; a field that a subclass declares anew
    keeps its place. Of two direct bases with a field of one name, pydantic takes the first one's, whatever the
    second's ancestors say: hence the groups of fields below are no subclasses of this one.

    Attributes:
        injected: Name of the argument that takes a runtime object in place of options.
        runtime_type: Class of that object.
        runtime_names: Field -> the runtime's argument.
        settled: Further fields that describe the runtime object.
        handed_in: The runtime object that was given, or what else no name says; a field of every subclass.
        renamed: Other names of arguments -> field.
        retired: Arguments of other integrations that have no counterpart -> what to do instead.
    """

    model_config = ConfigDict(protected_namespaces=())  # model_kwargs

    injected: ClassVar[str] = "embedder"
    runtime_type: ClassVar[type[Any]] = Embedder
    runtime_names: ClassVar[Mapping[str, str]]
    settled: ClassVar[tuple[str, ...]] = ()
    renamed: ClassVar[Mapping[str, str]] = {"dtype": "precision", "torch_dtype": "precision"}
    retired: ClassVar[Mapping[str, str]] = {}

    max_length: Count | None = Field(default=None, description="Longest input in tokens; None is the model's own.")
    truncation: Literal["silent", "warn", "error"] = Field(
        default="warn", description="What happens when a text is longer than max_length."
    )
    device: str | None = Field(default=None, description="cpu, cuda, cuda:N or mps; None chooses.")
    precision: str | None = Field(default=None, description="float32, float16, bfloat16 or int8; None chooses.")
    backend: str = Field(default="auto", description="packed, torch, onnx, openvino, llm; auto chooses.")
    calibration: str | None = Field(default=None, description="File of texts that calibrate an int8 export.")
    devices: list[str] | None = Field(default=None, description="Devices that each hold a replica.")
    keep_alive_s: float | None = Field(
        default=None, strict=True, description="Seconds until idle weights are freed; None never."
    )
    batch_size: Count | None = Field(default=None, description="Most texts in one forward pass.")
    batch_tokens: Count | None = Field(default=None, description="Most padded tokens in one forward pass.")
    show_progress: Flag = Field(default=False, description="Whether calls show a progress bar.")
    revision: str | None = Field(default=None, description="Branch, tag or commit of the hub repository.")
    token: str | None = Field(default=None, exclude=True, repr=False, description="Hub token; never dumped or pickled.")
    cache_folder: str | None = Field(
        default=None, description="Folder of downloaded models; None is the Hugging Face cache."
    )
    local_files_only: Flag = Field(default=False, description="Whether to leave the network alone.")
    trust_remote_code: Flag = Field(default=False, description="Whether to run the repository's Python code.")
    base_model: str | None = Field(
        default=None, description="Model of the table whose instructions and pooling a fine-tune inherits."
    )
    adapter: str | None = Field(default=None, description="LoRA adapter: a folder that peft saved, or a hub id.")
    model_kwargs: dict[str, Any] | None = Field(default=None, description="For the weights' loader.")
    processor_kwargs: dict[str, Any] | None = Field(default=None, description="For the tokenizer's loader.")
    config_kwargs: dict[str, Any] | None = Field(default=None, description="For the configuration's loader.")
    # Left out of dumps while there is none: dumps of before have no such entries.
    base_url: str | None = Field(
        default=None, exclude_if=lambda value: value is None, description="Address of a server that runs the model."
    )
    api: str | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="What the server speaks: bge, openai, tei or cohere; None is bge.",
    )

    _runtime: Any = PrivateAttr()

    if TYPE_CHECKING:
        handed_in: Any

    def __init__(self, **options: Any) -> None:
        """Validate the fields; pydantic's error becomes a `ConfigurationError`."""
        try:
            super().__init__(**options)
        except ValidationError as error:
            raise ConfigurationError.from_validation(type(self).__name__, error.errors()) from error
        self._fix()

    def warm_up(self) -> Self:
        """Load the weights ahead of the first call."""
        for runtime in self._runtimes():
            runtime.warm_up()
        return self

    async def awarm_up(self) -> Self:
        """Load the weights without blocking the event loop; see `warm_up`."""
        for runtime in self._runtimes():
            await runtime.awarm_up()
        return self

    def close(self) -> None:
        """Free the weights if nobody else holds them; a later call loads them again. What was handed in stays open."""
        for runtime in self._own_runtimes():
            runtime.close()

    async def aclose(self) -> None:
        """Close without blocking the event loop; see `close`."""
        for runtime in self._own_runtimes():
            await runtime.aclose()

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

    def _runtimes(self) -> list[Any]:
        """Return the runtime objects that do the work."""
        return [self._runtime]

    def _own_runtimes(self) -> list[Any]:
        return [each for each in self._runtimes() if each is not self.handed_in]

    def _fix(self) -> None:
        """Let dictionaries and lists among the options refuse changes, which nothing would read."""
        self.__dict__.update({name: fixed(value) for name, value in self.__dict__.items()})

    @classmethod
    def _read(cls, given: Mapping[str, Any]) -> Arguments:
        """Return a caller's arguments by field.

        Raises:
            UnknownArgumentError: An argument does not exist.
            ConfigurationError: One has no counterpart here, or two contradict each other.
        """
        # `handed_in` is no argument to offer: fields that build an object again bring it.
        owner, valid = cls.__name__, {*cls.model_fields, *cls.renamed, cls.injected} - {"handed_in"}
        UnknownArgumentError.check(owner, given.keys() - cls.retired.keys() - {"handed_in"}, valid)
        arguments = Arguments(owner)
        for name, value in given.items():
            if name in cls.retired:
                arguments.refuse(name, value, cls.retired[name])
            else:
                arguments.add(cls.renamed.get(name, name), value, name)
        return arguments

    @classmethod
    def _completed(cls, values: Mapping[str, Any], runtime: Any) -> dict[str, Any]:
        """Return the values, and those that describe an injected runtime object.

        Raises:
            ConfigurationError: It is something else, or one of the values is not for it to take.
        """
        given = values.get("handed_in")
        rebuilt = runtime is None and given is not None and not isinstance(given, ModelSpec)
        if runtime is None and not rebuilt:
            return dict(values)
        owner, injected, runtime = cls.__name__, cls.injected, given if rebuilt else runtime
        if not isinstance(runtime, cls.runtime_type):
            wanted = f"bge_runtime.{cls.runtime_type.__name__}"
            raise ConfigurationError(f"{owner} got {injected}={runtime!r}. Pass a {wanted}, or name the model instead.")
        settles = {*cls.runtime_names, *cls.settled}
        if not rebuilt:
            cls._refuse_beside(name for name in settles if values.get(name) is not None)
        own = {name: value for name, value in values.items() if name not in settles or name == "token"}
        return {**own, **cls._description(runtime), "handed_in": runtime}

    @classmethod
    def _refuse_beside(cls, names: Iterable[str]) -> None:
        if both := sorted(names):
            owner, injected = cls.__name__, cls.injected
            raise ConfigurationError(
                f"{owner} got {injected}= together with {', '.join(map(repr, both))}, which the {injected} settles. "
                f"Pass them to the {injected}, or leave {injected}= out."
            )

    def _check_rebuilt(self, values: Mapping[str, Any]) -> None:
        """Refuse values that another object's fields brought beside its runtime object, and that were changed."""
        if self.handed_in is self._runtime:
            names = {*self.runtime_names, *self.settled} - {"token"}
            told = {name: values[name] for name in names if values.get(name) is not None}
            self._refuse_beside(name for name, value in told.items() if value != getattr(self, name))

    @classmethod
    def _description(cls, runtime: Any) -> dict[str, Any]:
        options = {**runtime.options(), "model": runtime.model}
        return {ours: options[theirs] for ours, theirs in cls.runtime_names.items() if theirs in options}

    def _runtime_arguments(self) -> dict[str, Any]:
        return {theirs: _loose(getattr(self, ours)) for ours, theirs in self.runtime_names.items()}


class EmbedderFields(BaseModel):
    """What embedders have beyond loading; the two instructions are the adapters' own fields."""

    task: str | None = Field(default=None, description="Named pair of instructions, where a model has them.")
    examples: list[dict[str, str]] | None = Field(
        default=None, description="In-context examples before queries (bge-en-icl): instruct, query, response."
    )
    legacy: Flag = Field(
        default=False, description="Read texts as HuggingFaceBgeEmbeddings did: for indexes that it filled."
    )
    normalize: Flag | None = Field(default=None, description="L2-normalise; None is the model's own.")
    truncate_dim: Count | None = Field(default=None, description="Keep this many leading dimensions.")
    vector_cache: Any = Field(
        default=None, exclude=True, description="A bge_runtime.VectorCache or the path of its file; not dumped."
    )

    _runtime: Embedder = PrivateAttr()

    @property
    def embedder(self) -> Embedder:
        """The runtime object that does the work."""
        return self._runtime


class RerankerFields(BaseModel):
    """What rerankers have beyond loading."""

    injected: ClassVar[str] = "reranker"
    runtime_type: ClassVar[type[Any]] = Reranker

    normalize: Flag = Field(
        default=True, description="Sigmoid, 0 to 1; False is the raw logit. Late interaction ignores it."
    )
    mode: Literal["multi_vector", "sparse", "dense", "hybrid"] | None = Field(
        default=None, description="What is compared of an embedder's outputs; None is multi_vector."
    )
    weights: tuple[float, float, float] | None = Field(
        default=None, description="Of the dense, sparse and multi-vector score in hybrid; None is 0.4, 0.2, 0.4."
    )
    token_pooling: Count = Field(
        default=1, description="Token vectors of a document merged into one, 1 (off) to 8; for late interaction."
    )
    long_document: Literal["truncate", "max_passage"] = Field(
        default="truncate", description="Read a long document's beginning, or score its best passage."
    )
    passage_overlap: Count = Field(default=64, description="Tokens that neighbouring passages share.")
    vector_cache: Any = Field(
        default=None, exclude=True, description="Remembers the token vectors of late interaction; not dumped."
    )
    cutoff_layers: int | list[int] | None = Field(
        default=None, description="Layer of a layerwise reranker that scores; None is the last."
    )
    compress_ratio: int | None = Field(
        default=None, description="How many neighbouring tokens a lightweight reranker merges: 1, 2, 4, 8."
    )
    compress_layers: list[int] | None = Field(default=None, description="Before which layers it does so; None is 8.")
    prompt: str | None = Field(default=None, description="Prompt of an LLM reranker; None is the model's own.")
    calibrator: Calibrator = None

    _runtime: Reranker = PrivateAttr()

    @property
    def reranker(self) -> Reranker:
        """The runtime object that does the work."""
        return self._runtime


class Arguments:
    """Values by field; a second, different value for a field is an error that names both places."""

    def __init__(self, owner: str) -> None:
        """Start without values, for a class of that name."""
        self.owner = owner
        self.values: dict[str, Any] = {}
        self._origins: dict[str, str] = {}

    @property
    def sources(self) -> dict[str, str]:
        """By field, the dictionary among the arguments that its value was found in."""
        found = {field: origin.partition("[") for field, origin in self._origins.items()}
        return {field: name for field, (name, bracket, _) in found.items() if bracket}

    def add(self, field: str, value: Any, origin: str) -> None:
        """Take a value; `None` leaves another value of the field as it is.

        Args:
            field: The field that it is for.
            value: As the caller gave it.
            origin: The caller's name for the argument.

        Raises:
            ConfigurationError: The field has another value already.
        """
        value, known = plain(field, value), self.values.get(field)
        if known is None:
            self.values[field] = value
            self._origins[field] = origin
        elif value is not None and value != known:
            first, second = ("a token" if field == "token" else repr(each) for each in (known, value))
            raise ConfigurationError(
                f"{self.owner} got two values for {field!r}: {self._origins[field]}={first} and {origin}={second} "
                "contradict each other. Pass one of them."
            )

    def refuse(self, origin: str, value: Any, advice: str) -> None:
        """Refuse an argument of other integrations; their defaults are empty, which asks for nothing, and pass.

        Args:
            origin: The caller's name for the argument.
            value: As the caller gave it.
            advice: What to do instead.

        Raises:
            ConfigurationError: It has a value.
        """
        if value:
            raise ConfigurationError(f"{self.owner} does not take {origin}={value!r}. {advice}")


def document_names(field: str) -> dict[str, str]:
    """Return the further names of the document instruction, for a class whose own name of it is `field`."""
    return {name: field for name in (*OTHER_NAMES, *OTHER_NAMES.values()) if name != field}


def _refuse_change(*_: Any, **__: Any) -> NoReturn:
    raise ConfigurationError(
        "An option cannot be changed in place, where nothing would read it. Assign a whole new value where the class "
        "allows that (LangChain), or build a new object, which shares the loaded weights."
    )


class _FixedDict(dict[str, Any]):
    """An option's dictionary; pickles and deep copies are plain ones."""

    __setitem__ = __delitem__ = __ior__ = _refuse_change
    clear = pop = popitem = setdefault = update = _refuse_change

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


class _FixedList(list[Any]):
    """An option's list; pickles and deep copies are plain ones."""

    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse_change
    append = clear = extend = insert = pop = remove = reverse = sort = _refuse_change

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)


def fixed(value: Any) -> Any:
    """Return a copy of a dictionary or list, and of those in it, that refuses changes; other values as they are."""
    if type(value) is dict:
        return _FixedDict({key: fixed(each) for key, each in value.items()})
    return _FixedList(map(fixed, value)) if type(value) is list else value


def _loose(value: Any) -> Any:
    """Return what the runtime gets: the libraries below it may change what they are given."""
    if isinstance(value, _FixedDict):
        return {key: _loose(each) for key, each in value.items()}
    return [_loose(each) for each in value] if isinstance(value, _FixedList) else value


def names_of(*groups: type[BaseModel], **others: str) -> dict[str, str]:
    """Return the runtime's argument of each loading field, of those of `groups` (the same names) and of `others`."""
    shared: list[type[BaseModel]] = [LoadingFields, *groups]
    return {**others, **{name: name for group in shared for name in group.model_fields}}


def plain(field: str, value: Any) -> Any:
    """Return what a field holds for the objects of other libraries that callers pass: paths, torch's, secrets."""
    if field in ("model", "model_name", "cache_folder", "calibration", "adapter", "calibrator") and isinstance(
        value, os.PathLike
    ):
        return os.fspath(value)
    if field in ("device", "precision") and value is not None:
        return str(value).removeprefix("torch.")
    if field == "token":
        # True asks the hub's client for the token that is stored on this machine, as None does.
        return None if value is True else value.get_secret_value() if isinstance(value, SecretStr) else value
    return value
