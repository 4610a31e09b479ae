"""The formats in which questions and judgements come."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from bge_runtime import ConfigurationError, InputError
from bge_runtime.search.documents import find_files, read_sections
from bge_runtime.search.sections import Section

__all__ = ["WEAK", "Passage", "Source", "read_documents", "read_folder"]

FORMATS = (
    "Pass a folder or archive with corpus.jsonl, queries.jsonl and qrels/, tab-separated queries with qrels=, the JSON "
    "of LlamaIndex's question data set, or JSON lines with query and positives."
)
CORPORA = "Name JSON lines with _id and text, a BEIR folder or archive, or a folder of documents."
ARCHIVES = (".tar.gz", ".tgz", ".tar", ".zip")
CORPUS = "corpus.jsonl"
WEAK = "the questions were made from the documents without a reader: they are easier than what users ask"
# Words that begin the first line of judgements, where it names its columns.
QRELS_TITLES = ("query-id", "query_id", "qid")


@dataclass(frozen=True, kw_only=True, slots=True)
class Passage:
    """What answers a question: a document, or a place in one, whatever the documents are cut into.

    Attributes:
        document: Id of the document; `None` where only the words are known.
        start: First character of the place; `None` where it is the whole document, or only the words are known.
        end: Where the place ends, exclusive.
        quote: Its words.
        grade: How relevant it is; 1 and more is relevant.
    """

    document: str | None = None
    start: int | None = None
    end: int | None = None
    quote: str = ""
    grade: int = 1

    @property
    def is_document(self) -> bool:
        """Whether it is a whole document."""
        return not self.quote and self.end is None

    @property
    def name(self) -> str:
        """What stands for it in a run: the same for every size of chunks."""
        if self.is_document:
            return str(self.document)
        told = (
            f"{self.start}-{self.end}" if self.end is not None else hashlib.sha256(self.quote.encode()).hexdigest()[:12]
        )
        return f"{self.document or 'passage'}:{told}"


@dataclass(frozen=True, kw_only=True)
class Source:
    """What was read, line by line, and not yet checked against each other.

    Attributes:
        name: Of the file or folder.
        queries: Text by id.
        positives: What each question was judged with, by its id.
        documents: Text by id; empty where the format has none.
        notes: What is odd about it.
    """

    name: str
    queries: dict[str, str]
    positives: dict[str, list[Passage]]
    documents: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @classmethod
    def open(cls, path: str | PathLike[str], *, split: str, qrels: str | PathLike[str] | None) -> Source:
        """Recognise the format and read it; see `Judgements.read`."""
        place = Path(fspath(path)).expanduser()
        if not place.exists():
            raise ConfigurationError(f"{str(place)!r} does not exist. {FORMATS}")
        if qrels is not None:
            return _trec(place, Path(fspath(qrels)).expanduser())
        if place.is_dir() or place.name.endswith(ARCHIVES):
            return _beir(place, split)
        if place.suffix == ".jsonl":
            return _lines(place)
        if place.suffix == ".json":
            return _llamaindex(place)
        raise ConfigurationError(f"{str(place)!r} is of no format that is known. {FORMATS}")

    def judged(self, documents: Mapping[str, str]) -> dict[str, list[Passage]]:
        """Return what answers each question, with the words of places that are given by their characters.

        Raises:
            InputError: A place lies outside its document.
        """
        return {
            query: [_quoted(each, query, documents) for each in positives]
            for query, positives in self.positives.items()
        }


def read_documents(path: Path) -> dict[str, str]:
    """Return text by id: of JSON lines or a BEIR collection, title and text joined as MTEB does, or of a folder.

    Raises:
        ConfigurationError: There is nothing, or no document in it.
        InputError: A line cannot be read.
    """
    if not path.exists():
        raise ConfigurationError(f"corpus={str(path)!r} does not exist. {CORPORA}")
    if path.suffix == ".jsonl" and path.is_file():
        with path.open(encoding="utf-8") as stream:
            documents = _documents(stream, path.name)
    elif path.name.endswith(ARCHIVES) or (path / CORPUS).is_file():
        documents = _documents(_Files(path).lines(CORPUS), f"{path.name}/{CORPUS}")
    else:
        documents = {name: text for name, text, _ in read_folder(path)}
    if not documents:
        raise ConfigurationError(f"{str(path)!r} holds no text. {CORPORA}")
    return documents


def read_folder(folder: Path) -> Iterator[tuple[str, str, list[Section]]]:
    """Yield the documents of a folder, as `bge search` reads them: name, text, and sections; those without text not."""
    for file in find_files(folder):
        sections = read_sections(file.kind, file.read())
        text = "\n\n".join("\n".join(filter(None, [*each.trail[-1:], each.text, each.code])) for each in sections)
        if text.strip():
            yield file.name, text, sections


def _quoted(passage: Passage, query: str, documents: Mapping[str, str]) -> Passage:
    if passage.end is None or passage.quote or passage.document not in documents:
        return passage
    text = documents[str(passage.document)]
    if passage.end > len(text):
        raise InputError(
            f"Question {query!r} names characters {passage.start} to {passage.end} of {passage.document!r}, which has "
            f"{len(text)}. Count in characters of the document's text, title included."
        )
    return Passage(
        document=passage.document,
        start=passage.start,
        end=passage.end,
        quote=text[passage.start : passage.end],
        grade=passage.grade,
    )


def _beir(place: Path, split: str) -> Source:
    files = _Files(place)
    judged = f"qrels/{split}.tsv"
    queries = _texts(files.lines("queries.jsonl"), f"{place.name}/queries.jsonl")
    documents = _documents(files.lines(CORPUS), f"{place.name}/{CORPUS}")
    if not files.has(judged):
        there = ", ".join(sorted(repr(Path(name).stem) for name in files.names if "qrels/" in name)) or "none"
        raise ConfigurationError(f"{str(place)!r} has no {judged}. Name one of its splits: {there}.")
    name = place.name.removesuffix(".gz").removesuffix(".tgz").removesuffix(".tar").removesuffix(".zip")
    positives = _qrels(files.lines(judged), f"{place.name}/{judged}")
    return Source(name=name, queries=queries, positives=positives, documents=documents)


def _trec(queries: Path, qrels: Path) -> Source:
    for path in (queries, qrels):
        if not path.is_file():
            raise ConfigurationError(f"{str(path)!r} is not a file. Pass tab-separated queries, and qrels of TREC.")
    texts: dict[str, str] = {}
    with queries.open(encoding="utf-8") as stream:
        for where, line in _numbered(stream, queries.name):
            name, tab, text = line.partition("\t")
            if not tab:
                raise InputError(f"{where} is {line!r}. Write an id, a tab and the question.")
            _add(texts, name.strip(), text.strip(), where)
    with qrels.open(encoding="utf-8") as stream:
        return Source(name=queries.stem, queries=texts, positives=_qrels(stream, qrels.name))


def _llamaindex(path: Path) -> Source:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        queries, relevant, corpus = value["queries"], value["relevant_docs"], value.get("corpus") or {}
        pairs = [dict(each) for each in (queries, relevant, corpus)]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(
            f"{str(path)!r} is not what EmbeddingQAFinetuneDataset.save_json writes ({type(error).__name__}: {error}). "
            "It has queries, relevant_docs and corpus. JSON lines end in .jsonl."
        ) from error
    return Source(
        name=path.stem,
        queries=pairs[0],
        positives={query: [Passage(document=str(each)) for each in found] for query, found in pairs[1].items()},
        documents=pairs[2],
    )


def _lines(path: Path) -> Source:
    queries: dict[str, str] = {}
    positives: dict[str, list[Passage]] = {}
    weak = False
    with path.open(encoding="utf-8") as stream:
        for where, row in _objects(stream, path.name):
            text = row.get("query")
            if not isinstance(text, str) or not text.strip():
                raise InputError(f"{where} has query={text!r}. Write the question's text.")
            name = str(row.get("id", len(queries) + 1))
            _add(queries, name, text, where)
            found = row.get("positives")
            if not isinstance(found, list):
                raise InputError(f"{where} has positives={found!r}. Write a list; [] says that nothing answers it.")
            positives[name] = [_passage(each, where) for each in found]
            weak = weak or bool(row.get("weak"))
    return Source(name=path.stem, queries=queries, positives=positives, notes=(WEAK,) if weak else ())


def _passage(given: Any, where: str) -> Passage:
    """Return a positive of JSON lines: a document id, a place, or a quote."""
    if isinstance(given, str | int) and not isinstance(given, bool) and str(given):
        return Passage(document=str(given))
    if isinstance(given, dict):
        document, quote = given.get("document", given.get("id")), given.get("quote", "")
        grade, start, end = given.get("grade", 1), given.get("start"), given.get("end")
        # A boolean is a number to Python.
        counted = type(start) is int and type(end) is int and 0 <= start < end and document is not None
        if (start is None and end is None) or counted:
            told = document is not None or (isinstance(quote, str) and bool(quote.strip()))
            if told and isinstance(quote, str) and isinstance(grade, int):
                name = None if document is None else str(document)
                return Passage(document=name, start=start, end=end, quote=quote.strip(), grade=grade)
    raise InputError(
        f"{where} has the positive {given!r}. Write a document id, {{'document': id, 'start': 0, 'end': 90}}, or "
        "{'quote': 'words of the passage'}; each may have a whole number as 'grade'."
    )


def _qrels(lines: Iterable[str], name: str) -> dict[str, list[Passage]]:
    """Return judgements of three columns, as BEIR has them, or of TREC's four."""
    grades: dict[str, dict[str, int]] = {}
    for number, (where, line) in enumerate(_numbered(lines, name)):
        parts = line.split("\t") if "\t" in line else line.split()
        if number == 0 and parts[0].lower() in QRELS_TITLES:
            continue
        try:
            query, document, grade = parts[0], parts[-2], int(parts[-1])
        except (IndexError, ValueError) as error:
            raise InputError(f"{where} is {line!r}. Write question, document and a whole number as grade.") from error
        if len(parts) not in (3, 4):
            raise InputError(f"{where} has {len(parts)} columns. Write question, document, grade; or TREC's four.")
        known = grades.setdefault(query, {}).setdefault(document, grade)
        if known != grade:
            raise InputError(f"{where} judges {document!r} for {query!r} with {grade}, a line above it with {known}.")
    return {
        query: [Passage(document=document, grade=grade) for document, grade in found.items()]
        for query, found in grades.items()
    }


