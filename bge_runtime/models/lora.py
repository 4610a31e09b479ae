"""LoRA adapters on disk: whether one fits a model, and what names it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bge_runtime.errors import ConfigurationError, ModelNotFoundError
from bge_runtime.models.folder import check_content, check_regular, find_folder, is_path, read_object
from bge_runtime.models.hub import (
    ADAPTER_CONFIG,
    ADAPTER_PICKLE,
    ADAPTER_WEIGHTS,
    check_repository,
    file_digest,
    unsafe,
)
from bge_runtime.models.registry import find_spec
from bge_runtime.models.spec import ModelSpec

__all__ = ["adapter_digest", "check_adapter", "check_name", "known_names"]

# Entries of the configuration that say where an adapter comes from and how it was trained, not what it computes.
HISTORY = (
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "lora_dropout",
    "peft_version",
    "revision",
    "task_type",
)
CACHED = re.compile(r"models--(?:[^/\\]*--)?([^/\\]+)[/\\]snapshots[/\\]")


def check_name(adapter: str | os.PathLike[str]) -> str:
    """Return a folder's path, or a hub id.

    Raises:
        ConfigurationError: It is not a name.
        ModelNotFoundError: It is neither a folder nor a hub id.
    """
    name = os.fspath(adapter) if isinstance(adapter, os.PathLike) else adapter
    if not isinstance(name, str) or not name:
        raise ConfigurationError(f"adapter={adapter!r} is not a name. Pass a folder that peft saved, or a hub id.")
    folder = find_folder(name)
    if folder is not None:
        return str(folder)
    if is_path(name) or "/" not in name or os.path.exists(name):
        raise ModelNotFoundError(
            f"Adapter folder {name!r} does not exist. Pass a folder with {ADAPTER_CONFIG}, or 'organisation/name' "
            "on the hub."
        )
    check_repository(name)
    return name


def check_adapter(folder: Path, spec: ModelSpec, names: Iterable[str]) -> None:
    """Refuse an adapter that cannot be loaded, or belongs to another model.

    Args:
        folder: Folder with the adapter's files.
        spec: The model that it is to be added to.
        names: What that model is called.

    Raises:
        ModelNotFoundError: There is no configuration, or there are no weights.
        UnsafeWeightsError: The weights are in pickle format only.
        ConfigurationError: It is no LoRA adapter, or of another model or task.
    """
    config = _config(folder)
    if not os.path.isfile(folder / ADAPTER_WEIGHTS):
        if os.path.exists(folder / ADAPTER_PICKLE):
            raise unsafe(str(folder))
        raise ModelNotFoundError(f"Adapter {str(folder)!r} has no {ADAPTER_WEIGHTS}. Copy the whole folder.")
    check_content(folder / ADAPTER_WEIGHTS)
    check_regular(folder)
    kind = str(config.get("peft_type", "")).upper()
    if kind != "LORA":
        raise ConfigurationError(
            f"Adapter {str(folder)!r} is of type {kind!r}; 'LORA' can be added to weights here. Merge others with "
            "peft's merge_and_unload(), save the result, and pass that folder as model=."
        )
    _check_task(folder, config, spec)
    _check_base(folder, config, spec, names)


def adapter_digest(folder: Path) -> str:
    """Return a SHA-256 of what an adapter adds to weights, the same wherever it is stored."""
    settings = {key: _sorted(value) for key, value in _config(folder).items() if key not in HISTORY}
    parts = [file_digest(folder / ADAPTER_WEIGHTS), settings]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def known_names(folder: Path) -> list[str]:
    """Return what the configuration in a model's folder says that the model is called."""
    name = read_object(folder / "config.json").get("_name_or_path")
    return [name] if isinstance(name, str) and name else []


def _config(folder: Path) -> dict[str, Any]:
    file = folder / ADAPTER_CONFIG
    if not os.path.isfile(file):
        raise ModelNotFoundError(
            f"{str(folder)!r} has no {ADAPTER_CONFIG}, so it holds no adapter. Pass the folder or the hub id that "
            "peft's save_pretrained() wrote."
        )
    return read_object(file)


def _sorted(value: Any) -> Any:
    """Return lists of names in order: peft writes sets, in any."""
    names = isinstance(value, list) and all(isinstance(each, str) for each in value)
    return sorted(value) if names else value


def _check_task(folder: Path, config: dict[str, Any], spec: ModelSpec) -> None:
    """Adapters without a task were made for the bare model, and the names of their weights decide."""
    task = config.get("task_type")
    wanted = "FEATURE_EXTRACTION" if spec.kind != "reranker" else "SEQ_CLS" if spec.score == "logit" else "CAUSAL_LM"
    if task is not None and task != wanted:
        raise ConfigurationError(
            f"Adapter {str(folder)!r} was trained for task_type={task!r}; {spec.id!r} is a {spec.kind}, whose adapters "
            f"have {wanted!r} or none. Pass the adapter to the model that it was trained for."
        )


def _check_base(folder: Path, config: dict[str, Any], spec: ModelSpec, names: Iterable[str]) -> None:
    base = str(config.get("base_model_name_or_path") or "")
    ours = {_basename(name) for name in (spec.id, *names)}
    if not base or _basename(base) in ours:
        return
    # A path says nothing, unless it ends in the name of a model that we know; the same goes for ours.
    clear = find_spec(_basename(base)) is not None or (base.count("/") == 1 and base[0] not in "./~")
    named = find_folder(spec.id) is None or any(find_spec(name) is not None for name in ours)
    if clear and named:
        raise ConfigurationError(
            f"Adapter {str(folder)!r} was trained on {base!r}, not on {spec.id!r}. Pass model={base!r}, or an adapter "
            f"of {spec.id!r}; if the two are the same, correct base_model_name_or_path in {ADAPTER_CONFIG}."
        )


def _basename(name: str) -> str:
    cached = CACHED.search(name)
    return (cached[1] if cached else re.split(r"[/\\]", name.rstrip("/\\"))[-1]).lower()
