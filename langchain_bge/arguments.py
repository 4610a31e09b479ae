"""From a caller's arguments to fields, the nested dictionaries of LangChain's older classes included."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Any

from pydantic import SecretStr

from bge_runtime import ConfigurationError, UnknownArgumentError

__all__ = ["Arguments", "query_options", "refuse_retired"]

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


class Arguments:
    """Values by field; a second, different value for a field is an error that names both places."""

    def __init__(self, owner: str, fields: Collection[str], renamed: Mapping[str, str]) -> None:
        """Start without values.

        Args:
            owner: Class name shown in messages.
            fields: Fields of that class.
            renamed: Other names of fields.
        """
        self._owner = owner
        self._fields = fields
        self._renamed = renamed
        self._origins: dict[str, str] = {}
        self.values: dict[str, Any] = {}

    def read(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the value of each field that `given` sets.

        Raises:
            UnknownArgumentError: An argument, or a key of a nested dictionary, does not exist.
            ConfigurationError: Two values for one field, or one that cannot be honoured.
        """
        for name, value in given.items():
            if name not in NESTED:
                self._add(self._renamed.get(name, name), value, name)
        nested = {name: _mapping(self._owner, name, given[name]) for name in NESTED if name in given}
        self._read_model_kwargs(nested.get("model_kwargs", {}))
        self._read_encode_kwargs(nested.get("encode_kwargs", {}))
        self._read_query_kwargs(nested.get("query_encode_kwargs", {}))
        self._read_token_limit()
        return self.values

    def _read_model_kwargs(self, entries: Mapping[str, Any]) -> None:
        names = {key: field for key, field in MODEL_KWARGS.items() if field in self._fields}
        valid = {*names, *LOADER_KWARGS, "model_kwargs"}
        UnknownArgumentError.check(f"{self._owner} model_kwargs", set(entries) - set(RETIRED_MODEL_KWARGS), valid)
        loader: dict[str, Any] = {}
        for key, value in entries.items():
            if key == "model_kwargs":
                loader |= self._without_dtype(_mapping(self._owner, "model_kwargs['model_kwargs']", value))
            elif key in LOADER_KWARGS:
                loader[key] = value
            elif key in names:
                self._add(names[key], value, f"model_kwargs[{key!r}]")
            else:
                refuse_retired(self._owner, f"model_kwargs[{key!r}]", value, RETIRED_MODEL_KWARGS[key])
        if loader:
            self.values["model_kwargs"] = {"model_kwargs": loader}

    def _without_dtype(self, entries: Mapping[str, Any]) -> dict[str, Any]:
        for key in ("dtype", "torch_dtype"):
            if key in entries:
                self._add("precision", entries[key], f"model_kwargs['model_kwargs'][{key!r}]")
        return {key: value for key, value in entries.items() if key not in ("dtype", "torch_dtype")}

    def _read_encode_kwargs(self, entries: Mapping[str, Any]) -> None:
        self._check_encode_kwargs("encode_kwargs", entries, FIXED_ENCODE_KWARGS)
        for key, field in ENCODE_KWARGS.items():
            if key in entries:
                self._add(field, _encode_value(key, entries[key]), f"encode_kwargs[{key!r}]")

    def _read_query_kwargs(self, entries: Mapping[str, Any]) -> None:
        fixed = {key: rule for key, rule in FIXED_ENCODE_KWARGS.items() if key != "prompt"}
        self._check_encode_kwargs("query_encode_kwargs", entries, fixed, "prompt")
        if "prompt" in entries:
            self._add("query_instruction", entries["prompt"], "query_encode_kwargs['prompt']")
        kept = {key: value for key, value in entries.items() if key in ENCODE_KWARGS and value is not None}
        if kept:
            self.values["query_encode_kwargs"] = kept

    def _read_token_limit(self) -> None:
        """The runtime cuts by `max_length`, so the tokenizer's own limit has to become that."""
        settings = self.values.get("processor_kwargs")
        if isinstance(settings, Mapping) and "model_max_length" in settings:
            self.values["processor_kwargs"] = {k: v for k, v in settings.items() if k != "model_max_length"}
            self._add("max_length", settings["model_max_length"], "processor_kwargs['model_max_length']")

    def _check_encode_kwargs(
        self, name: str, entries: Mapping[str, Any], fixed: Mapping[str, tuple[Any, str]], *extra: str
    ) -> None:
        UnknownArgumentError.check(f"{self._owner} {name}", set(entries) - set(fixed), {*ENCODE_KWARGS, *extra})
        for key in fixed.keys() & entries.keys():
            only, advice = fixed[key]
            if entries[key] is not None and entries[key] != only:
                raise ConfigurationError(f"{self._owner} does not take {name}[{key!r}]={entries[key]!r}. {advice}")

    def _add(self, field: str, value: Any, origin: str) -> None:
        value = _plain(field, value)
        known = self.values.get(field)
        if known is None:
            self.values[field] = value
            self._origins[field] = origin
        elif value is not None and value != known:
            first, second = (repr(each) if field != "token" else "a token" for each in (known, value))
            raise ConfigurationError(
                f"{self._owner} got {self._origins[field]}={first} and {origin}={second}, which contradict each other. "
                "Pass one of them."
            )


def refuse_retired(owner: str, name: str, value: Any, advice: str) -> None:
    """Raise for an argument of the older classes that has no counterpart.

    Raises:
        ConfigurationError: `value` asks for something; `None` and `False` do not.
    """
    if value is not None and value is not False:
        raise ConfigurationError(f"{owner} does not take {name}={value!r}. {advice}")


def query_options(query_encode_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the embedder's options that hold for queries only."""
    return {ENCODE_KWARGS[key]: _encode_value(key, value) for key, value in query_encode_kwargs.items()}


def _encode_value(key: str, value: Any) -> Any:
    # `encode` never takes a model's own normalisation away: False there means "as the model does".
    if key == "normalize_embeddings" and value is False:
        return None
    return _plain(ENCODE_KWARGS[key], value)


def _plain(field: str, value: Any) -> Any:
    """Return names for torch's and pathlib's objects, and the token as a secret."""
    if field in ("model_name", "cache_folder", "calibration", "adapter") and isinstance(value, os.PathLike):
        return os.fspath(value)
    if field in ("device", "precision") and value is not None:
        return str(value).removeprefix("torch.")
    if field == "token":
        # True asks the hub's client for the token that is stored on this machine, as None does.
        return None if value is True else SecretStr(value) if isinstance(value, str) else value
    return value


def _mapping(owner: str, name: str, value: Any) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ConfigurationError(
            f"{owner}: {name}={value!r} is not a dictionary of options. Pass one, or leave it out."
        )
    return value
