"""The nested dictionaries of LangChain's older classes: each of their entries goes to the field of its meaning."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

from bge_runtime import ConfigurationError, UnknownArgumentError
from bge_runtime.fields import Arguments, plain

__all__ = ["NESTED", "query_options", "read_nested"]

# Keys of model_kwargs: the constructors of SentenceTransformer and CrossEncoder, and the field of each.
MODEL_KWARGS = {
    "backend": "backend",
    "cache_folder": "cache_folder",
    "config_kwargs": "config_kwargs",
    "device": "device",
    "dtype": "precision",
    "local_files_only": "local_files_only",
    "max_length": "max_length",
    "processor_kwargs": "processor_kwargs",
    "revision": "revision",
    "token": "token",
    "tokenizer_kwargs": "processor_kwargs",
    "torch_dtype": "precision",
    "truncate_dim": "truncate_dim",
    "trust_remote_code": "trust_remote_code",
    "use_auth_token": "token",
}
# Arguments of the transformers model that need no nesting; HuggingFaceBgeEmbeddings takes the first one so.
LOADER_KWARGS = ("attn_implementation", "device_map", "quantization_config")
RETIRED_MODEL_KWARGS = {
    "activation_fn": "Pass normalize=True for the sigmoid, normalize=False for the raw logit.",
    "default_prompt_name": "Pass query_instruction= or embed_instruction=; None takes the model's own.",
    "export": "It belongs to ONNX exports; leave it out.",
    "file_name": "It belongs to ONNX exports; leave it out.",
    "model_card_data": "It has no effect on vectors; leave it out.",
    "modules": "Save the modules to a folder, and pass that as model=.",
    "num_labels": "The model's own head is used; leave it out.",
    "prompts": "Pass query_instruction= and embed_instruction=; None takes the model's own.",
    "provider": "It belongs to ONNX exports; leave it out.",
    "similarity_fn_name": "The vector store chooses the similarity; leave it out.",
}

# Keys of encode_kwargs and query_encode_kwargs: the arguments of SentenceTransformer.encode.
ENCODE_KWARGS = {
    "batch_size": "batch_size",
    "device": "device",
    "normalize_embeddings": "normalize",
    "show_progress_bar": "show_progress",
    "truncate_dim": "truncate_dim",
}
# Keys with a single possible value, and what to do instead of another.
FIXED_ENCODE_KWARGS: dict[str, tuple[Any, str]] = {
    "convert_to_numpy": (True, "LangChain wants lists of floats; embedder.encode_documents() returns arrays."),
    "convert_to_tensor": (False, "LangChain wants lists of floats; embedder.encode_documents() returns arrays."),
    "output_value": ("sentence_embedding", "embedder.encode_tokens() returns a vector per token."),
    "precision": ("float32", "Let the vector store quantise: it sees more vectors than one call does."),
    "prompt": (None, "Pass embed_instruction= for documents and query_instruction= for queries."),
    "prompt_name": (None, "Pass embed_instruction= and query_instruction=; None takes the model's own."),
}

NESTED = ("model_kwargs", "encode_kwargs", "query_encode_kwargs")


def read_nested(arguments: Arguments, given: Mapping[str, Any], fields: Container[str]) -> None:
    """Add to the arguments what nested dictionaries hold, for a class with these fields.

    Raises:
        UnknownArgumentError: A key does not exist.
        ConfigurationError: Two values for one field, or one that cannot be honoured.
    """
    nested = {name: _mapping(arguments.owner, name, given.get(name)) for name in NESTED}
    for name, read in (("model_kwargs", _read_model_kwargs), ("query_encode_kwargs", _read_query_kwargs)):
        if name in given:  # {} too: it may stand in for another one
            read(arguments, nested[name], fields)
    _read_encode_kwargs(arguments, nested["encode_kwargs"])
    _read_token_limit(arguments)


def query_options(query_encode_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the embedder's options that hold for queries only."""
    return {ENCODE_KWARGS[key]: _encode_value(key, value) for key, value in query_encode_kwargs.items()}


