"""What is measured, and the seeded texts for it. Standard library only: every peer's environment reads this."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["CALLERS", "DOCUMENTS_PER_QUERY", "WORKLOADS", "Workload", "pairs", "queries", "stream", "texts", "tokens"]

# Each word is one token of the BERT vocabulary, so that a text's length in tokens is known without a tokenizer.
VOCABULARY = tuple(
    (
        "the heart moves blood through every part of a body while lungs take oxygen from air and rivers carry water "
        "down to seas where light falls on stone and glass so that people who walk there see what old maps had shown"
    ).split()
)
LONGEST = 512
CALLERS = 64
DOCUMENTS_PER_QUERY = 100
WARM_UP_DOCUMENTS = 8
REPEATED = 0.3


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Something to measure.

    Attributes:
        title: Heading of its column or row in the tables.
        kind: Which model it needs, or `process` for what is measured from outside.
        full: Its size as a whole: texts, queries of a reranking, or single queries.
        usual: Its size per round unless a scale is given; chosen so that everything should take about 25 minutes.
        words: Shortest and longest text, in words.
        rounds: Most rounds; `None` sets no limit.
        minutes: Guess of what it takes at its usual size, all contestants and rounds, on two cores.
    """

    title: str
    kind: Literal["embed", "score", "process"]
    full: int
    usual: int
    words: tuple[int, int] = (4, 12)
    rounds: int | None = None
    minutes: float


PASSAGE = (58, 238)
WORKLOADS = {
    "ingest": Workload(title="passages of ~150 tokens", kind="embed", full=2000, usual=128, minutes=3.5, words=PASSAGE),
    "short": Workload(title="strings of ~13 tokens", kind="embed", full=10_000, usual=640, minutes=2.2, words=(5, 17)),
    "long": Workload(title="texts of 512 tokens", kind="embed", full=500, usual=32, minutes=2.2, words=(600, 700)),
    "duplicates": Workload(
        title="passages, 30% repeated", kind="embed", full=2000, usual=128, minutes=1.2, words=PASSAGE
    ),
    "concurrent": Workload(title="64 queries at once", kind="embed", full=640, usual=256, minutes=1.6),
    "lone": Workload(title="one query", kind="embed", full=200, usual=50, minutes=1),
    "busy": Workload(
        title="a query every 50 ms during ingestion", kind="embed", full=400, usual=100, minutes=2, rounds=2
    ),
    "rerank": Workload(title="queries × 100 documents", kind="score", full=20, usual=1, minutes=6.5, words=PASSAGE),
    "start": Workload(title="process start to first embedding", kind="process", full=1, usual=1, minutes=2),
    "import": Workload(title="import", kind="process", full=1, usual=1, minutes=1.2),
    "growth": Workload(
        title="short texts streamed", kind="embed", full=100_000, usual=100_000, minutes=4, words=(5, 17), rounds=1
    ),
}


def texts(name: str, count: int, turn: int = 0) -> list[str]:
    """Return the texts of one round; each round has others, the same for all contestants."""
    dice = _dice(name, turn)
    if name != "duplicates":
        return [_text(dice, WORKLOADS[name].words) for _ in range(count)]
    distinct = [_text(dice, WORKLOADS[name].words) for _ in range(max(1, round(count * (1 - REPEATED))))]
    mixed = distinct + dice.choices(distinct, k=count - len(distinct))
    dice.shuffle(mixed)
    return mixed


def queries(name: str, count: int, turn: int = 0) -> list[str]:
    """Return distinct short queries."""
    dice = _dice(f"{name} queries", turn)
    return [f"{_text(dice, (4, 11))} {_numeral(at)}" for at in range(count)]


def pairs(count: int, turn: int = 0) -> list[tuple[str, list[str]]]:
    """Return queries, each with its documents; the warm-up's round, -1, has few of them."""
    each = DOCUMENTS_PER_QUERY if turn >= 0 else WARM_UP_DOCUMENTS
    documents = texts("rerank", count * each, turn)
    asked = queries("rerank", count, turn)
    return [(query, documents[at * each : (at + 1) * each]) for at, query in enumerate(asked)]


def stream(count: int) -> Iterator[str]:
    """Yield short texts one at a time, so that the corpus itself takes no memory."""
    dice = _dice("growth", 0)
    return (_text(dice, WORKLOADS["growth"].words) for _ in range(count))


def tokens(items: Sequence[str], beside: str | None = None) -> list[int]:
    """Return the length in tokens of each text, or of its pair with a query, special tokens included, cut to 512."""
    more = 2 if beside is None else 3 + len(beside.split())
    return [min(len(item.split()) + more, LONGEST) for item in items]


def _dice(name: str, turn: int) -> random.Random:
    return random.Random(f"{name} {turn}")


def _text(dice: random.Random, words: tuple[int, int]) -> str:
    return " ".join(dice.choices(VOCABULARY, k=dice.randint(*words)))


def _numeral(number: int) -> str:
    """Return a number as words, which keeps queries distinct."""
    base = len(VOCABULARY)
    return f"{VOCABULARY[number // base % base]} {VOCABULARY[number % base]}"
