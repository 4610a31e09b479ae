"""Texts and their ids from files, row by row: no more than a block of a file is in memory."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.parquet as pq

from bge_runtime import ConfigurationError, InputError, check_text
from bge_runtime.search.documents import KINDS, UnreadableFileError, find_files, read_sections
from bge_runtime.search.documents import SourceFile as Document

__all__ = ["InputFile", "Row", "Source"]

ID_COLUMN = "id"
READ_AT_ONCE = 4096  # rows of Parquet
CSV_BLOCK = 16 * 2**20  # bytes; a row has to fit in it
MISSING = object()
TABLES = {".parquet": "parquet", ".jsonl": "lines of JSON", ".csv": "CSV"}
FORMATS = "Parquet, .jsonl, .csv and .txt with one text per line (the last three as .gz too), or a folder of these."
_HINT = "Name the one that holds the texts: text_column= (--text-column)."


class Row(NamedTuple):
    """One text of the input, and which row of its file it is, from 1."""

    id: str
    text: str
    number: int


class Record(NamedTuple):
    """What a file has in one of its rows, not yet checked; rows count from 1."""

    number: int
    text: Any
    id: Any
    columns: Iterable[str] = ()


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file of the input.

    Attributes:
        name: Its path below the folder, with slashes: it begins the ids of its rows.
        path: Where it is.
        kind: How it is read.
        size: In bytes, when it was found.
        mtime_ns: When it was last changed, in nanoseconds.
    """

    name: str
    path: Path
    kind: str
    size: int
    mtime_ns: int

    @classmethod
    def found(cls, name: str, path: Path, kind: str) -> InputFile:
        """Look at a file.

        Raises:
            ConfigurationError: It is no regular file, or cannot be read.
        """
        try:
            status = path.stat()
        except OSError as error:
            raise ConfigurationError(f"{str(path)!r} cannot be read ({error.strerror or error}).") from error
        # Before it is opened: a pipe would wait for a writer, and cannot be read twice.
        if not stat.S_ISREG(status.st_mode):
            raise ConfigurationError(f"{str(path)!r} is not a regular file. Write what it gives to a file first.")
        return cls(name, path, kind, status.st_size, status.st_mtime_ns)

    def digest(self) -> str:
        """Return the SHA-256 of its content.

        Raises:
            InputError: It cannot be read.
        """
        with self.readable(), self.path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    def check_unchanged(self) -> None:
        """Refuse a file that is another one by now.

        Raises:
            InputError: It was changed or taken away.
        """
        with self.readable():
            status = self.path.stat()
        if (status.st_size, status.st_mtime_ns) != (self.size, self.mtime_ns):
            raise InputError(
                f"{self.name!r} was changed while it was read. Embed what it holds now into another folder."
            )

    @contextmanager
    def readable(self) -> Iterator[None]:
        """Name the file in errors of the disk and of its format."""
        try:
            yield
        except (pa.ArrowException, csv.Error, zlib.error, UnicodeError) as error:
            raise InputError(f"{self.name!r} cannot be read as {self.kind} ({error}). Mend the file.") from error
        except (OSError, EOFError) as error:
            raise InputError(f"{self.name!r} cannot be read ({error}).") from error

    def opened(self) -> IO[bytes]:
        """Return its bytes as a stream, unpacked where it is packed."""
        packed = self.path.suffix.lower() == ".gz"
        return cast(IO[bytes], gzip.open(self.path, "rb")) if packed else self.path.open("rb")

    def wrong(self, number: int, what: str) -> InputError:
        """Return the error about a row."""
        return InputError(f"{self.name!r}, row {number}: {what}")


