"""What formats write in several ways: vectors as numbers, base64, bytes and bits; documents as text and as objects."""

from __future__ import annotations

import base64
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_runtime import InputError, quantize_embeddings

__all__ = ["FORMS", "in_base64", "in_form", "text_of"]

FORMS = ("float", "int8", "uint8", "binary", "ubinary", "base64")
# Bytes of all requests must mean the same, so that their range is fixed, 127 steps to each side: so many times the
# standard deviation of a unit vector's values, which is 1 / sqrt(dimension). Values beyond it are at its end.
SPAN = 6.0


def in_base64(vectors: NDArray[np.float32]) -> list[str]:
    """Return each row as base64 of float32, little-endian, as OpenAI and Cohere write them."""
    rows = np.ascontiguousarray(vectors, dtype="<f4")
    return [base64.b64encode(row.tobytes()).decode() for row in rows]


def in_form(vectors: NDArray[np.float32], form: str) -> Any:
    """Return vectors in one of `FORMS`."""
    if form == "float":
        return vectors
    if form == "base64":
        return in_base64(vectors)
    if form in ("binary", "ubinary"):
        return quantize_embeddings(vectors, form)  # type: ignore[arg-type]
    # To the nearest, so that plain products of bytes are those of the vectors.
    steps = np.rint(vectors * (127 * math.sqrt(vectors.shape[1]) / SPAN)).clip(-127, 127)
    return steps.astype(np.int8) if form == "int8" else (steps + 128).astype(np.uint8)


def text_of(document: str | dict[str, Any]) -> str:
    """Return the text of a document of a reranking, which may be an object.

    Raises:
        InputError: The object has no text.
    """
    if isinstance(document, str):
        return document
    if not isinstance(text := document.get("text"), str):
        raise InputError("A document that is an object needs its text as 'text'.")
    return text
