"""How training goes: the settings that embedders and rerankers share."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from bge_runtime import ConfigurationError

__all__ = ["TrainingSettings"]

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingSettings:
    """Settings of a training.

    Attributes:
        epochs: How often each example is read.
        max_steps: Stop after this many optimiser steps; `None` reads all epochs.
        batch_size: Questions in an optimiser step, on each device.
        learning_rate: The highest, after the warm-up; it falls linearly to 0.
        warmup: Share of the steps in which it rises.
        negatives: How many negatives of each example are read, the first ones; 0 leaves those of the batch alone.
        mini_batch_size: Texts in a forward pass. With a contrastive loss it bounds the memory, whatever `batch_size`,
            and changes nothing else: where a batch has more texts, gradients are cached (arXiv:2101.06983), for one
            forward pass more.
        precision: Number format of the forward pass; weights and optimiser stay in float32.
        gradient_checkpointing: Compute activations twice, for less memory.
        lora_rank: Train adapters of this rank (arXiv:2106.09685), which are added to the weights at the end; `None`
            trains all weights.
        dropout: Share of activations that is dropped; `None` is the model's own. Drawing the random numbers is a third
            of the work on a CPU, which 0 saves.
        seed: Of order, dropout and initialisation.
        evaluations: How often the development score is measured, which picks the checkpoint.
        patience: Stop after so many measurements without a better one; `None` never does.
    """

    epochs: float = 1.0
    max_steps: int | None = None
    batch_size: int = 32
    learning_rate: float = 2e-5
    warmup: float = 0.1
    negatives: int = 7
    mini_batch_size: int = 32
    precision: Precision = "float32"
    gradient_checkpointing: bool = False
    lora_rank: int | None = None
    dropout: float | None = None
    seed: int = 0
    evaluations: int = 4
    patience: int | None = None

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigurationError: One is not allowed.
        """
        for name in ("batch_size", "mini_batch_size", "evaluations"):
            _count(name, getattr(self, name), 1)
        _count("negatives", self.negatives, 0)
        _count("seed", self.seed, 0)
        for name in ("max_steps", "lora_rank", "patience"):
            if getattr(self, name) is not None:
                _count(name, getattr(self, name), 1)
        for name, low, high in (("epochs", 0.0, 1000.0), ("learning_rate", 0.0, 1.0)):
            value = getattr(self, name)
            if not _is_number(value) or not low < value <= high:
                raise ConfigurationError(f"{name}={value!r} is not allowed. Pass more than {low:g}, at most {high:g}.")
        for name in ("warmup", "dropout"):
            value = getattr(self, name)
            if not (value is None and name == "dropout") and not (_is_number(value) and 0 <= value < 1):
                raise ConfigurationError(f"{name}={value!r} is not allowed. Pass a share, 0 or more and less than 1.")
        if self.precision not in ("float32", "bfloat16"):
            raise ConfigurationError(f"precision={self.precision!r} is not allowed. Use 'float32' or 'bfloat16'.")

    def as_dict(self) -> dict[str, Any]:
        """Return the settings, for JSON."""
        return asdict(self)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _count(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigurationError(f"{name}={value!r} is not allowed. Pass a whole number of at least {least}.")
