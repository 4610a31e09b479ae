"""What changes vectors, and nothing else: LlamaIndex's ingestion cache keys on an embedder's dump."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bge_runtime import Embedder

__all__ = ["is_folder", "known_defaults", "vector_settings"]

VECTOR_FIELDS = (
    "model_name",
    "revision",
    "base_model",
    "query_instruction",
    "text_instruction",
    "task",
    "normalize",
    "truncate_dim",
    "max_length",
    "base_url",
    "api",
)
LOADER_FIELDS = ("model_kwargs", "processor_kwargs", "config_kwargs")
# Like device= and precision= of any float width, these move the last digits only.
NUMERIC_KWARGS = {"torch_dtype", "dtype", "device_map", "attn_implementation", "low_cpu_mem_usage"}


def vector_settings(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of an embedding's fields that change vectors."""
    settings = {name: fields[name] for name in VECTOR_FIELDS if name in fields}
    if fields.get("examples"):
        settings["examples"] = fields["examples"]
    if fields.get("legacy"):
        settings["legacy"] = True
    if fields.get("adapter"):
        settings["adapter"] = fields["adapter"]
    if fields.get("precision") == "int8":
        settings["precision"] = "int8"
    for name in LOADER_FIELDS:
        given = {key: value for key, value in (fields.get(name) or {}).items() if key not in NUMERIC_KWARGS}
        if given:
            settings[name] = given
    return settings


def known_defaults(embedder: Embedder) -> dict[str, Any]:
    """Return what the model's own defaults come to, where nothing has to be fetched to know."""
    if embedder.known_spec is None:
        return {}
    return {
        "query_instruction": embedder.query_instruction,
        "text_instruction": embedder.document_instruction,
        "normalize": embedder.normalize,
        "max_length": embedder.max_length,
    }


def is_folder(model: str) -> bool:
    """Say whether the model's files are in a folder of the caller's, where they can change."""
    return Path(model).expanduser().is_dir()
