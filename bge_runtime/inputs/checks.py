"""Checks on the texts that callers hand in; the same rule for every entrance."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping, MappingView, Sequence, Set
from reprlib import Repr
from typing import Any, TypeVar
from unicodedata import category

from bge_runtime.errors import InputError

__all__ = ["check_items", "check_pairs", "check_text", "check_texts", "is_blank", "once", "pairs_of"]

T = TypeVar("T", bound=Hashable)

UNSEEN = frozenset(("Cc", "Cf", "Zl", "Zp", "Zs"))  # controls, formats such as U+200B, separators

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
# Bounded in time too: what was passed by mistake may be large.
_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 80
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = _SHORT.maxset = 3


def check_text(text: Any, name: str = "text") -> str:
    """Return `text` with lone surrogates replaced by U+FFFD, which tokenizers cannot read.

    Of a subclass of `str`, such as a member of an enumeration, it is the characters, whatever it prints as.

    Raises:
        InputError: It is not a string.
    """
    if not isinstance(text, str):
        raise InputError(f"{name} is {_shown(text)}; a string is needed.{_advice(text)}")
    # Tokenizers cannot encode half a character; a replaced one costs one token and the call goes on.
    return _LONE_SURROGATE.sub("\ufffd", text) if _LONE_SURROGATE.search(text) else str.__str__(text)


def check_texts(texts: Iterable[str], name: str = "texts") -> list[str]:
    """Return the texts as a list of checked strings.

    Raises:
        InputError: It is a single string, a mapping, a set or a table, not iterable, or holds something that is not a
            string.
    """
    return [check_text(text, f"{name}[{index}]") for index, text in enumerate(check_items(texts, name))]


def check_pairs(pairs: Any) -> list[tuple[str, str]]:
    """Return (query, document) pairs as checked tuples.

    Raises:
        InputError: A pair is not two strings.
    """
    checked = []
    for index, pair in enumerate(check_items(pairs, "pairs", "(query, document) tuples")):
        if isinstance(pair, str | bytes) or not _has_items(pair) or len(parts := list(pair)) != 2:
            raise InputError(f"pairs[{index}] is {_shown(pair)}; pass a (query, document) tuple.")
        query, document = parts
        checked.append((check_text(query, f"pairs[{index}] query"), check_text(document, f"pairs[{index}] document")))
    return checked


def check_items(items: Any, name: str, of: str = "strings") -> Iterable[Any]:
    """Return what was given, if going through it gives its content, in its order.

    Args:
        items: What the caller passed.
        name: The argument.
        of: What it is to be a list of.

    Raises:
        InputError: It is a single text, cannot be gone through, or gives something else: the keys of a mapping, the
            columns of a table, the members of a set in any order.
    """
    if isinstance(items, list | tuple):
        return items
    if isinstance(items, str | bytes | bytearray | memoryview):
        raise InputError(f"{name} is the single {_shown(items)}; pass a list of {of}, such as [text].")
    if not _has_items(items):
        raise InputError(f"{name} is {_shown(items)}; pass a list of {of}.{_list_of(items)}")
    return items  # type: ignore[no-any-return]


def pairs_of(query: str, documents: Iterable[str]) -> list[tuple[str, str]]:
    """Return the checked query with each checked document."""
    checked = check_text(query, "query")
    return [(checked, document) for document in check_texts(documents, "documents")]


def is_blank(text: str) -> bool:
    """Return whether nothing in a text can be seen: it holds spaces, controls and the like only."""
    return all(category(character) in UNSEEN for character in text)


def once(items: Sequence[T]) -> tuple[list[T], list[int]]:
    """Return each item once, in the order of first sight, and where in them each of the items is."""
    position: dict[T, int] = {}
    places = [position.setdefault(item, len(position)) for item in items]
    return list(position), places


def _has_items(value: Any) -> bool:
    """Return whether going through a value gives its content in order."""
    try:
        iter(value)
    except TypeError:
        return False
    return not (_has_keys(value) or (isinstance(value, Set) and not isinstance(value, MappingView)))


def _has_keys(value: Any) -> bool:
    # A DataFrame is no `Mapping` and gives the names of its columns; a Series has keys too, and gives its values.
    return isinstance(value, Mapping) or (hasattr(value, "keys") and getattr(value, "ndim", None) != 1)


def _list_of(value: Any) -> str:
    """Return how to make a list of something that gives something else."""
    if isinstance(value, Set):
        return " A set has no order for the results to be in."
    if not _has_keys(value):
        return ""
    if hasattr(value, "columns"):
        return " Of a table, pass one column."
    return " Of a mapping, pass list(mapping.values())."


def _shown(value: Any) -> str:
    return f"{type(value).__name__} {' '.join(_SHORT.repr(value).split())}"


def _advice(value: Any) -> str:
    if value is None:
        return " Leave missing texts out, or pass ''."
    if isinstance(value, list | tuple):
        return " Flatten nested lists first."
    if isinstance(value, bytes):
        return " Decode bytes first."
    return ""
