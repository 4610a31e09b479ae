"""The files of a folder, and what is in them."""

from __future__ import annotations

import codecs
import hashlib
import io
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec as find_module
from pathlib import Path

from bge_runtime import ConfigurationError, InputError, check_text
from bge_runtime.search.sections import Section, from_html, from_markdown

__all__ = ["KINDS", "SourceFile", "UnreadableFileError", "content_digest", "find_files", "read_sections"]

KINDS = {
    **dict.fromkeys((".md", ".markdown", ".mdx"), "markdown"),
    **dict.fromkeys((".txt", ".text", ".rst"), "text"),
    **dict.fromkeys((".html", ".htm", ".xhtml"), "html"),
    ".pdf": "pdf",
}
PDF_ADVICE = 'reading PDF needs an extra: pip install "bge-integrations[pdf]"'
_UNSEARCHED = frozenset({"node_modules", "__pycache__"})
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_HTML_CHARSET = re.compile(rb"<meta[^>]+charset\s*=\s*[\"']?\s*([\w-]+)", re.IGNORECASE)


class UnreadableFileError(InputError):
    """A file cannot be searched; the message is the reason."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file to search.

    Attributes:
        name: Its path below the folder, with slashes.
        path: Where it is.
    """

    name: str
    path: Path

    @property
    def kind(self) -> str:
        """How it is read."""
        return KINDS[self.path.suffix.lower()]

    def read(self) -> bytes:
        """Return its content.

        Raises:
            UnreadableFileError: It cannot be read.
        """
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise UnreadableFileError(error.strerror or type(error).__name__) from error


def find_files(folder: Path) -> list[SourceFile]:
    """Return the files below `folder` that can be searched, by name; hidden folders and files are left out.

    Raises:
        ConfigurationError: It is not a folder, or holds no such file.
    """
    if not folder.exists():
        raise ConfigurationError(f"Folder {str(folder)!r} does not exist. Pass a folder with documents.")
    if not folder.is_dir():
        raise ConfigurationError(f"{str(folder)!r} is not a folder. Pass the folder that holds the documents.")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise ConfigurationError(f"Folder {str(folder)!r} cannot be read. Check its permissions.")
    found = sorted(_walk(folder), key=lambda file: file.name)
    if not found:
        raise ConfigurationError(
            f"Folder {str(folder)!r} holds no documents. These are searched: {', '.join(sorted(KINDS))}."
        )
    return found


def _walk(folder: Path) -> Iterator[SourceFile]:
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in _UNSEARCHED]
        for name in names:
            path = Path(place, name)
            if not name.startswith(".") and path.suffix.lower() in KINDS and path.is_file():
                # Names that are not valid UTF-8 could be neither stored nor printed.
                shown = os.fsencode(path.relative_to(folder).as_posix()).decode("utf-8", "replace")
                yield SourceFile(shown, path)


def content_digest(content: bytes) -> str:
    """Return the SHA-256 of a file's content."""
    return hashlib.sha256(content).hexdigest()


def read_sections(kind: str, content: bytes) -> list[Section]:
    """Return the sections of a file.

    Args:
        kind: A value of `KINDS`.
        content: The file's bytes.

    Raises:
        UnreadableFileError: It is not text, or its reader is not installed.
    """
    # PDF files can hold lone surrogates, which can be neither stored nor embedded.
    return [
        Section(tuple(check_text(title) for title in trail), check_text(text), check_text(code))
        for trail, text, code in _READERS[kind](content)
    ]


def _from_text(content: bytes) -> list[Section]:
    return [Section((), _decode(content).strip())]


def _from_markdown(content: bytes) -> list[Section]:
    return from_markdown(_decode(content))


def _from_html(content: bytes) -> list[Section]:
    declared = _HTML_CHARSET.search(content[:2048])
    return from_html(_decode(content, declared[1].decode("ascii") if declared else "utf-8"))


def _from_pdf(content: bytes) -> list[Section]:
    if find_module("pypdf") is None:
        raise UnreadableFileError(PDF_ADVICE)
    from pypdf import PdfReader

    try:
        reader = PdfReader(io.BytesIO(content))
        if reader.is_encrypted and not reader.decrypt(""):
            raise UnreadableFileError("it is encrypted")
        return [
            Section((f"page {number}",), (page.extract_text() or "").strip())
            for number, page in enumerate(reader.pages, start=1)
        ]
    except UnreadableFileError:
        raise
    except Exception as error:  # the reader meets broken files with nearly any exception
        raise UnreadableFileError(f"not a readable PDF ({type(error).__name__}: {error})") from error


def _decode(content: bytes, declared: str = "utf-8") -> str:
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if content.startswith(mark)), declared)
    try:
        text = content.decode(encoding)
    except (UnicodeError, LookupError) as error:
        raise UnreadableFileError(f"not text in {encoding}") from error
    if "\0" in text:
        raise UnreadableFileError("binary, not text")
    return text


_READERS: dict[str, Callable[[bytes], list[Section]]] = {
    "markdown": _from_markdown,
    "text": _from_text,
    "html": _from_html,
    "pdf": _from_pdf,
}
