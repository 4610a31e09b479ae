"""Results with NaN or an infinity: an error that names the text, before anybody sees them or keeps them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_runtime.errors import BackendError

__all__ = ["check_finite", "named", "not_finite"]

CHARACTERS_SHOWN = 80


def check_finite(rows: Sequence[NDArray[Any]] | NDArray[Any], model: str, label: Callable[[int], str]) -> None:
    """Refuse results that are not finite.

    Args:
        rows: One array per input, or a single one of shape (inputs, numbers).
        model: Name of what computed them.
        label: What the message calls the input of this number.

    Raises:
        BackendError: Names the first input concerned.
    """
    if isinstance(rows, np.ndarray):
        whole = np.isfinite(rows).all(axis=1)
    else:
        whole = np.array([np.isfinite(row).all() for row in rows], dtype=bool)
    if not whole.all():
        broken = np.flatnonzero(~whole)
        raise not_finite(model, label(int(broken[0])), len(broken) - 1)


def not_finite(model: str, what: str, more: int = 0) -> BackendError:
    """Return the error of an input, and of so many more."""
    others = f" and {more} more" if more else ""
    return BackendError(
        f"{model!r} gave NaN or infinite numbers for {what}{others}. Leave it out; or, if whole texts come out so, try "
        "precision='float32' and fetch the weights again: they may be damaged."
    )


def named(name: str, index: int, text: str) -> str:
    """Return the place of a text in what the caller passed as `name`, and how it begins."""
    return f"{name}[{index}] {text[:CHARACTERS_SHOWN]!r}{'...' if len(text) > CHARACTERS_SHOWN else ''}"