@dataclass(frozen=True, slots=True)
class Source:
    """The texts of one or more files, in the order of the files' names and of their rows.

    Attributes:
        files: What is read.
        text_column: Which column holds the texts.
        id_column: Which holds the ids; empty where they are made of file and row.
    """

    files: tuple[InputFile, ...]
    text_column: str
    id_column: str

    @classmethod
    def open(cls, place: Path, *, text_column: str, id_column: str | None) -> Source:
        """Find the files, and settle where ids come from by the first row.

        Args:
            place: A file or a folder.
            text_column: Name of a column; text files and documents have none.
            id_column: The same; `None` takes `id` where the first row has it, and an empty name takes no column.

        Raises:
            ConfigurationError: There is nothing to read.
            InputError: The first row cannot be used.
        """
        files = tuple(_files(place))
        columns = all(file.kind in TABLES.values() for file in files)
        if not columns and id_column:
            raise ConfigurationError(
                f"id_column={id_column!r} is not allowed for {str(place)!r}, which has no columns: its ids are "
                "FILENAME:row. Leave --id-column out."
            )
        chosen = "" if not columns else ID_COLUMN if id_column is None else id_column
        source = cls(files, text_column, chosen)
        if id_column is None and chosen:
            first = next((record for file in files for record in source._records(file, 0)), None)
            chosen = chosen if first is not None and first.id is not MISSING else ""
        return cls(files, text_column, chosen)

    def resolved(self) -> Source:
        """Return the same with paths that hold in any working directory."""
        return replace(self, files=tuple(replace(file, path=file.path.resolve()) for file in self.files))

    def rows(self, start: int = 0, counts: Sequence[int] = ()) -> Iterator[Row]:
        """Yield the rows, from one on.

        Args:
            start: How many rows to leave out.
            counts: How many rows each file has; needed where some are left out.

        Raises:
            InputError: A file or a row cannot be used, or a file was changed.
        """
        for index, file in enumerate(self.files):
            if counts and start >= counts[index]:
                start -= counts[index]
                continue
            yield from self.rows_of(file, start)
            start = 0

    def rows_of(self, file: InputFile, start: int = 0) -> Iterator[Row]:
        """Yield the rows of one file; see `rows`."""
        for record in self._records(file, start):
            yield self._checked(file, record)
        file.check_unchanged()

    def _records(self, file: InputFile, start: int) -> Iterator[Record]:
        with file.readable():
            yield from _READERS[file.kind](file, self.text_column, self.id_column, start)

    def _checked(self, file: InputFile, record: Record) -> Row:
        number, text, given, columns = record
        if text is MISSING:
            names = ", ".join(map(repr, islice(columns, 20))) or "none"
            raise file.wrong(number, f"there is no column {self.text_column!r}; there are: {names}. {_HINT}")
        if not isinstance(text, str):
            raise file.wrong(
                number, f"column {self.text_column!r} is {_shown(text)}; a string is needed. Leave such rows out."
            )
        if not self.id_column:
            return Row(f"{file.name}:{number}", text, number)
        if isinstance(given, bool) or not isinstance(given, str | int):
            what = "is missing" if given is MISSING else f"is {_shown(given)}"
            raise file.wrong(
                number,
                f"column {self.id_column!r}, which holds the ids, {what}; a string or a whole number is needed. "
                "Name another one with id_column= (--id-column), or '' for FILENAME:row.",
            )
        return Row(check_text(str(given)), text, number)


def _shown(value: Any) -> str:
    return "null" if value is None else f"{type(value).__name__} {value!r:.60}"


def _files(place: Path) -> Iterator[InputFile]:
    if not place.exists():
        raise ConfigurationError(f"{str(place)!r} does not exist. Name {FORMATS}")
    if not place.is_dir():
        kind = _kind(place) or ("document" if place.suffix.lower() in KINDS else None)
        if kind is None:
            raise ConfigurationError(f"{str(place)!r} is of no format that is read. Name {FORMATS}")
        yield InputFile.found(_name(Path(place.name)), place, kind)
        return
    found = {path: kind for path in _walk(place) if (kind := _kind(path)) is not None}
    tables = {path: kind for path, kind in found.items() if kind in TABLES.values()}
    if not tables and any(path.suffix.lower() in KINDS and path not in found for path in _walk(place)):
        yield from (InputFile.found(each.name, each.path, "document") for each in find_files(place))
        return
    if not found:
        raise ConfigurationError(f"Folder {str(place)!r} holds nothing that is read. Name {FORMATS}")
    # Beside tables a text file is rather a licence than data.
    named = {_name(path.relative_to(place)): path for path in tables or found}
    yield from (InputFile.found(name, named[name], found[named[name]]) for name in sorted(named))


def _walk(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise ConfigurationError(f"Folder {error.filename!r} cannot be read ({error.strerror}).") from error

    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(place, name) for name in names if not name.startswith("."))


def _kind(path: Path) -> str | None:
    """Return how a file is read that holds many texts."""
    name = path.name.lower()
    ending = Path(name.removesuffix(".gz")).suffix
    if ending == ".txt":
        return "lines of text"
    return None if ending == ".parquet" and name.endswith(".gz") else TABLES.get(ending)


def _name(path: Path) -> str:
    """Return a path as text; bytes that are not UTF-8 could not be stored in an id."""
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")


