"""Which embedder filled an index: one small file beside the index, whatever the store."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import uuid
from pathlib import Path
from typing import Any, Literal

from bge_runtime.embedding.embedder import Embedder
from bge_runtime.errors import ConfigurationError, IndexIdentityError, check_choice, check_path

__all__ = ["OnMismatch", "bind_index", "index_record"]

logger = logging.getLogger("bge_runtime")

RECORD = "bge-index"
FORMAT = 1
MOST_BYTES = 2**20  # of a record, whose instruction may be long
_NAME = re.compile(r"[\w.-]+")
_IDENTITY = re.compile(r"[0-9a-f]{32}")

EMPTY = " Nothing is stored there yet: if nobody is about to fill it, on_mismatch='replace' costs nothing."

OnMismatch = Literal["raise", "warn", "replace"]


def bind_index(
    path: str | os.PathLike[str],
    embedder: Embedder,
    *,
    collection: str | None = None,
    on_mismatch: OnMismatch = "raise",
) -> None:
    """Record which embedder fills an index, or check that it is the one that did.

    The first call writes the document side of the embedder's identity (weights, pooling, lengths, document
    instruction; not the query instruction) into `bge-index.json`, in the index's folder or beside its file. Later
    calls compare. An index is thereby reserved before anything is stored in it, since many stores write at the end
    only; the error says so. Needs the model's files, not its weights in memory. Safe from several processes.

    Args:
        path: Folder or file in which the store keeps the index. It need not exist yet: a name with an extension is
            taken for a file, another for a folder.
        embedder: The embedder to fill or to query the index with.
        collection: Name of the index, where several share a folder.
        on_mismatch: `raise`; `warn` in the log and go on; or `replace` the record, for an index that is to be
            filled anew.

    Raises:
        IndexIdentityError: Another embedder filled the index, or its record is damaged.
        ConfigurationError: An argument has a value that is not allowed, or the record cannot be written or read.
    """
    check_choice(on_mismatch, "on_mismatch", ("raise", "warn", "replace"))
    if not isinstance(embedder, Embedder):
        raise ConfigurationError(f"embedder={embedder!r} is not allowed. Pass a bge_runtime.Embedder.")
    folder = Path(check_path(path, "path"))
    file = folder
    own = _description(embedder)
    try:
        file = _record_file(folder, collection)
        if on_mismatch == "replace" or not file.exists():
            _write(file, own, replace=on_mismatch == "replace")
        known = _read(file)  # also when written: another process may have been faster
    except OSError as error:
        raise ConfigurationError(
            f"The record {str(file)!r} of who filled the index cannot be written or read ({error}). "
            "Name the folder or file of the index, in a place that you may write to."
        ) from error
    if known["identity"] == own["identity"]:
        return
    message = _explanation(path, known, own, empty=_is_empty(Path(path).expanduser()))
    if on_mismatch == "raise":
        raise IndexIdentityError(message)
    logger.warning("%s", message)


def index_record(path: str | os.PathLike[str], *, collection: str | None = None) -> dict[str, Any] | None:
    """Return what `bind_index` has recorded of an index, or `None`. Nothing is written.

    Args:
        path: Folder or file in which the store keeps the index.
        collection: Name of the index, where several share a folder.

    Returns:
        `identity` (the embedder's `document_identity`), `model`, `dimension`, `max_length`, `normalize`, `pooling`,
        `document_instruction`, and what else tells how the index was filled.

    Raises:
        IndexIdentityError: The record is damaged.
        ConfigurationError: An argument has a value that is not allowed, or the record cannot be read.
    """
    folder = Path(check_path(path, "path"))
    file = folder
    try:
        file = _record_file(folder, collection)
        return _read(file) if file.exists() else None
    except OSError as error:
        raise ConfigurationError(
            f"The record {str(file)!r} of who filled the index cannot be read ({error}). "
            "Name the folder or file of an index that you may read."
        ) from error


def _record_file(path: Path, collection: str | None) -> Path:
    if collection is not None and not (isinstance(collection, str) and _NAME.fullmatch(collection)):
        raise ConfigurationError(f"collection={collection!r} is not allowed. Use letters, digits, '.', '-' and '_'.")
    name = f"{RECORD}.json" if collection is None else f"{RECORD}.{collection}.json"
    inside, beside = path / name, path.with_name(f"{path.name}.{name}")
    if beside.exists():  # the path was taken for a file before the store made it a folder
        return beside
    return inside if path.is_dir() or (not path.exists() and not path.suffix) else beside


def _description(embedder: Embedder) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "identity": embedder.document_identity,
        "model": embedder.model,
        "weights": embedder.source.weights_digest[:12],
        "dimension": embedder.dimension,
        "max_length": embedder.max_length,
        "normalize": embedder.normalize,
        "pooling": embedder.spec.pooling,
        "document_instruction": embedder.document_instruction,
        "precision": embedder.source.precision_class,
    }


def _write(file: Path, record: dict[str, Any], *, replace: bool) -> None:
    """Write the record whole; unless `replace`, one that is there already stays."""
    file.parent.mkdir(parents=True, exist_ok=True)
    # No temporary file of the tempfile module: nobody else could read what becomes of it, whatever the umask.
    made = file.with_name(f".{RECORD}-{uuid.uuid4().hex}")
    try:
        with made.open("x", encoding="utf-8") as stream:
            json.dump(record, stream, indent=1, ensure_ascii=False)
        if replace:
            made.replace(file)
        else:
            _add(made, file)
    finally:
        made.unlink(missing_ok=True)


def _add(new: Path, file: Path) -> None:
    try:
        os.link(new, file)  # fails where the file exists, unlike a renaming
    except FileExistsError:
        return
    except OSError:  # a file system without links
        if not file.exists():
            shutil.copyfile(new, file)


def _read(file: Path) -> dict[str, Any]:
    try:
        # Of a regular file only: opening a pipe would wait for ever.
        if file.is_dir() or (file.is_file() and file.stat().st_size <= MOST_BYTES):
            record = json.loads(file.read_text(encoding="utf-8"))
            if record["format"] == FORMAT and _IDENTITY.fullmatch(record["identity"]):
                return dict(record)
    except (ValueError, LookupError, TypeError, RecursionError):
        pass
    raise IndexIdentityError(
        f"{str(file)!r} does not say which embedder filled the index: it is damaged, or of a newer version. "
        "If you know the embedder, pass on_mismatch='replace' once; else fill the index anew."
    )


def _is_empty(path: Path) -> bool:
    """Return whether nothing is stored there but records."""
    try:
        return not path.exists() or all(each.name.startswith((f"{RECORD}.", f".{RECORD}-")) for each in path.iterdir())
    except OSError:  # a file, or a folder that may not be listed
        return False


def _explanation(path: str | os.PathLike[str], known: dict[str, Any], own: dict[str, Any], *, empty: bool) -> str:
    names = [name for name in own if name not in ("format", "identity") and known.get(name) != own[name]]
    differing = "; ".join(f"{name} {known.get(name)!r} there, {own[name]!r} here" for name in names)
    return (
        f"The index at {os.fspath(path)!r} {'is reserved for' if empty else 'was filled by'} {known.get('model')!r} "
        f"(document identity {known['identity'][:12]}), and the embedder here is {own['model']!r} "
        f"({own['identity'][:12]}). They differ in: {differing or 'how the model is loaded'}. "
        "Use the embedder that filled it, or fill the index anew "
        "and pass on_mismatch='replace'; 'warn' queries it all the same."
        f"{EMPTY if empty else ''}"
    )
