"""What training learns from: questions with texts that answer them, and texts that do not."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bge_runtime import ConfigurationError, InputError, check_text
from bge_runtime.evaluation.judgements import Judgements
from bge_runtime.evaluation.sources import read_documents

__all__ = ["Example", "Problem", "TrainingData", "own_rows", "read_examples"]

# What different tools call the same column, ours (FlagEmbedding's) first.
QUERIES = ("query", "anchor", "question")
POSITIVES = ("pos", "positive", "context", "answer")
NEGATIVES = ("neg", "negative")
# Of a score that a float can hold.
LARGEST = 1e300
COLUMNS = (
    'Write {"query": "...", "pos": ["..."], "neg": ["..."]}; pos_scores, neg_scores, prompt and type may stand beside '
    "them, as FlagEmbedding has it."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """A question and its texts.

    Attributes:
        query: The question, without an instruction.
        positives: Texts that answer it.
        negatives: Texts that do not.
        positive_scores: A teacher's score of each positive; empty without.
        negative_scores: The same of each negative.
        prompt: An instruction of its own; `None` takes the model's.
        kind: FlagEmbedding's `type`, which is kept and changes nothing.
        where: File and line that it comes from.
    """

    query: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...] = ()
    positive_scores: tuple[float, ...] = ()
    negative_scores: tuple[float, ...] = ()
    prompt: str | None = None
    kind: str | None = None
    where: str = ""

    @property
    def has_scores(self) -> bool:
        """Whether a teacher has scored all of its texts."""
        return bool(self.positive_scores) and len(self.negative_scores) == len(self.negatives)


@dataclass(frozen=True, slots=True)
class Problem:
    """A line that cannot be used, and why."""

    where: str
    message: str


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Examples, and the documents that their negatives and their development set are searched in.

    Attributes:
        name: What it is called in reports.
        examples: In the order of the file.
        documents: Text by id: the corpus, or else every text of the examples.
        notes: What was left out, in words.
    """

    name: str
    examples: tuple[Example, ...]
    documents: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check that there is something to learn from; without documents, take the examples' texts.

        Raises:
            InputError: There are no examples, or one has no positive or an empty text.
        """
        if not self.examples:
            raise InputError(f"{self.name!r} has no example to learn from. {COLUMNS}")
        for number, each in enumerate(self.examples, start=1):
            _check_texts(each, each.where or f"example {number} of {self.name!r}")
        if not self.documents:
            texts = dict.fromkeys(text for each in self.examples for text in (*each.positives, *each.negatives))
            object.__setattr__(self, "documents", {f"d{at}": text for at, text in enumerate(texts, start=1)})

    @classmethod
    def read(
        cls,
        path: str | os.PathLike[str],
        *,
        split: str = "train",
        corpus: str | os.PathLike[str] | None = None,
        qrels: str | os.PathLike[str] | None = None,
    ) -> TrainingData:
        """Read examples.

        Args:
            path: JSON lines as FlagEmbedding has them (`query`, `pos`, `neg`, `pos_scores`, `neg_scores`, `prompt`,
                `type`), the columns of sentence-transformers (`anchor`, `positive`, `negative`) or of LangChain's
                question generators (`question`, `answer`), also as one JSON list; or anything that `Judgements.read`
                takes: BEIR, TREC, LlamaIndex's question data sets, questions of `bge eval`.
            split: Which of BEIR's judgements.
            corpus: Documents to search for negatives: JSON lines with `_id` and `text`, or a folder or archive in
                the BEIR layout. Judgements need it where they have no documents of their own.
            qrels: TREC's judgements.

        Raises:
            ConfigurationError: A file is missing, or of no known format.
            InputError: A line cannot be read; the message names it.
        """
        place = Path(path).expanduser()
        if qrels is None and place.is_file() and place.suffix in (".jsonl", ".json") and (rows := own_rows(place)):
            problems: list[Problem] = []
            examples = tuple(read_examples(rows, problems.append))
            if problems:
                more = f" ({len(problems) - 1} more lines have a problem)" if len(problems) > 1 else ""
                raise InputError(f"{problems[0].where}: {problems[0].message}{more}")
            documents = {} if corpus is None else read_documents(Path(corpus))
            return cls(name=place.stem, examples=examples, documents=documents)
        return cls.of(Judgements.read(place, split=split, corpus=corpus, qrels=qrels))

    @classmethod
    def of(cls, judged: Judgements) -> TrainingData:
        """Return examples of judged questions: what is relevant is positive, what is judged and not is negative.

        Raises:
            InputError: None of the judged documents has a text.
        """
        examples, missing = [], 0
        for query, text in judged.queries.items():
            grades = judged.grades.get(query, {})
            found = sorted((name for name in grades if grades[name] > 0), key=lambda name: -grades[name])
            texts = [judged.documents[name] for name in found if judged.documents.get(name, "").strip()]
            texts += [each.quote for each in judged.passages.get(query, ()) if each.quote and each.grade > 0]
            if not texts:
                missing += 1
                continue
            wrong = [judged.documents[name] for name in grades if grades[name] <= 0 and name in judged.documents]
            examples.append(
                Example(
                    query=text,
                    positives=tuple(dict.fromkeys(texts)),
                    negatives=tuple(each for each in dict.fromkeys(wrong) if each.strip() and each not in texts),
                    where=f"{judged.name} question {query}",
                )
            )
        notes = [f"{missing} questions whose documents have no text, left out"] if missing else []
        return cls(
            name=judged.name, examples=tuple(examples), documents=judged.documents, notes=(*judged.notes, *notes)
        )

    @property
    def digest(self) -> str:
        """Digest of all that is learned from."""
        told = hashlib.sha256()
        for each in self.examples:
            told.update(json.dumps(_row(each), ensure_ascii=False).encode())
        return told.hexdigest()[:32]

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the examples as FlagEmbedding's JSON lines; `read` and FlagEmbedding take them.

        Raises:
            ConfigurationError: The file cannot be written.
        """
        lines = "".join(json.dumps(_row(each), ensure_ascii=False) + "\n" for each in self.examples)
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text(lines, encoding="utf-8")
        except OSError as error:
            raise ConfigurationError(
                f"{os.fspath(path)!r} cannot be written ({error.strerror or error}). Name another file."
            ) from error


