"""Folders of exported models on disk: written in one step, read only when every file is what was written."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = ["DamagedEntryError", "cache_folder", "drop_entry", "read_entry", "write_entry"]

MANIFEST = "export.json"
ABANDONED_AFTER_S = 24 * 3600.0


class DamagedEntryError(Exception):
    """A folder is not what was written; for the exporter, which makes it again."""


def cache_folder() -> Path:
    """Return the folder of all exports: in `$BGE_CACHE_DIR`, else in `bge` in the user's cache folder."""
    named = os.environ.get("BGE_CACHE_DIR")
    root = Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "bge"
    return root.expanduser() / "exports"


def read_entry(folder: Path) -> dict[str, Any] | None:
    """Return what was written with the folder's files, or `None` when there is no such folder.

    Raises:
        DamagedEntryError: A file is missing or differs from what was written.
    """
    if not folder.is_dir():
        return None
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, digest in manifest["files"].items():
            if _digest(folder / name) != digest:
                raise DamagedEntryError(f"{name} differs from what was written")
        content: dict[str, Any] = manifest["content"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedEntryError(f"{type(error).__name__}: {error}") from error
    return content


def write_entry(folder: Path, content: Mapping[str, Any], write: Callable[[Path], None]) -> None:
    """Make the folder, or replace it, in one step.

    Args:
        folder: The folder; when another process makes it meanwhile, theirs stays.
        content: What `read_entry` is to return, as JSON.
        write: Writes all files into the folder that it is given.

    Raises:
        OSError: The disk is full or not writable.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _drop_abandoned(folder.parent)
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        write(made)
        manifest = {"files": {file.name: _digest(file) for file in sorted(made.iterdir())}, "content": content}
        (made / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
        _put(made, folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _put(made: Path, folder: Path) -> None:
    """Rename `made` to `folder`, unless another process has put a good one there."""
    try:
        if read_entry(folder) is not None:
            return
    except DamagedEntryError:
        drop_entry(folder)
    try:
        made.replace(folder)
    except OSError:
        if not folder.is_dir():  # else another process was first, in this instant
            raise


def drop_entry(folder: Path) -> None:
    """Remove a folder, in one step as seen by others; one that is gone or cannot be removed stays as it is."""
    with suppress(OSError):
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            folder.replace(aside)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _drop_abandoned(parent: Path) -> None:
    """Remove what killed processes left half-written."""
    for left in parent.glob(".*"):
        if left.is_dir() and time.time() - left.stat().st_mtime > ABANDONED_AFTER_S:
            shutil.rmtree(left, ignore_errors=True)


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
