"""The exception tree.

    BGEError
    ├── ConfigurationError (ValueError)      an option is wrong
    │   ├── UnknownArgumentError (TypeError)   an option does not exist
    │   └── IndexIdentityError                 an index was filled by another model
    ├── InputError (ValueError, TypeError)   a text, query or document is wrong
    │   └── InputTooLongError                  longer than the model reads, with truncation="error"
    ├── ModelNotFoundError (LookupError)     no such model, or it cannot be loaded from there
    │   ├── HubUnreachableError (ConnectionError)
    │   └── UnsafeWeightsError                 only pickled weights, in an unknown repository
    ├── UnsupportedModelError (NotImplementedError)   known, but this kind cannot run
    └── BackendError (RuntimeError)          the computation itself failed
        ├── OutOfMemoryError (MemoryError)
        ├── ModelChangedError                  a server answers with another model than before
        ├── ServerUnreachableError (ConnectionError)
        └── EngineStoppedError                 the worker died or was closed while work was pending

Every class also inherits the builtin that a caller would catch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar

__all__ = [
    "BGEError",
    "BackendError",
    "ConfigurationError",
    "EngineStoppedError",
    "HubUnreachableError",
    "IndexIdentityError",
    "InputError",
    "InputTooLongError",
    "ModelChangedError",
    "ModelNotFoundError",
    "OutOfMemoryError",
    "ServerUnreachableError",
    "UnknownArgumentError",
    "UnsafeWeightsError",
    "UnsupportedModelError",
    "check_choice",
    "check_count",
    "check_flag",
    "check_path",
    "check_string",
    "public",
]


T = TypeVar("T", bound=type)


def public(cls: T) -> T:
    """Let a class name its public place as its module: pickles and tracebacks then survive that it moves inside."""
    cls.__module__ = "bge_runtime"
    return cls


@public
class BGEError(Exception):
    """Root of every error that this project raises on purpose."""


@public
class ConfigurationError(BGEError, ValueError):
    """An option has a value that is not allowed."""

    @classmethod
    def from_validation(cls, owner: str, errors: Iterable[Mapping[str, Any]]) -> ConfigurationError:
        """Build the error from the list that a pydantic `ValidationError.errors()` returns.

        Args:
            owner: Class name shown in the message.
            errors: Mappings with `loc`, `msg` and `input`.
        """
        rows = [
            f"{'.'.join(str(part) for part in error['loc'])}={error.get('input')!r}: {error['msg']}" for error in errors
        ]
        return cls(f"{owner}: {'; '.join(rows)}")


@public
class UnknownArgumentError(ConfigurationError, TypeError):
    """An argument does not exist."""

    @classmethod
    def check(cls, owner: str, given: Iterable[str], valid: Iterable[str]) -> None:
        """Raise when `given` names an argument that is not in `valid`.

        Args:
            owner: What was called, shown in the message.
            given: Argument names used by the caller.
            valid: Argument names that exist.

        Raises:
            UnknownArgumentError: Names the unknown arguments, the nearest valid ones and the whole list.
        """
        allowed = sorted(valid)
        unknown = sorted(set(given) - set(allowed))
        if not unknown:
            return
        near = [match for name in unknown for match in get_close_matches(name, allowed, n=1)]
        hint = f" Did you mean {', '.join(repr(name) for name in near)}?" if near else ""
        names = ", ".join(repr(name) for name in unknown)
        raise cls(f"{owner} has no argument {names}.{hint} Valid arguments: {', '.join(allowed)}.")


@public
class IndexIdentityError(ConfigurationError):
    """An index holds vectors that this embedder's vectors cannot be compared with."""


@public
class InputError(BGEError, ValueError, TypeError):
    """A text, query or document cannot be used."""


@public
class InputTooLongError(InputError):
    """A text is longer than the model reads and `truncation="error"` was asked for."""


@public
class ModelNotFoundError(BGEError, LookupError):
    """The model does not exist or has no usable weights at the place named."""


@public
class HubUnreachableError(ModelNotFoundError, ConnectionError):
    """The model is not on this machine and the hub cannot be reached."""


@public
class UnsafeWeightsError(ModelNotFoundError):
    """The repository holds pickled weights only and is not in the model table."""


@public
class UnsupportedModelError(BGEError, NotImplementedError):
    """The model is known, but its kind cannot run."""


@public
class BackendError(BGEError, RuntimeError):
    """The forward pass failed."""


@public
class OutOfMemoryError(BackendError, MemoryError):
    """One single text does not fit in the device's memory, or the weights do not."""


@public
class ModelChangedError(BackendError):
    """The server behind `base_url` answers with another model than the one that was asked for first."""


@public
class ServerUnreachableError(BackendError, ConnectionError):
    """Nobody answers at `base_url`."""


@public
class EngineStoppedError(BackendError):
    """The worker of a model ended while this call was pending; the next call starts a new one."""


def check_count(value: Any, name: str) -> int | None:
    """Return a positive whole number or `None`.

    Raises:
        ConfigurationError: It is something else.
    """
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    raise ConfigurationError(f"{name}={value!r} is not allowed. Pass a whole number of at least 1, or None.")


def check_flag(value: Any, name: str) -> bool:
    """Return a boolean; a text such as "False" is none, though Python takes it for true.

    Raises:
        ConfigurationError: It is something else.
    """
    if isinstance(value, bool):
        return value
    raise ConfigurationError(f"{name}={value!r} is not allowed. Pass True or False.")


def check_string(value: Any, name: str) -> str | None:
    """Return a text that is not empty, or `None`.

    Raises:
        ConfigurationError: It is something else; what kind of thing, since it may be a secret.
    """
    if value is None or (isinstance(value, str) and value and "\0" not in value):
        return value
    what = f"{value!r}" if isinstance(value, str) else f"of type {type(value).__name__}"
    raise ConfigurationError(f"{name} is {what}, which is not allowed. Pass a text, or None.")


def check_choice(value: Any, name: str, allowed: Iterable[str]) -> str:
    """Return one of the texts that are allowed.

    Raises:
        ConfigurationError: It is something else.
    """
    texts = list(allowed)
    if isinstance(value, str) and value in texts:
        return value
    shown = " or ".join(filter(None, [", ".join(map(repr, texts[:-1])), repr(texts[-1])]))
    raise ConfigurationError(f"{name}={value!r} is not allowed. Use {shown}.")


def check_path(value: Any, name: str) -> str:
    """Return a path as a text, with the home folder in place of `~`.

    Raises:
        ConfigurationError: It is no path, or `~` names a user that there is not.
    """
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(path, str) or not path or "\0" in path or not _can_be_written(path):
        raise ConfigurationError(f"{name}={value!r} is not a path. Pass a text or a Path.")
    written_out = os.path.expanduser(path)
    if written_out.startswith("~"):
        raise ConfigurationError(f"{name}={path!r} names the home folder of a user that this machine does not have.")
    return written_out


def _can_be_written(path: str) -> bool:
    try:
        os.fsencode(path)
    except UnicodeEncodeError:  # half a character
        return False
    return True
