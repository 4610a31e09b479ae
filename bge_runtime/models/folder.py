"""Files of a model's folder: which of them can be read, and what JSON and the model card say."""

from __future__ import annotations

import json
import ntpath
import os
from itertools import takewhile
from pathlib import Path
from typing import Any

from bge_runtime.errors import ModelNotFoundError

__all__ = ["check_regular", "find_folder", "is_path", "read_card", "read_object", "read_values"]

# Configurations have kilobytes; cards with benchmark results some hundred.
LARGEST = 16 * 2**20
LFS_POINTER = b"version https://git-lfs"


def find_folder(name: str) -> Path | None:
    """Return the folder that a name stands for, `None` when there is none on this machine."""
    # Not Path: its methods raise for names that are too long, and for a home folder that there is not.
    path = os.path.expanduser(name)
    return Path(path) if os.path.isdir(path) else None


def is_path(name: str) -> bool:
    """Return whether a name can only be a path, by its look."""
    name = name.strip()
    return (
        name.startswith((".", "~", "/"))
        or name.endswith("/")
        or name.count("/") > 1
        or "\\" in name
        or ntpath.splitdrive(name)[0] != ""
    )


def check_regular(folder: Path) -> None:
    """Refuse a folder with pipes or devices in it, for which a reader would wait without end.

    Raises:
        ModelNotFoundError: Names one.
    """
    for file in (*folder.glob("*"), *folder.glob("*/*")):
        if not (os.path.isfile(file) or os.path.isdir(file)) and os.path.exists(file):
            raise ModelNotFoundError(f"{str(file)!r} is no regular file. Copy the model's folder again.")


def check_content(file: Path) -> None:
    """Refuse a file that stands for another one, or is empty.

    Raises:
        ModelNotFoundError: Says which and what to do.
    """
    try:
        with file.open("rb") as stream:
            start = stream.read(len(LFS_POINTER))
    except OSError as error:
        raise ModelNotFoundError(f"{str(file)!r} cannot be read ({error}). Copy the model's folder again.") from error
    if start == LFS_POINTER:
        raise ModelNotFoundError(
            f"{str(file)!r} is a pointer of Git LFS and not the file itself. Run `git lfs pull` in the folder that was "
            "cloned, or copy the file from a place where it is whole."
        )
    if not start:
        raise ModelNotFoundError(f"{str(file)!r} is empty. Copy the model's folder again.")


def read_object(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file; an empty one when there is no such file.

    Raises:
        ModelNotFoundError: It is damaged, or holds something else.
    """
    found = read_values(file)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ModelNotFoundError(
            f"{str(file)!r} holds no settings but a {type(found).__name__}. Copy the model's folder again."
        )
    return found


def read_values(file: Path) -> Any:
    """Return what a JSON file holds; `None` when there is no such file.

    Raises:
        ModelNotFoundError: It is damaged or larger than such files are.
    """
    if not os.path.isfile(file):
        return None
    try:
        if file.stat().st_size > LARGEST:
            raise _damaged(file, f"it has more than {LARGEST >> 20} MB")
        return json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(file, f"{type(error).__name__}: {error}") from error


def read_card(folder: Path) -> dict[str, Any]:
    """Return the metadata of a folder's model card; empty when there is none that can be read."""
    if not os.path.isfile(folder / "README.md"):
        return {}
    try:
        with (folder / "README.md").open(encoding="utf-8-sig", errors="replace") as stream:
            first, *rest = stream.read(LARGEST).splitlines() or [""]
    except OSError:
        return {}
    if first.rstrip() != "---":
        return {}
    import yaml  # here: most folders tell what they are without

    # libyaml's, where PyYAML was built with it: cards with benchmark results take it milliseconds, and Python a second.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        found = yaml.load("\n".join(takewhile(lambda line: line.rstrip() != "---", rest)), Loader=loader)
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: a date such as 2024-13-45
        return {}
    return found if isinstance(found, dict) else {}


def _damaged(file: Path, reason: str) -> ModelNotFoundError:
    return ModelNotFoundError(f"{str(file)!r} cannot be read ({reason}). Copy the model's folder again.")
