"""What is a list of texts, and what only looks like one."""

from __future__ import annotations

import email.message
import enum
import types
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bge_runtime import InputError, check_text, check_texts
from bge_runtime.inputs.checks import check_pairs

TEXT = "the heart pumps blood"


class Topic(str, enum.Enum):  # noqa: UP042 - older code has them
    HEART = TEXT


class Modern(enum.StrEnum):
    HEART = TEXT


class Disguised(str):
    def __str__(self) -> str:
        return "something else"

    def __repr__(self) -> str:
        return "something else"

    def __len__(self) -> int:
        return 1


@pytest.mark.parametrize("text", [Topic.HEART, Modern.HEART, Disguised(TEXT), np.str_(TEXT)], ids=lambda x: type(x))
def test_a_subclass_of_str_is_its_characters(text):
    for found in (check_text(text), *check_texts([text, text]), *check_pairs([(text, text)])[0]):
        assert type(found) is str
        assert found == TEXT


def test_half_a_character_in_a_subclass_is_replaced_too():
    assert check_text(Disguised("a\ud800b")) == "a\ufffdb"


class Table:
    """Gives the names of its columns, as a DataFrame does."""

    ndim = 2
    columns = ("text", "title")

    def keys(self) -> tuple[str, ...]:
        return self.columns

    def __iter__(self) -> Any:
        return iter(self.columns)


def message() -> email.message.Message:
    made = email.message.Message()
    made["Subject"] = TEXT
    return made


NO_LISTS: dict[str, tuple[Callable[[], Any], str]] = {
    "dict": (lambda: {"a": TEXT}, r"is dict \{'a': .*; pass a list of .*list\(mapping\.values\(\)\)"),
    "ordered": (lambda: OrderedDict(a=TEXT), "is OrderedDict"),
    "counter": (lambda: Counter([TEXT]), "is Counter"),
    "view of a dict": (lambda: types.MappingProxyType({"a": TEXT}), "is mappingproxy"),
    "message": (message, "is Message"),
    "set": (lambda: {TEXT, "b"}, r"is set \{.*no order"),
    "frozenset": (lambda: frozenset([TEXT]), "is frozenset .*no order"),
    "table": (Table, "is Table .*one column"),
    "text": (lambda: TEXT, f"is the single str '{TEXT}'; pass a list of"),
    "member": (lambda: Topic.HEART, "is the single Topic"),
    "bytes": (lambda: b"text", "is the single bytes b'text'"),
    "bytearray": (lambda: bytearray(b"text"), "is the single bytearray"),
    "memoryview": (lambda: memoryview(b"text"), "is the single memoryview"),
    "nothing": (lambda: None, "is NoneType None; pass a list of"),
    "number": (lambda: 7, "is int 7"),
    "function": (lambda: check_text, "is function"),
    "class": (lambda: str, "is type"),
    "scalar array": (lambda: np.array("text"), "is ndarray"),
}
ODD_ITEMS: dict[str, Callable[[], Any]] = {
    "numbers": lambda: np.arange(3.0),
    "rows": lambda: np.array([["a", "b"]]),
    "range": lambda: range(3),
    "items": lambda: {"a": TEXT}.items(),
    "generator of numbers": lambda: (number for number in range(3)),
    "generator of lists": lambda: ([TEXT] for _ in range(3)),
    "bytes": lambda: [b"text"],
    "nested": lambda: [[TEXT]],
    "nothing": lambda: [None],
}
LISTS: dict[str, Callable[[], Any]] = {
    "list": lambda: [TEXT, "b"],
    "tuple": lambda: (TEXT, "b"),
    "generator": lambda: (each for each in (TEXT, "b")),
    "deque": lambda: deque([TEXT, "b"]),
    "values": lambda: {1: TEXT, 2: "b"}.values(),
    "keys": lambda: {TEXT: 1, "b": 2}.keys(),
    "array": lambda: np.array([TEXT, "b"]),
    "objects": lambda: np.array([TEXT, "b"], dtype=object),
    "map": lambda: map(str, [TEXT, "b"]),
}


@pytest.mark.parametrize(("make", "said"), NO_LISTS.values(), ids=NO_LISTS)
def test_what_is_no_list_of_texts_is_said(make, said):
    for check, name in ((check_texts, "texts"), (check_pairs, "pairs")):
        with pytest.raises(InputError, match=f"^{name} {said}") as caught:
            check(make())
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", ODD_ITEMS.values(), ids=ODD_ITEMS)
def test_items_that_are_no_texts_are_named(make):
    with pytest.raises(InputError, match=r"^texts\[0\] is "):
        check_texts(make())


@pytest.mark.parametrize("make", LISTS.values(), ids=LISTS)
def test_whatever_gives_texts_in_order_is_a_list(make):
    assert check_texts(make()) == [TEXT, "b"]


@pytest.mark.parametrize("pair", [{"q": 1, "d": 2}, {"q", "d"}, "qd", b"qd", ("q",), ("q", "d", "e"), None, 3])
def test_a_pair_is_two_texts_in_order(pair):
    with pytest.raises(InputError, match=r"^pairs\[1\] is .*pass a \(query, document\) tuple"):
        check_pairs([("q", "d"), pair])


def test_pairs_may_be_rows_of_an_array():
    assert check_pairs(np.array([["q", "d"], ["q", "e"]])) == [("q", "d"), ("q", "e")]


def test_a_data_frame_is_no_list_and_its_column_is():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"text": [TEXT, "b"], "title": ["x", "y"]})
    for given in (frame, frame.set_index(["text", "title"]).T):
        with pytest.raises(InputError, match=r"^texts is DataFrame .*Of a table, pass one column"):
            check_texts(given)
        with pytest.raises(InputError, match=r"^pairs is DataFrame"):
            check_pairs(given)
    assert check_texts(frame["text"]) == [TEXT, "b"]
    assert check_texts(frame.set_index("text", drop=False)["text"]) == [TEXT, "b"]
    assert check_pairs(frame.to_numpy()) == [(TEXT, "x"), ("b", "y")]


def test_a_large_mapping_is_shown_in_short():
    with pytest.raises(InputError) as caught:
        check_texts(dict.fromkeys(map(str, range(100_000)), TEXT * 1000))
    assert len(str(caught.value)) < 400