def _documents(lines: Iterable[str], name: str) -> dict[str, str]:
    documents: dict[str, str] = {}
    for where, row in _objects(lines, name):
        title, text = row.get("title") or "", row.get("text")
        if not isinstance(text, str) or not isinstance(title, str):
            raise InputError(f"{where} has text={text!r}. Write the document's text, and maybe a title.")
        # As MTEB joins them.
        _add(documents, _id(row, where), f"{title} {text}".strip() if title else text.strip(), where)
    return documents


def _texts(lines: Iterable[str], name: str) -> dict[str, str]:
    queries: dict[str, str] = {}
    for where, row in _objects(lines, name):
        text = row.get("text")
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{where} has text={text!r}. Write the question's text.")
        _add(queries, _id(row, where), text, where)
    return queries


def _id(row: Mapping[str, Any], where: str) -> str:
    name = row.get("_id", row.get("id"))
    if not isinstance(name, str | int) or isinstance(name, bool) or name == "":
        raise InputError(f"{where} has _id={name!r}. Give each line an id of its own.")
    return str(name)


def _add(found: dict[str, str], name: str, text: str, where: str) -> None:
    if name in found:
        raise InputError(f"{where} has the id {name!r} a second time. Ids must differ.")
    found[name] = text


def _objects(lines: Iterable[str], name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for where, line in _numbered(lines, name):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{where} is not JSON ({error}): {line[:80]!r}") from error
        if not isinstance(row, dict):
            raise InputError(f"{where} is {type(row).__name__}, not an object: {line[:80]!r}")
        yield where, row


def _numbered(lines: Iterable[str], name: str) -> Iterator[tuple[str, str]]:
    """Yield the lines that hold something, each with its place for messages."""
    try:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield f"{name} line {number}", line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8 ({error}). Save it as UTF-8.") from error


class _Files:
    """The files of a folder or of an archive."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._open: Callable[[str], Iterable[str]]
        try:
            self.names, self._open = self._opened()
        except (tarfile.TarError, zipfile.BadZipFile, OSError) as error:
            raise ConfigurationError(f"{str(place)!r} cannot be read as an archive ({error}). {FORMATS}") from error

    def has(self, ending: str) -> bool:
        return self._find(ending) is not None

    def lines(self, ending: str) -> Iterable[str]:
        name = self._find(ending)
        if name is None:
            raise ConfigurationError(f"{str(self._place)!r} has no {ending}. {FORMATS}")
        return self._open(name)

    def _find(self, ending: str) -> str | None:
        return next((name for name in self.names if f"/{name}".endswith(f"/{ending}")), None)

    def _opened(self) -> tuple[Sequence[str], Callable[[str], Iterable[str]]]:
        place = self._place
        if place.is_dir():
            return [each.relative_to(place).as_posix() for each in sorted(place.rglob("*")) if each.is_file()], (
                lambda name: _text_of((place / name).read_bytes())
            )
        if place.suffix == ".zip":
            with zipfile.ZipFile(place) as archive:
                return archive.namelist(), self._from_zip
        with tarfile.open(place) as tar:
            return [each.name for each in tar.getmembers() if each.isfile()], self._from_tar

    def _from_zip(self, name: str) -> Iterable[str]:
        with zipfile.ZipFile(self._place) as archive:
            return _text_of(archive.read(name))

    def _from_tar(self, name: str) -> Iterable[str]:
        with tarfile.open(self._place) as archive:
            member = archive.extractfile(name)
            assert member is not None, name
            return _text_of(member.read())


def _text_of(content: bytes) -> Iterable[str]:
    return io.TextIOWrapper(io.BytesIO(content), encoding="utf-8", newline="\n")