def _lines(file: InputFile) -> Iterator[tuple[int, bytes]]:
    with file.opened() as stream:
        for number, line in enumerate(stream, start=1):
            whole = line.removesuffix(b"\n").removesuffix(b"\r")
            yield number, whole.removeprefix(b"\xef\xbb\xbf") if number == 1 else whole


def _text_lines(file: InputFile, _text: str, _id: str, start: int) -> Iterator[Record]:
    for number, line in islice(_lines(file), start, None):
        yield Record(number, _decoded(file, number, line), MISSING)


def _json_lines(file: InputFile, text_column: str, id_column: str, start: int) -> Iterator[Record]:
    written = ((number, line) for number, line in _lines(file) if line.strip())
    for number, line in islice(written, start, None):
        try:
            value = json.loads(_decoded(file, number, line))
        except ValueError as error:
            raise file.wrong(number, f"this is not JSON ({error}). Write one object per line.") from error
        if not isinstance(value, dict):
            raise file.wrong(number, f"this is no JSON object, but {_shown(value)}. Write one object per line.")
        yield Record(number, value.get(text_column, MISSING), value.get(id_column, MISSING), value)


def _decoded(file: InputFile, number: int, line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise file.wrong(number, f"this is not UTF-8 ({error}). Write the file in UTF-8.") from error


def _parquet(file: InputFile, text_column: str, id_column: str, start: int) -> Iterator[Record]:
    with pq.ParquetFile(file.path) as table:
        names = table.schema_arrow.names
        if text_column not in names:
            yield Record(1, MISSING, MISSING, names)
            return
        groups: list[int] = []
        first = 0
        for group in range(table.metadata.num_row_groups):
            held = table.metadata.row_group(group).num_rows
            if start >= held and not groups:
                start, first = start - held, first + held
            else:
                groups.append(group)
        if not groups:  # older readers take no groups for the last one
            return
        wanted = [name for name in dict.fromkeys((text_column, id_column)) if name in names]
        batches = table.iter_batches(READ_AT_ONCE, row_groups=groups, columns=wanted)
        yield from islice(_of_batches(batches, names, text_column, id_column, first), start, None)


def _csv(file: InputFile, text_column: str, id_column: str, start: int) -> Iterator[Record]:
    with io.TextIOWrapper(file.opened(), "utf-8-sig", newline="") as header:
        names = next(csv.reader(header), [])
    if text_column not in names:
        yield Record(1, MISSING, MISSING, names)
        return
    wanted = [name for name in dict.fromkeys((text_column, id_column)) if name in names]
    # Text as it stands: "007" and "NA" are texts too.
    convert = arrow_csv.ConvertOptions(column_types={name: pa.string() for name in wanted}, include_columns=wanted)
    packing = "gzip" if file.path.suffix.lower() == ".gz" else None
    with (
        pa.input_stream(file.path, compression=packing) as stream,
        arrow_csv.open_csv(
            stream,
            read_options=arrow_csv.ReadOptions(block_size=CSV_BLOCK, use_threads=False),
            parse_options=arrow_csv.ParseOptions(newlines_in_values=True),
            convert_options=convert,
        ) as batches,
    ):
        yield from islice(_of_batches(batches, names, text_column, id_column, 0), start, None)


def _of_batches(
    batches: Iterable[pa.RecordBatch], names: Sequence[str], text_column: str, id_column: str, first: int
) -> Iterator[Record]:
    for batch in batches:
        count = batch.num_rows
        texts, ids = (
            batch.column(name).to_pylist() if name in batch.schema.names else [MISSING] * count
            for name in (text_column, id_column)
        )
        for place, (text, given) in enumerate(zip(texts, ids, strict=True), start=first + 1):
            yield Record(place, text, given, names)
        first += count


def _document(file: InputFile, _text: str, _id: str, start: int) -> Iterator[Record]:
    try:
        sections = read_sections(KINDS[file.path.suffix.lower()], Document(file.name, file.path).read())
    except UnreadableFileError as error:
        raise InputError(f"{file.name!r} cannot be read ({error}). Take it out of the folder.") from error
    joined = ("\n".join(filter(None, [*each.trail[-1:], each.text, each.code])) for each in sections)
    for number, text in islice(enumerate(filter(str.strip, joined), start=1), start, None):
        yield Record(number, text, MISSING)


_READERS: dict[str, Callable[[InputFile, str, str, int], Iterator[Record]]] = {
    "parquet": _parquet,
    "lines of JSON": _json_lines,
    "CSV": _csv,
    "lines of text": _text_lines,
    "document": _document,
}
