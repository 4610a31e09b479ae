"""What a search returned, told apart by what the judgements speak of: documents, or places in them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from bge_runtime import InputError
from bge_runtime.evaluation.judgements import Judgements
from bge_runtime.evaluation.sources import Passage

__all__ = ["Hit", "Run", "judged"]

Run = dict[str, list[tuple[str, float]]]

_SPACE = re.compile(r"\s+")
# Of a passage that a chunk ends or begins inside: the share of it that answers the question all the same.
ENOUGH = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Hit:
    """Something that a search returned.

    Attributes:
        ids: What may be its id or that of the document it is from, the likeliest first.
        score: Higher is better.
        text: What it says; empty where that is not known.
    """

    ids: tuple[str, ...]
    score: float
    text: str = ""


def judged(hits: Mapping[str, Sequence[Hit]], data: Judgements, label: str) -> tuple[Run, list[str]]:
    """Return the ids that were found for each question, best first, in the words of the judgements.

    A document counts where its first chunk stands. A chunk that covers places which no better one covers stands for
    them; for another one, nothing is judged. Of a question that is a document itself (ArguAna), that one is left out.

    Args:
        hits: By question, best first.
        data: The judgements.
        label: What searched, for messages.

    Returns:
        The run, and remarks about it.

    Raises:
        InputError: Nothing that was found is anything that the judgements know.
    """
    known = set(data.documents) | {document for grades in data.grades.values() for document in grades}
    run: Run = {}
    itself = 0
    for query in data.queries:
        found = list(_found(hits.get(query, ()), data.passages.get(query, ()), known))
        if query in known and _is_itself(query, data):
            itself += any(name == query for name, _ in found)
            found = [each for each in found if each[0] != query]
        run[query] = found
    _check(run, hits, data, label)
    few = sum(not each for each in run.values())
    notes = [f"{itself} questions found themselves as a document, which was left out"] if itself else []
    return run, [*notes, f"{few} questions for which nothing was found"] if few else notes


def _found(hits: Sequence[Hit], passages: Sequence[Passage], known: set[str]) -> Iterator[tuple[str, float]]:
    seen: set[str] = set()
    words = {each.name: _plain(each.quote) for each in passages if each.quote}
    for place, hit in enumerate(hits):
        document = next((name for name in hit.ids if name in known), None)
        text = _plain(hit.text) if words else ""
        covered = [name for name, quote in words.items() if name not in seen and covers(text, quote)]
        name = document or (hit.ids[0] if hit.ids else f"result {place}")
        if not covered and name in seen:  # another chunk of it
            if words:  # which takes a place all the same, where places are judged
                yield f"{name} ({place})", hit.score
            continue
        for each in covered or [name]:
            seen.add(each)
            yield each, hit.score


def covers(text: str, quote: str) -> bool:
    """Return whether a chunk holds a passage, is part of it, or begins or ends in it with half of it at least.

    Both without spaces, so that no line break or markup between words tells them apart.
    """
    if not text or not quote:
        return False
    if quote in text or text in quote:
        return True
    least = max(int(len(quote) * ENOUGH), 1)
    head, tail = quote[:least], quote[-least:]
    return _ends_with_start(text, quote, head) or _starts_with_end(text, quote, tail)


def _ends_with_start(text: str, quote: str, head: str) -> bool:
    at = text.rfind(head)
    return at >= 0 and quote.startswith(text[at:])


def _starts_with_end(text: str, quote: str, tail: str) -> bool:
    at = text.find(tail)
    return at >= 0 and quote.endswith(text[: at + len(tail)])


def _plain(text: str) -> str:
    return _SPACE.sub("", text).casefold()


def _is_itself(query: str, data: Judgements) -> bool:
    """Whether the question is the document of its id, and not another thing that happens to have the same id."""
    question = _plain(data.queries[query])
    return bool(question) and question in _plain(data.documents.get(query, ""))


def _check(run: Run, hits: Mapping[str, Sequence[Hit]], data: Judgements, label: str) -> None:
    names = {name for query in run for name in data.relevant(query)}
    found = {name for each in run.values() for name, _ in each}
    if data.documents or not found or names & found or any(data.passages.values()):
        return
    some = next(hit for each in hits.values() for hit in each)
    raise InputError(
        f"{label} returned nothing that is judged: {some.ids!r} for example, where the judgements have "
        f"{sorted(names)[:3]!r}. Store the documents' ids in the index as ids, or in the metadata, and name their key "
        "as id_key=."
    )
