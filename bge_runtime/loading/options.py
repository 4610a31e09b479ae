"""How weights are found, loaded and placed: the options that every class takes, told once."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, TypedDict, TypeVar, cast

from bge_runtime.errors import ConfigurationError

__all__ = ["LoadingOptions", "with_loading_options", "with_other_names"]

T = TypeVar("T", bound=Callable[..., None])


class LoadingOptions(TypedDict, total=False):
    """Options of loading.

    Attributes:
        device: `cpu`, `cuda`, `cuda:N`, `mps`; `None` chooses.
        precision: `float32`, `float16`, `bfloat16`, `int8` (CPUs); `None` chooses: float32 on CPUs.
        backend: Way of executing: `packed`, `torch`, `onnx`, `openvino`, `llm`; `auto` chooses.
        calibration: File with one text per line, like those to embed, that an int8 export is calibrated on.
        devices: Devices that each hold a replica and work off one queue, instead of `device`.
        keep_alive_s: Seconds without work after which the weights are freed, until the next call; `None` never.
        revision: Branch, tag or commit on the hub.
        token: Access token for private models, or the key of the server.
        cache_folder: Hugging Face cache folder; `None` is the usual one.
        local_files_only: Never use the network.
        trust_remote_code: Whether the repository's own Python code may run.
        base_model: Row of the model table that a fine-tuned model comes from.
        adapter: LoRA adapter, a folder that peft saved or a hub id; it is added to the weights on loading.
        model_kwargs: Extra arguments for the transformers model.
        processor_kwargs: Extra arguments for the tokenizer.
        config_kwargs: Extra arguments for the configuration.
        base_url: Address of a server that runs the model instead; what is settled there cannot be said here.
        api: What the server speaks: `bge` (`bge serve`, the default), `openai`, `tei`, `cohere`. All but the first
            say nothing of the model: instructions are added here, and `model` declares its identity.
    """

    device: str | None
    precision: str | None
    backend: str
    calibration: str | os.PathLike[str] | None
    devices: Sequence[str] | None
    keep_alive_s: float | None
    revision: str | None
    token: str | None
    cache_folder: str | os.PathLike[str] | None
    local_files_only: bool
    trust_remote_code: bool
    base_model: str | None
    adapter: str | os.PathLike[str] | None
    model_kwargs: Mapping[str, Any] | None
    processor_kwargs: Mapping[str, Any] | None
    config_kwargs: Mapping[str, Any] | None
    base_url: str | None
    api: str | None


# Of those whose default is not `None`.
DEFAULTS: LoadingOptions = {"backend": "auto", "local_files_only": False, "trust_remote_code": False}


def with_loading_options(init: T) -> T:
    """Show every key of `LoadingOptions` in the signature and the docstring of a constructor that takes `**loading`.

    Type checkers and editors read `Unpack[LoadingOptions]`; `inspect.signature`, `help` and a notebook's tool tip
    know only what they find here.
    """
    shown = inspect.signature(init)
    own = [each for each in shown.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
    loading = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=DEFAULTS.get(name), annotation=annotation.__forward_arg__
        )
        for name, annotation in LoadingOptions.__annotations__.items()
    ]
    # On the function, not the class: a subclass with a constructor of its own then shows its own.
    init.__signature__ = shown.replace(parameters=[*own, *loading])  # type: ignore[attr-defined]
    told = inspect.cleandoc(LoadingOptions.__doc__ or "").partition("Attributes:\n")[2].splitlines()
    lines = "\n".join(f"        {line}".rstrip() for line in told)
    init.__doc__ = (init.__doc__ or "").replace("            **loading: See `LoadingOptions`.", lines)
    return init


def with_other_names(names: Mapping[str, str]) -> Callable[[T], T]:
    """Let a constructor take arguments by further names too, which its signature leaves out.

    Args:
        names: Further name -> the argument's own.
    """

    def decorate(init: T) -> T:
        @wraps(init)
        def with_own_names(self: Any, *args: Any, **given: Any) -> None:
            init(self, *args, **_own_names(type(self).__name__, given, names))

        return cast(T, with_own_names)

    return decorate


def _own_names(owner: str, given: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for name, value in given.items():
        own = names.get(name, name)
        if found.get(own) is None:
            found[own], origins[own] = value, name
        elif value is not None and value != found[own]:
            raise ConfigurationError(
                f"{owner} got two values for {own!r}: {origins[own]}={found[own]!r} and {name}={value!r} contradict "
                "each other. Pass one of them."
            )
    return found
