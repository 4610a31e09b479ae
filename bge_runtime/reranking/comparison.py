"""What a reranker compares of an embedder's outputs: the checks of `mode` and `weights`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from bge_runtime.errors import ConfigurationError
from bge_runtime.models.spec import ModelSpec

__all__ = ["Mode", "check_mode", "check_weights"]

Mode = Literal["multi_vector", "sparse", "dense", "hybrid"]
MODES = ("multi_vector", "sparse", "dense", "hybrid")
# The model card of BAAI/bge-m3: dense, sparse, multi-vector.
DEFAULT_WEIGHTS = (0.4, 0.2, 0.4)


def check_weights(mode: Mode | None, weights: Sequence[float] | None) -> tuple[float, float, float]:
    """Return the weights of the dense, the sparse and the multi-vector score.

    Raises:
        ConfigurationError: The mode is unknown, or the weights are not three numbers for `hybrid`.
    """
    if mode is not None and mode not in MODES:
        raise ConfigurationError(f"mode={mode!r} is not allowed. Use {', '.join(map(repr, MODES))}, or None.")
    if weights is None:
        return DEFAULT_WEIGHTS
    if mode != "hybrid":
        raise ConfigurationError(f"weights={weights!r} has no meaning for mode={mode!r}. Pass mode='hybrid' with it.")
    values = tuple(weights) if isinstance(weights, Sequence) and not isinstance(weights, str) else ()
    if len(values) != 3 or not all(_is_weight(value) for value in values) or not sum(values) > 0:
        raise ConfigurationError(
            f"weights={weights!r} is not allowed. Pass three numbers of at least 0, not all 0: those of the dense, "
            "the sparse and the multi-vector score, such as (0.4, 0.2, 0.4)."
        )
    return float(values[0]), float(values[1]), float(values[2])


def check_mode(spec: ModelSpec, mode: Mode | None) -> None:
    """Refuse a mode that the model has no output for.

    Raises:
        ConfigurationError: Names the outputs that it has.
    """
    if mode is None:
        return
    if spec.kind != "embedder":
        raise ConfigurationError(f"mode={mode!r} is for embedders; {spec.id!r} scores pairs itself. Leave it out.")
    if mode != "multi_vector" and not {"sparse", "multi_vector"} <= set(spec.outputs):
        raise ConfigurationError(
            f"mode={mode!r} needs a model with trained heads, such as 'BAAI/bge-m3'; {spec.id!r} has the outputs "
            f"{', '.join(map(repr, spec.outputs))}. Use mode='multi_vector', which compares the vectors of its tokens."
        )


def _is_weight(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
