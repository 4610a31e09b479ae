"""Pickled files read without running them: the classes of frameworks become plain records."""

from __future__ import annotations

import io
import pickle
from collections.abc import Collection
from typing import Any

from bge_runtime import ConfigurationError

__all__ = ["Record", "unpickled"]

# Values that nothing is run for but their own constructors.
_HARMLESS = {
    "builtins": (
        "bool",
        "bytearray",
        "bytes",
        "complex",
        "dict",
        "float",
        "frozenset",
        "int",
        "list",
        "set",
        "str",
        "tuple",
    ),
    "collections": ("OrderedDict", "defaultdict", "deque"),
    "datetime": ("date", "datetime", "time", "timedelta", "timezone"),
    "decimal": ("Decimal",),
    "fractions": ("Fraction",),
    "pathlib": ("Path", "PosixPath", "PurePath", "PurePosixPath", "PureWindowsPath", "WindowsPath"),
    "uuid": ("UUID", "SafeUUID"),
    "zoneinfo": ("ZoneInfo",),
}


class Record:
    """An object of some class, as the fields that were pickled."""

    fields: dict[str, Any]

    def __setstate__(self, state: Any) -> None:
        # pydantic keeps its fields one level deeper than plain objects.
        self.fields = state["__dict__"] if "__dict__" in state else state


class _Reader(pickle.Unpickler):
    def __init__(self, data: bytes, records: Collection[tuple[str, str]], what: str, *, allow: bool) -> None:
        super().__init__(io.BytesIO(data))
        self._records = records
        self._what = what
        self._allow = allow

    def find_class(self, module: str, name: str, /) -> Any:
        if (module.partition(".")[0], name) in self._records:
            return Record
        if name in _HARMLESS.get(module, ()) or self._allow:
            return super().find_class(module, name)
        raise ConfigurationError(
            f"{self._what} is a pickle that asks for {f'{module}.{name}'!r}, and unpickling it can run any code. "
            "If you trust whoever wrote it, pass allow_pickle=True (--allow-pickle); "
            "else fill a new index from the source documents."
        )


def unpickled(data: bytes, records: Collection[tuple[str, str]], what: str, *, allow_pickle: bool) -> Any:
    """Return what was pickled, with a `Record` in place of every object of the classes that are named.

    Numbers, texts, containers, dates, UUIDs and paths are read as they are.

    Args:
        data: The pickle.
        records: Pairs of package and class that become records, wherever in the package the class is.
        what: The file, for errors.
        allow_pickle: Whether other classes may be imported and run.

    Raises:
        ConfigurationError: It asks for another class, or is damaged.
    """
    try:
        return _Reader(data, records, what, allow=allow_pickle).load()
    except ConfigurationError:
        raise
    except Exception as error:  # a damaged pickle raises anything
        raise ConfigurationError(
            f"{what} cannot be unpickled ({type(error).__name__}: {error}). It is damaged, or was being written: "
            "try again while nothing writes to the index, or restore the file."
        ) from error