def _check_texts(example: Example, where: str) -> None:
    """Refuse an example whose texts are none, or that has no positive.

    Raises:
        InputError: Names it.
    """
    if not example.positives:
        raise InputError(f"{where} has no positive. {COLUMNS}")
    for text in (example.query, *example.positives, *example.negatives):
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{where} has the text {text!r}. Write a text that is not empty.")


def read_examples(
    rows: Iterable[tuple[str, Any]], report: Callable[[Problem], None], *, note: Callable[[Problem], None] | None = None
) -> Iterator[Example]:
    """Yield the examples of rows, and report each row that is none.

    Args:
        rows: File and line, and what stands there; a `ValueError` where it is no JSON.
        report: Called with each row that cannot be used.
        note: Called with what can be used all the same, and is odd.
    """
    for where, row in rows:
        try:
            yield _example(row, where, note)
        except InputError as error:
            report(Problem(where, str(error)))


def _example(row: Any, where: str, note: Callable[[Problem], None] | None) -> Example:
    if isinstance(row, ValueError):
        raise InputError(f"is not JSON ({row}). {COLUMNS}")
    if not isinstance(row, dict):
        raise InputError(f"is {type(row).__name__}, not an object. {COLUMNS}")
    query = _text(_first(row, QUERIES), "query")
    positives = _texts(_first(row, POSITIVES), "pos")
    if not positives:
        raise InputError(f"has no positive: pos={_first(row, POSITIVES)!r}. {COLUMNS}")
    numbered = [name for name in row if re.fullmatch(r"negative_\d+", name)]
    more = [row[name] for name in sorted(numbered, key=lambda name: int(name.rpartition("_")[2]))]
    negatives = (*_texts(_first(row, NEGATIVES), "neg"), *(_text(each, "neg") for each in more))
    scores = {name: _scores(row, name, texts) for name, texts in (("pos_scores", positives), ("neg_scores", negatives))}
    if bool(scores["pos_scores"]) != bool(scores["neg_scores"]) and negatives:
        raise InputError("has only one of pos_scores and neg_scores. Write both, or none.")
    kept = [at for at, text in enumerate(negatives) if text not in positives]
    if negatives and not kept:
        raise InputError(f"has negatives that are all among its positives: neg={list(negatives)!r:.120}.")
    if note is not None and len(kept) < len(negatives):
        note(Problem(where, f"{len(negatives) - len(kept)} of its negatives are among its positives, left out"))
    for name in ("prompt", "type"):
        if row.get(name) is not None and not isinstance(row[name], str):
            raise InputError(f"has {name}={row[name]!r}. Write a text, or leave it out.")
    return Example(
        query=query,
        positives=positives,
        negatives=tuple(negatives[at] for at in kept),
        positive_scores=scores["pos_scores"],
        negative_scores=tuple(scores["neg_scores"][at] for at in kept) if scores["neg_scores"] else (),
        prompt=row.get("prompt") or None,
        kind=row.get("type"),
        where=where,
    )