def _read_model_kwargs(arguments: Arguments, entries: Mapping[str, Any], fields: Container[str]) -> None:
    owner = arguments.owner
    names = {key: field for key, field in MODEL_KWARGS.items() if field in fields}
    valid = {*names, *LOADER_KWARGS, "model_kwargs"}
    UnknownArgumentError.check(f"{owner} model_kwargs", entries.keys() - RETIRED_MODEL_KWARGS.keys(), valid)
    loader: dict[str, Any] = {}
    for key, value in entries.items():
        origin = f"model_kwargs[{key!r}]"
        if key == "model_kwargs":
            loader |= _without_dtype(arguments, _mapping(owner, "model_kwargs['model_kwargs']", value))
        elif key in LOADER_KWARGS:
            loader[key] = value
        elif key in names:
            arguments.add(names[key], value, origin)
        else:
            arguments.refuse(origin, value, RETIRED_MODEL_KWARGS[key])
    arguments.values["model_kwargs"] = {"model_kwargs": loader} if loader else {}


def _without_dtype(arguments: Arguments, entries: Mapping[str, Any]) -> dict[str, Any]:
    for key in ("dtype", "torch_dtype"):
        if key in entries:
            arguments.add("precision", entries[key], f"model_kwargs['model_kwargs'][{key!r}]")
    return {key: value for key, value in entries.items() if key not in ("dtype", "torch_dtype")}


def _read_encode_kwargs(arguments: Arguments, entries: Mapping[str, Any]) -> None:
    _check_encode_kwargs(arguments.owner, "encode_kwargs", entries, FIXED_ENCODE_KWARGS)
    for key, field in ENCODE_KWARGS.items():
        if key in entries:
            arguments.add(field, _encode_value(key, entries[key]), f"encode_kwargs[{key!r}]")


def _read_query_kwargs(arguments: Arguments, entries: Mapping[str, Any], fields: Container[str]) -> None:
    fixed = {key: rule for key, rule in FIXED_ENCODE_KWARGS.items() if key != "prompt"}
    _check_encode_kwargs(arguments.owner, "query_encode_kwargs", entries, fixed, "prompt")
    if "prompt" in entries:
        arguments.add("query_instruction", entries["prompt"], "query_encode_kwargs['prompt']")
    kept = {key: value for key, value in entries.items() if key in ENCODE_KWARGS and value is not None}
    arguments.values["query_encode_kwargs"] = kept


def _read_token_limit(arguments: Arguments) -> None:
    """The runtime cuts by `max_length`, so the tokenizer's own limit has to become that."""
    settings = arguments.values.get("processor_kwargs")
    if isinstance(settings, Mapping) and "model_max_length" in settings:
        arguments.values["processor_kwargs"] = {k: v for k, v in settings.items() if k != "model_max_length"}
        arguments.add("max_length", settings["model_max_length"], "processor_kwargs['model_max_length']")


def _check_encode_kwargs(
    owner: str, name: str, entries: Mapping[str, Any], fixed: Mapping[str, tuple[Any, str]], *extra: str
) -> None:
    UnknownArgumentError.check(f"{owner} {name}", entries.keys() - fixed.keys(), {*ENCODE_KWARGS, *extra})
    for key in fixed.keys() & entries.keys():
        only, advice = fixed[key]
        if entries[key] is not None and entries[key] != only:
            raise ConfigurationError(f"{owner} does not take {name}[{key!r}]={entries[key]!r}. {advice}")


def _encode_value(key: str, value: Any) -> Any:
    # `encode` never takes a model's own normalisation away: False there means "as the model does".
    if key == "normalize_embeddings" and value is False:
        return None
    return plain(ENCODE_KWARGS[key], value)


def _mapping(owner: str, name: str, value: Any) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ConfigurationError(
            f"{owner}: {name}={value!r} is not a dictionary of options. Pass one, or leave it out."
        )
    return value
