"""LoRA in training: adapters in the place of weights, and added to them at the end."""

from __future__ import annotations

from typing import Any

import torch

from bge_runtime import ConfigurationError

__all__ = ["add", "merged"]


def add(model: Any, rank: int, seed: int) -> None:
    """Freeze a model's weights and put adapters beside all linear ones (arXiv:2106.09685).

    Raises:
        ConfigurationError: peft is missing.
    """
    try:
        import peft
    except ImportError as error:
        raise ConfigurationError('lora_rank= needs peft: pip install "bge-integrations[train]"') from error
    torch.manual_seed(seed)
    # Twice the rank as alpha, as FlagEmbedding's examples have it (32 and 64).
    model.add_adapter(peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", lora_dropout=0.0))


def merged(model: Any) -> Any:
    """Return the model with its adapters added to the weights, in place."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    body = model.transformers_model
    for name, module in list(body.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge(safe_merge=True)
            parent = body.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], module.get_base_layer())
    body._hf_peft_config_loaded = False
    if hasattr(body, "peft_config"):
        del body.peft_config
    return model
