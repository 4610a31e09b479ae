"""The files of a folder, and what is in them."""

from __future__ import annotations

import codecs
import hashlib
import io
import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec as find_module
from pathlib import Path

from bge_runtime import ConfigurationError, check_text
from bge_runtime.search.sections import Section, UnreadableFileError, from_html, from_markdown, from_xhtml

__all__ = ["KINDS", "SourceFile", "UnreadableFileError", "content_digest", "find_files", "read_sections"]

KINDS = {
    **dict.fromkeys((".md", ".markdown", ".mdx"), "markdown"),
    **dict.fromkeys((".txt", ".text", ".rst"), "text"),
    **dict.fromkeys((".html", ".htm"), "html"),
    ".xhtml": "xhtml",
    ".pdf": "pdf",
}
# Most bytes of a file. The slowest Markdown takes a minute per 2 MiB, and what a page nests is repeated in memory.
LIMITS = {"markdown": 2 * 2**20, "text": 16 * 2**20, "html": 4 * 2**20, "xhtml": 4 * 2**20, "pdf": 128 * 2**20}
PDF_LIMIT_S = 300.0
PDF_ADVICE = 'reading PDF needs an extra: pip install "bge-integrations[pdf]"'
_UNSEARCHED = frozenset({"node_modules", "__pycache__"})
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file to search.

    Attributes:
        name: Its path below the folder, with slashes.
        path: Where it is.
        problem: Why nothing in it can be read; empty for what can be tried.
    """

    name: str
    path: Path
    problem: str = ""

    @property
    def kind(self) -> str:
        """How it is read; empty for a folder."""
        return KINDS.get(self.path.suffix.lower(), "")

    def read(self) -> bytes:
        """Return its content.

        Raises:
            UnreadableFileError: It cannot be read, is no regular file, or is too large.
        """
        if self.problem:
            raise UnreadableFileError(self.problem)
        try:
            # Before it is opened: a pipe would wait for a writer, and a device may act.
            status = self.path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise UnreadableFileError("not a regular file")
            limit = LIMITS[self.kind]
            with self.path.open("rb") as file:
                content = b"" if status.st_size > limit else file.read(limit + 1)
        except OSError as error:
            raise UnreadableFileError(_reason(error)) from error
        if max(status.st_size, len(content)) > limit:
            raise UnreadableFileError(f"larger than {limit // 2**20} MiB")
        return content


def find_files(place: Path) -> list[SourceFile]:
    """Return the files below a folder that can be searched, by name, or the one file that `place` is.

    Hidden folders and files are left out. A folder that cannot be listed is among them, for its reason.

    Raises:
        ConfigurationError: It is missing, a file of another kind, or a folder that holds no such file.
    """
    try:
        status = place.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConfigurationError(f"{str(place)!r} does not exist. Pass a folder, or one document.") from error
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{str(place)!r} cannot be searched ({error}). Pass a folder.") from error
    kinds = ", ".join(sorted(KINDS))
    if not stat.S_ISDIR(status.st_mode):
        if place.suffix.lower() not in KINDS:
            raise ConfigurationError(f"{str(place)!r} is not a folder, and no document. These are searched: {kinds}.")
        return [SourceFile(_shown(Path(place.name)), place)]
    if not os.access(place, os.R_OK | os.X_OK):
        raise ConfigurationError(f"Folder {str(place)!r} cannot be read. Check its permissions.")
    found = sorted(_walk(place), key=lambda file: file.name)
    if not found:
        raise ConfigurationError(f"Folder {str(place)!r} holds no documents. These are searched: {kinds}.")
    return found


def _walk(folder: Path) -> Iterator[SourceFile]:
    unlisted: list[OSError] = []
    for place, folders, names in os.walk(folder, onerror=unlisted.append):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in _UNSEARCHED]
        for name in names:
            path = Path(place, name)
            if not name.startswith(".") and path.suffix.lower() in KINDS:
                yield SourceFile(_shown(path.relative_to(folder)), path)
    for error in unlisted:
        path = Path(error.filename)
        yield SourceFile(_shown(path.relative_to(folder)), path, problem=_reason(error))


def _shown(path: Path) -> str:
    """Return a path as text; bytes that are not UTF-8 could be neither stored nor printed, and tell files apart."""
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")


def _reason(error: OSError) -> str:
    return error.strerror or type(error).__name__


def content_digest(content: bytes) -> str:
    """Return the SHA-256 of a file's content."""
    return hashlib.sha256(content).hexdigest()


def read_sections(kind: str, content: bytes) -> list[Section]:
    """Return the sections of a file.

    Args:
        kind: A value of `KINDS`.
        content: The file's bytes.

    Raises:
        UnreadableFileError: It is not what its name says, is damaged, or its reader is not installed.
    """
    try:
        sections = _READERS[kind](content)
    except UnreadableFileError:
        raise
    except Exception as error:  # readers meet broken files with nearly any exception, and one must not end the search
        raise UnreadableFileError(f"not readable as {kind} ({type(error).__name__}: {error})") from error
    # PDF files can hold lone surrogates, which can be neither stored nor embedded.
    return [
        Section(tuple(check_text(title) for title in trail), check_text(text), check_text(code))
        for trail, text, code in sections
    ]


def _from_text(content: bytes) -> list[Section]:
    return [Section((), _decode(content).strip())]


def _from_markdown(content: bytes) -> list[Section]:
    return from_markdown(_decode(content))


def _from_html(content: bytes) -> list[Section]:
    if _marked(content):
        return from_html(_decode(content))
    if b"\0" in content:
        raise UnreadableFileError("binary, not text")
    return from_html(content)


def _from_xhtml(content: bytes) -> list[Section]:
    try:
        text = _decode(content)
    except UnreadableFileError:
        return _from_html(content)
    return from_xhtml(text)


def _from_pdf(content: bytes) -> list[Section]:
    if find_module("pypdf") is None:
        raise UnreadableFileError(PDF_ADVICE)
    from pypdf import PdfReader

    reader = PdfReader(io.BytesIO(content))
    if reader.is_encrypted and not reader.decrypt(""):
        raise UnreadableFileError("it is encrypted")
    sections = []
    deadline = time.monotonic() + PDF_LIMIT_S
    # Pages can share their content, so that the size of the file says nothing about the time.
    for number, page in enumerate(reader.pages, start=1):
        sections.append(Section((f"page {number}",), (page.extract_text() or "").strip()))
        if time.monotonic() > deadline:
            raise UnreadableFileError(f"its first {number} pages took more than {PDF_LIMIT_S:g} s to read")
    return sections


def _marked(content: bytes) -> str | None:
    """Return the encoding that a byte order mark tells."""
    return next((name for mark, name in _BYTE_ORDER_MARKS if content.startswith(mark)), None)


def _decode(content: bytes) -> str:
    encoding = _marked(content) or "utf-8"
    try:
        text = content.decode(encoding)
    except UnicodeError as error:
        raise UnreadableFileError(f"not text in {encoding}") from error
    if "\0" in text:
        raise UnreadableFileError("binary, not text")
    return text


_READERS: dict[str, Callable[[bytes], list[Section]]] = {
    "markdown": _from_markdown,
    "text": _from_text,
    "html": _from_html,
    "xhtml": _from_xhtml,
    "pdf": _from_pdf,
}
