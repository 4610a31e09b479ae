"""What items of a call become before a forward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

__all__ = ["PreparedInputs", "RoleText"]


@dataclass(frozen=True, slots=True)
class PreparedInputs:
    """Inputs of a forward pass.

    Attributes:
        sequences: Token sequences or pictures, item after item.
        passages: How many of them each item gave.
        truncated: How many items were cut.
        first_cut: Which item was the first of them.
    """

    sequences: list[Any]
    passages: list[int]
    truncated: int = 0
    first_cut: int | None = None


class RoleText(NamedTuple):
    """A text that gets its instruction elsewhere.

    Attributes:
        text: The text.
        role: `query` or `document`.
    """

    text: str
    role: str
