"""LoRA adapters: their product is added to the weights once, so that every executor runs them at no cost."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec as find_module
from pathlib import Path
from typing import Any

from bge_runtime.errors import BGEError, ConfigurationError

__all__ = ["apply_adapter", "check_peft"]

# What peft puts before the names of a model's weights, and ours for the adapter, which comes into them.
PREFIX = "base_model.model."
OUR_NAME = "bge_adapter"


def check_peft(folder: Path) -> None:
    """Refuse an adapter where peft is missing.

    Raises:
        ConfigurationError: Names the extra that brings it.
    """
    if find_module("peft") is None:
        raise ConfigurationError(
            f'adapter={str(folder)!r} needs peft. Install it with: pip install "bge-integrations[lora]"'
        )


def apply_adapter(model: Any, folder: Path, *, inside: str = "") -> None:
    """Add a LoRA adapter to the weights of a transformers model, in place (W + scaling B A, arXiv:2106.09685).

    Modules that the adapter brings whole (`modules_to_save`, such as a classification head) replace the model's.

    Args:
        model: A transformers model, of the class that the adapter was trained on.
        folder: Folder with `adapter_config.json` and `adapter_model.safetensors`.
        inside: Where the model stands in the one that the adapter was trained on: `model.` for the decoder of a
            language model.

    Raises:
        ConfigurationError: peft is missing, or the adapter does not fit the model.
    """
    check_peft(folder)
    try:
        _merge(model, folder, PREFIX + inside)
    except BGEError:
        raise
    except Exception as error:  # peft raises many kinds for shapes and names that do not fit
        raise ConfigurationError(
            f"Adapter {str(folder)!r} does not fit {type(model).__name__} ({type(error).__name__}: {error}). "
            "Pass the model that it was trained on."
        ) from error


def _merge(model: Any, folder: Path, prefix: str) -> None:
    import peft

    weights = peft.load_peft_weights(str(folder), device=str(model.device))
    tuner = peft.LoraModel(model, peft.PeftConfig.from_pretrained(str(folder)), OUR_NAME)
    found: Any = peft.set_peft_model_state_dict(
        model, {key.removeprefix(prefix): weight for key, weight in weights.items()}, adapter_name=OUR_NAME
    )
    # peft passes over what it finds no place for, and leaves what it finds no weights for as it was before training.
    _refuse(folder, model, "has weights that the model has no place for", found.unexpected_keys)
    missing = [key for key in found.missing_keys if OUR_NAME in key]
    _refuse(folder, model, "lacks weights that its configuration names", missing)
    tuner.merge_and_unload(safe_merge=True)


def _refuse(folder: Path, model: Any, what: str, keys: Sequence[str]) -> None:
    if keys:
        raise ConfigurationError(
            f"Adapter {str(folder)!r} {what}: {len(keys)}, such as {keys[0]!r}. It was trained on another model, or "
            f"on another class than {type(model).__name__}. Pass the model that it was trained on."
        )
