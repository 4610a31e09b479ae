"""Checks on the texts that callers hand in; the same rule for every entrance."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, TypeVar

from bge_runtime.errors import InputError

__all__ = ["check_pairs", "check_text", "check_texts", "once", "pairs_of"]

T = TypeVar("T", bound=Hashable)

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def check_text(text: Any, name: str = "text") -> str:
    """Return `text` with lone surrogates replaced by U+FFFD, which tokenizers cannot read.

    Raises:
        InputError: It is not a string.
    """
    if not isinstance(text, str):
        raise InputError(f"{name} is {_shown(text)}; a string is needed.{_advice(text)}")
    # Tokenizers cannot encode half a character; a replaced one costs one token and the call goes on.
    return _LONE_SURROGATE.sub("\ufffd", text) if _LONE_SURROGATE.search(text) else str(text)


def check_texts(texts: Iterable[str], name: str = "texts") -> list[str]:
    """Return the texts as a list of checked strings.

    Raises:
        InputError: It is a single string, not iterable, or holds something that is not a string.
    """
    if isinstance(texts, str | bytes):
        raise InputError(f"{name} is the single {_shown(texts)}; pass a list of strings, such as [text].")
    try:
        items = iter(texts)
    except TypeError as error:
        raise InputError(f"{name} is {_shown(texts)}; pass a list of strings.") from error
    return [check_text(text, f"{name}[{index}]") for index, text in enumerate(items)]


def check_pairs(pairs: Any) -> list[tuple[str, str]]:
    """Return (query, document) pairs as checked tuples.

    Raises:
        InputError: A pair is not two strings.
    """
    if isinstance(pairs, str | bytes):
        raise InputError(f"pairs is the single {_shown(pairs)}; pass a list of (query, document) tuples.")
    try:
        items = iter(pairs)
    except TypeError as error:
        raise InputError(f"pairs is {_shown(pairs)}; pass a list of (query, document) tuples.") from error
    checked = []
    for index, pair in enumerate(items):
        if isinstance(pair, str | bytes) or not isinstance(pair, Iterable) or len(parts := list(pair)) != 2:
            raise InputError(f"pairs[{index}] is {_shown(pair)}; pass a (query, document) tuple.")
        query, document = parts
        checked.append((check_text(query, f"pairs[{index}] query"), check_text(document, f"pairs[{index}] document")))
    return checked


def pairs_of(query: str, documents: Iterable[str]) -> list[tuple[str, str]]:
    """Return the checked query with each checked document."""
    checked = check_text(query, "query")
    return [(checked, document) for document in check_texts(documents, "documents")]


def once(items: Sequence[T]) -> tuple[list[T], list[int]]:
    """Return each item once, in the order of first sight, and where in them each of the items is."""
    position: dict[T, int] = {}
    places = [position.setdefault(item, len(position)) for item in items]
    return list(position), places


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 80 else text[:77] + '...'}"


def _advice(value: Any) -> str:
    if value is None:
        return " Leave missing texts out, or pass ''."
    if isinstance(value, list | tuple):
        return " Flatten nested lists first."
    if isinstance(value, bytes):
        return " Decode bytes first."
    return ""
