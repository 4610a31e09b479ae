"""Which inputs may share a forward pass."""

from __future__ import annotations

__all__ = ["fits"]


def fits(count: int, longest: int, batch_tokens: int, batch_size: int | None = None) -> bool:
    """Return whether `count` inputs, padded to `longest` tokens, are one batch; a single input always is.

    Args:
        count: Number of inputs.
        longest: Tokens of the longest.
        batch_tokens: Most tokens of the padded batch.
        batch_size: Most inputs; `None` sets no limit.
    """
    return count == 1 or (count * longest <= batch_tokens and (batch_size is None or count <= batch_size))
