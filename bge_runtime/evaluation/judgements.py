"""Which documents answer which questions: the data that every question about quality is answered on."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bge_runtime import ConfigurationError, InputError
from bge_runtime.evaluation.sources import WEAK, Passage, Source, read_documents

__all__ = ["Judgements", "Passage"]


@dataclass(frozen=True, kw_only=True)
class Judgements:
    """Questions, and what answers them.

    Attributes:
        name: What it is called in reports.
        queries: Text of each question that is judged, by its id.
        grades: For each of them: grade by document id. 1 and more is relevant, 0 and less is not.
        passages: For each of them: the places that answer it, in place of whole documents.
        documents: Text of each document by its id; empty where the subject brings its own.
        unanswerable: Text of questions that no document answers, by id.
        is_weak: Whether the questions were made without a reader.
        notes: What was left out or is odd about the data, in words.
    """

    name: str
    queries: Mapping[str, str]
    grades: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    passages: Mapping[str, tuple[Passage, ...]] = field(default_factory=dict)
    documents: Mapping[str, str] = field(default_factory=dict)
    unanswerable: Mapping[str, str] = field(default_factory=dict)
    is_weak: bool = False
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check that there is something to judge by.

        Raises:
            InputError: No question has an answer, or a question is empty.
        """
        if not self.queries:
            which = "all of its questions are unanswerable" if self.unanswerable else "it has no judged question"
            raise InputError(
                f"{self.name!r} cannot be evaluated: {which}. Add questions with documents that answer them."
            )
        for name, text in {**self.queries, **self.unanswerable}.items():
            if not isinstance(text, str) or not text.strip():
                raise InputError(f"Question {name!r} of {self.name!r} is {text!r}. Write its text, or take it out.")

    @classmethod
    def read(
        cls,
        path: str | os.PathLike[str],
        *,
        split: str = "test",
        corpus: str | os.PathLike[str] | None = None,
        qrels: str | os.PathLike[str] | None = None,
    ) -> Judgements:
        """Read a collection.

        Args:
            path: A folder or archive (`.tar.gz`, `.zip`) in the BEIR layout; TREC's tab-separated queries, beside
                `qrels`; the JSON of LlamaIndex's `EmbeddingQAFinetuneDataset`; or JSON lines `{"query": ...,
                "positives": [...]}`. There a positive is a document id; `{"document": id, "start": 0, "end": 90}`,
                counted in characters; or `{"quote": "words of the passage"}`; each may have a `grade`. No positives
                make an unanswerable question; `id` names it, else its line.
            split: Which of BEIR's judgements: `qrels/{split}.tsv`.
            corpus: The documents, where `path` has none: JSON lines with `_id` (or `id`), `title`, `text`, a folder or
                archive in the BEIR layout, or a folder of documents as `bge search` reads it. Subjects that bring
                their own documents need none.
            qrels: TREC's judgements: question, ignored, document, grade.

        Raises:
            ConfigurationError: A file is missing, or of no format named above.
            InputError: A line cannot be read; the message names it.
        """
        source = Source.open(path, split=split, qrels=qrels)
        documents = source.documents if corpus is None else read_documents(Path(corpus))
        return _checked(source.name, source.queries, source.judged(documents), documents, source.notes)

    @property
    def digest(self) -> str:
        """Digest of questions, judgements and documents; what was found out on other data has another."""
        told = hashlib.sha256()
        for part in (self.queries, self.unanswerable, self.grades, self.documents):
            told.update(json.dumps(dict(part), sort_keys=True, default=dict).encode())
        places = {query: [(each.name, each.grade) for each in found] for query, found in self.passages.items()}
        told.update(json.dumps(places, sort_keys=True).encode())
        return told.hexdigest()[:32]

    def relevant(self, query: str) -> dict[str, int]:
        """Return the grade of each document, and of each passage by its name, that is judged for a question."""
        return {**self.grades.get(query, {}), **{each.name: each.grade for each in self.passages.get(query, ())}}

    def part(self, queries: list[str], name: str) -> Judgements:
        """Return the same judgements with some of the questions."""
        kept = set(queries)
        return replace(
            self,
            name=name,
            queries={query: self.queries[query] for query in queries},
            grades={query: grades for query, grades in self.grades.items() if query in kept},
            passages={query: found for query, found in self.passages.items() if query in kept},
        )

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write questions and judgements as JSON lines, which `read` takes back; documents are not written.

        Raises:
            ConfigurationError: The file cannot be written.
        """
        lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in self._lines())
        try:
            Path(path).write_text(lines, encoding="utf-8")
        except OSError as error:
            raise ConfigurationError(
                f"{os.fspath(path)!r} cannot be written ({error.strerror or error}). Name another file."
            ) from error

    def _lines(self) -> Iterator[dict[str, Any]]:
        for query, text in {**self.queries, **self.unanswerable}.items():
            positives: list[Any] = [
                {"document": document, "grade": grade} for document, grade in self.grades.get(query, {}).items()
            ]
            for each in self.passages.get(query, ()):
                place = {"document": each.document, "start": each.start, "end": each.end, "quote": each.quote or None}
                positives.append(
                    {key: value for key, value in place.items() if value is not None} | {"grade": each.grade}
                )
            weak = {"weak": True} if self.is_weak else {}
            yield {"id": query, "query": text, "positives": positives, **weak}


def _checked(
    name: str,
    queries: Mapping[str, str],
    judged: Mapping[str, list[Passage]],
    documents: Mapping[str, str],
    notes: tuple[str, ...],
) -> Judgements:
    """Sort out what cannot be judged, and count it."""
    found = Counter[str]()
    grades: dict[str, dict[str, int]] = {}
    passages: dict[str, tuple[Passage, ...]] = {}
    unanswerable = {}
    for query, positives in judged.items():
        if query not in queries:
            found["judged questions without a text, left out"] += 1
            continue
        if not any(each.grade > 0 for each in positives):
            unanswerable[query] = queries[query]
            continue
        grades[query] = {each.name: each.grade for each in positives if each.is_document}
        if places := tuple(each for each in positives if not each.is_document):
            passages[query] = places
        missing = {
            each.document
            for each in positives
            if documents and each.document is not None and each.document not in documents
        }
        found["judged documents that are not in the corpus, which nothing can find"] += len(missing)
    found["questions without judgements, left out"] = len(queries.keys() - judged.keys())
    found["questions that no document answers"] = len(unanswerable)
    if len(documents) == 1:
        found["document in the corpus, so that every ranking is right"] = 1
    return Judgements(
        name=name,
        queries={query: text for query, text in queries.items() if query in grades},
        grades={query: each for query, each in grades.items() if each},
        passages=passages,
        documents=documents,
        unanswerable=unanswerable,
        is_weak=WEAK in notes,
        notes=(*notes, *(f"{count} {what}" for what, count in found.items() if count)),
    )
