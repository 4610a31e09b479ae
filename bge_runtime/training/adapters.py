"""LoRA in training: adapters in the place of weights, and added to them at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from bge_runtime import ConfigurationError

__all__ = ["add", "load_checkpoint", "merged"]

# Output layers: of a score, or of words.
OUTER = {"classifier", "score", "out_proj", "lm_head", "pooler"}


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
    body = model.transformers_model
    linear = sorted(
        {name.rpartition(".")[2] for name, module in body.named_modules() if isinstance(module, torch.nn.Linear)}
        - OUTER
    )
    # Twice the rank as alpha, as FlagEmbedding's examples have it (32 and 64). By peft itself: the way through
    # transformers 5.24 asks for a peft that nobody has published.
    peft.inject_adapter_in_model(
        peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=linear, lora_dropout=0.0), body
    )
    for name, weight in body.named_parameters():
        if any(part in OUTER for part in name.split(".")):  # a new head has nothing to keep
            weight.requires_grad_(True)


def load_checkpoint(model: Any, folder: str | Path) -> None:
    """Read the weights of a checkpoint, adapters and all, into a model that has them."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(Path(folder).glob("model*.safetensors")):
        found |= load_file(file)
    missing = model.transformers_model.load_state_dict(found, strict=False).missing_keys
    if any("lora_" in name for name in missing):
        raise ConfigurationError(
            f"Checkpoint {str(folder)!r} lacks {len(missing)} weights, such as {missing[0]!r}. Take it away to go on "
            "from the one before."
        )


def merged(model: Any) -> Any:
    """Return the model with its adapters added to the weights, in place."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    body = model.transformers_model
    for name, module in list(body.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge(safe_merge=True)
            parent = body.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], module.get_base_layer())
    if hasattr(body, "peft_config"):
        del body.peft_config
    return model
