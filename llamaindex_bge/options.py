"""What the embedding and the reranker have in common: options, how arguments become options, pickling."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from llama_index.core.bridge.pydantic import BaseModel, BeforeValidator, Field, ValidationError
from llama_index.core.callbacks import CallbackManager

from bge_runtime import ConfigurationError, UnknownArgumentError

__all__ = ["LOADING_NAMES", "ConfiguredModel", "Count", "FolderOrName"]

# Collaborators of this process; they are neither configuration nor picklable in general.
SERVICES = ("callback_manager", "rate_limiter", "embeddings_cache")


def _path_as_text(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _object_as_name(value: Any) -> Any:
    return None if value is None else str(value)


FolderOrName = Annotated[str, BeforeValidator(_path_as_text)]
Count = Annotated[int, Field(gt=0, strict=True)]
# torch.device and torch.dtype objects are welcome; their str() is the name.
TorchName = Annotated[str | None, BeforeValidator(_object_as_name)]


class ConfiguredModel(BaseModel):
    """Options that say which weights to load and how to run them, fixed after construction."""

    _owner: ClassVar[str]
    _injected: ClassVar[str]
    _runtime_class: ClassVar[type[Any]]
    _runtime_names: ClassVar[Mapping[str, str]]
    _renamed: ClassVar[Mapping[str, str]] = {"dtype": "precision", "torch_dtype": "precision"}
    _retired: ClassVar[Mapping[str, str]] = {}

    max_length: Count | None = Field(default=None, description="Longest input in tokens; None is the model's own.")
    truncation: Literal["silent", "warn", "error"] = Field(
        default="warn", description="What happens when a text is longer than max_length."
    )
    device: TorchName = Field(default=None, description="cpu, cuda, cuda:N or mps; None chooses.")
    precision: TorchName = Field(default=None, description="float32, float16, bfloat16 or int8; None chooses.")
    backend: str = Field(default="auto", description="packed, torch, onnx, openvino, llm; auto chooses.")
    calibration: FolderOrName | None = Field(default=None, description="File of texts that calibrate an int8 export.")
    devices: list[str] | None = Field(default=None, description="Devices that each hold a replica.")
    keep_alive_s: float | None = Field(default=None, description="Seconds until idle weights are freed; None never.")
    batch_size: Count | None = Field(default=None, description="Most texts in one forward pass.")
    batch_tokens: Count | None = Field(default=None, description="Most padded tokens in one forward pass.")
    show_progress: bool = Field(default=False, description="Whether calls show a progress bar.")
    revision: str | None = Field(default=None, description="Branch, tag or commit of the hub repository.")
    token: str | None = Field(default=None, exclude=True, repr=False, description="Hub token; never dumped.")
    cache_folder: FolderOrName | None = Field(
        default=None, description="Folder of downloaded models; None is the Hugging Face cache."
    )
    local_files_only: bool = Field(default=False, description="Whether to leave the network alone.")
    trust_remote_code: bool = Field(default=False, description="Whether to run the repository's Python code.")
    base_model: str | None = Field(
        default=None, description="Table model whose instructions and pooling a fine-tune inherits."
    )
    adapter: FolderOrName | None = Field(
        default=None, description="LoRA adapter: a folder that peft saved, or a hub id."
    )
    model_kwargs: dict[str, Any] | None = Field(default=None, description="For the weights' loader.")
    processor_kwargs: dict[str, Any] | None = Field(default=None, description="For the tokenizer's loader.")
    config_kwargs: dict[str, Any] | None = Field(default=None, description="For the configuration's loader.")

    def __init__(self, **options: Any) -> None:
        """Validate the options; pydantic's error becomes a `ConfigurationError`."""
        try:
            super().__init__(**options)
        except ValidationError as error:
            raise ConfigurationError.from_validation(self._owner, error.errors()) from error

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
        parts = [getattr(self, name, None) for name in (*SERVICES, f"_{self._injected}")]
        shared = {id(part): part for part in parts if part is not None}
        return super().__deepcopy__({**(memo or {}), **shared})

    @classmethod
    def _accepted(cls, given: Mapping[str, Any], runtime: Any) -> dict[str, Any]:
        """Return the arguments under our names, completed from the injected runtime object."""
        UnknownArgumentError.check(
            cls._owner, set(given) - set(cls._retired), {*cls.model_fields, *cls._renamed, cls._injected}
        )
        arguments: dict[str, Any] = {}
        for name, value in given.items():
            if name in cls._retired:
                cls._refuse_retired(name, value)
            elif arguments.setdefault(cls._renamed.get(name, name), value) != value:
                raise ConfigurationError(
                    f"{cls._owner} got two values for {cls._renamed.get(name, name)!r}. Pass one of the names."
                )
        # LlamaIndex's own classes pass None for "no callbacks", which a plain field would keep.
        if arguments.get("callback_manager", ...) is None:
            del arguments["callback_manager"]
        return arguments if runtime is None else {**arguments, **cls._described(arguments, runtime)}

    @classmethod
    def _described(cls, arguments: Iterable[str], runtime: Any) -> dict[str, Any]:
        if not isinstance(runtime, cls._runtime_class):
            raise ConfigurationError(
                f"{cls._owner} got {cls._injected}={runtime!r}. Pass a bge_runtime.{cls._runtime_class.__name__}, "
                "or name the model instead."
            )
        both = sorted(set(arguments) & set(cls._runtime_names))
        if both:
            raise ConfigurationError(
                f"{cls._owner} got {cls._injected}= together with {', '.join(map(repr, both))}, which the "
                f"{cls._injected} settles. Pass them to the {cls._injected}, or leave {cls._injected}= out."
            )
        options = {**runtime.options(), "model": runtime.model}
        return {ours: options[theirs] for ours, theirs in cls._runtime_names.items() if theirs in options}

    @classmethod
    def _refuse_retired(cls, name: str, value: Any) -> None:
        # Empty values are the other integrations' defaults: the caller is not asking for anything.
        if value:
            raise ConfigurationError(f"{cls._owner} does not take {name}={value!r}. {cls._retired[name]}")

    def _runtime_arguments(self) -> dict[str, Any]:
        return {theirs: getattr(self, ours) for ours, theirs in self._runtime_names.items()}

    def _refuse_fixed(self, names: Iterable[str]) -> None:
        fixed = sorted(set(names) & set(self._runtime_names))
        if fixed:
            raise ConfigurationError(
                f"{self._owner}: {', '.join(map(repr, fixed))} cannot change after construction. "
                f"Build a new {self._owner}; it shares the loaded weights, so that costs nothing."
            )


LOADING_NAMES = tuple(ConfiguredModel.model_fields)