def _first(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((row[name] for name in names if name in row), None)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"has {name}={value!r}. Write a text that is not empty.")
    return check_text(value)


def _texts(value: Any, name: str) -> tuple[str, ...]:
    if value is None:
        return ()
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, list):
        raise InputError(f"has {name}={value!r}. Write a list of texts.")
    return tuple(_text(each, name) for each in given)


def _scores(row: Mapping[str, Any], name: str, texts: Sequence[str]) -> tuple[float, ...]:
    given = row.get(name)
    if given is None or given == []:
        return ()
    are_numbers = isinstance(given, list) and all(
        isinstance(each, int | float) and not isinstance(each, bool) and abs(each) < LARGEST for each in given
    )
    if not are_numbers or len(given) != len(texts):
        raise InputError(f"has {name}={given!r} for {len(texts)} texts. Write one finite number for each.")
    return tuple(map(float, given))


def own_rows(path: Path) -> list[tuple[str, Any]]:
    """Return the rows of a file whose first one has a query and positives as texts; none of any other file."""
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path.name} is not UTF-8 ({error}). Save it as UTF-8.") from error
    except OSError as error:
        raise ConfigurationError(f"{str(path)!r} cannot be read ({error.strerror or error}).") from error
    if path.suffix == ".json":
        try:
            values = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path.name} is not JSON ({error}). {COLUMNS}") from error
        if not isinstance(values, list):
            return []
        rows = [(f"{path.name} item {at}", each) for at, each in enumerate(values, start=1)]
        return rows if _is_own(rows) else []
    rows = []
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            rows.append((f"{path.name} line {number}", _parsed(line)))
    return rows if _is_own(rows) else []


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except RecursionError:
        return ValueError("nested too deeply")
    except ValueError as error:
        return error


def _is_own(rows: Sequence[tuple[str, Any]]) -> bool:
    """Whether some row is an example, and none a judged question, which has `positives`; or none can be read."""
    found = [row for _, row in rows if isinstance(row, dict)]
    if not found:
        return bool(rows)
    return not any("positives" in row for row in found) and any(
        name in row for row in found for name in (*POSITIVES, *NEGATIVES)
    )


def _row(example: Example) -> dict[str, Any]:
    row: dict[str, Any] = {"query": example.query, "pos": list(example.positives), "neg": list(example.negatives)}
    if example.positive_scores:
        row |= {"pos_scores": list(example.positive_scores), "neg_scores": list(example.negative_scores)}
    return row | {
        name: value for name, value in (("prompt", example.prompt), ("type", example.kind)) if value is not None
    }
