"""Hard negatives: what an embedder finds for a question although it does not answer it."""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from bge_runtime import ConfigurationError, Embedder, Reranker, VectorCache
from bge_runtime.evaluation.exact import search
from bge_runtime.evaluation.subjects import ModelSubject, score_pairs
from bge_runtime.training.examples import Example, TrainingData

__all__ = ["Mined", "mine"]

Choice = Literal["top", "random"]
SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class Mined:
    """Examples with negatives, and how they came about.

    Attributes:
        data: The examples, each with its own negatives first.
        dropped: By filter, how many candidates it took out.
        candidates: How many there were before the filters.
        short: How many examples have fewer negatives than were asked for.
        shown: Some negatives at random, to look at: query, positive, negative and their scores.
        miner: Identity of the embedder whose negatives these are.
    """

    data: TrainingData
    dropped: dict[str, int]
    candidates: int
    short: int
    shown: list[dict[str, Any]] = field(repr=False)
    miner: str

    def as_dict(self) -> dict[str, Any]:
        """Return all but the examples, for JSON."""
        return {
            "examples": len(self.data.examples),
            "candidates": self.candidates,
            "dropped": self.dropped,
            "negatives": sum(len(each.negatives) for each in self.data.examples),
            "short": self.short,
            "miner": self.miner,
            "shown": self.shown,
        }


def mine(
    data: TrainingData,
    embedder: Embedder,
    *,
    negatives: int = 7,
    ranks: tuple[int, int] = (1, 100),
    absolute_margin: float | None = None,
    relative_margin: float | None = 0.05,
    choose: Choice = "top",
    reranker: Reranker | None = None,
    teacher: Reranker | None = None,
    seed: int = 0,
    show_progress: bool = False,
) -> Mined:
    """Find negatives for each example among the documents of its data.

    What a question's own positives say is never a negative, nor the question itself; of equal documents one counts. An
    embedder with a vector cache makes a run resumable: neither its vectors nor the scores of reranker and teacher are
    computed again, and the choice is the same for the same seed.

    Args:
        data: Examples and documents; negatives that it has already are kept, and count.
        embedder: Searches. Its own mistakes are the hardest negatives for itself.
        negatives: How many each example is to have.
        ranks: First and last rank of the candidates, from 1.
        absolute_margin: A candidate's cosine must be lower than that of the lowest positive by at least this.
        relative_margin: It must be lower than this share less of it: 0.05 keeps those below 95% (arXiv:2407.15831).
        choose: The hardest of the candidates, or any of them at random.
        reranker: Takes out candidates that it scores higher than the lowest positive less 5% of the distance between
            that and the lowest candidate: they may well be answers that nobody has judged.
        teacher: Scores positives and negatives, for distillation.
        seed: Of the choice at random.
        show_progress: Whether to show progress on standard error.

    Raises:
        ConfigurationError: An option has a wrong value.
        BGEError: A model cannot be run.
    """
    _check(negatives, ranks, absolute_margin, relative_margin, choose)
    documents = list(dict.fromkeys(data.documents.values()))
    subject = ModelSubject(embedder, show_progress=show_progress)
    vectors = subject.embed(documents)
    queries = embedder.encode_queries([each.query for each in data.examples], show_progress=False)
    rows, scores = search(queries, vectors, ranks[1])
    place = {text: at for at, text in enumerate(documents)}
    dropped = Counter[str]()
    count = 0
    found: list[list[tuple[str, float]]] = []
    lowest = []
    answers: dict[str, set[str]] = defaultdict(set)
    for example in data.examples:  # a question may stand in several lines
        answers[example.query].update(example.positives)
    for at, example in enumerate(data.examples):
        outside = [text for text in example.positives if text not in place]
        known = [float(queries[at] @ vectors[place[text]]) for text in example.positives if text in place]
        known += [float(queries[at] @ vector) for vector in embedder.encode_documents(outside)] if outside else []
        limit = min(known)
        lowest.append(limit)
        candidates = [
            (documents[row], float(score))
            for row, score in zip(rows[at, ranks[0] - 1 :], scores[at, ranks[0] - 1 :], strict=True)
        ]
        count += len(candidates)
        found.append(
            _filtered(
                candidates,
                {*answers[example.query], *example.negatives, example.query},
                limit,
                absolute_margin,
                relative_margin,
                dropped,
            )
        )
    if reranker is not None:
        found = _judged(reranker, data.examples, found, dropped, embedder.vector_cache, show_progress)
    chosen = [
        _chosen(each, candidates, negatives, choose, seed)
        for each, candidates in zip(data.examples, found, strict=True)
    ]
    examples = [
        replace(each, negatives=(*each.negatives, *texts), positive_scores=(), negative_scores=())
        for each, texts in zip(data.examples, chosen, strict=True)
    ]
    if teacher is not None:
        examples = _scored(teacher, examples, embedder.vector_cache, show_progress)
    short = sum(len(each.negatives) < negatives for each in examples)
    cosines = [dict(candidates) for candidates in found]
    return Mined(
        data=replace(data, examples=tuple(examples)),
        dropped=dict(dropped),
        candidates=count,
        short=short,
        shown=_shown(data.examples, chosen, cosines, lowest, seed),
        miner=embedder.identity,
    )


def _check(negatives: int, ranks: tuple[int, int], absolute: float | None, relative: float | None, choose: str) -> None:
    if isinstance(negatives, bool) or not isinstance(negatives, int) or negatives < 1:
        raise ConfigurationError(f"negatives={negatives!r} is not allowed. Pass a whole number of at least 1.")
    numbers = [each for each in ranks if isinstance(each, int) and not isinstance(each, bool)]
    if len(numbers) != 2 or not 1 <= numbers[0] <= numbers[1]:
        raise ConfigurationError(f"ranks={ranks!r} is not allowed. Pass the first and the last rank, such as (1, 100).")
    for name, value, most in (("absolute_margin", absolute, 2.0), ("relative_margin", relative, 1.0)):
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if value is not None and not (is_number and 0 <= value < most):
            raise ConfigurationError(f"{name}={value!r} is not allowed. Pass 0 or more, less than {most:g}, or None.")
    if choose not in ("top", "random"):
        raise ConfigurationError(f"choose={choose!r} is not allowed. Use 'top' or 'random'.")


def _filtered(
    candidates: Sequence[tuple[str, float]],
    known: set[str],
    limit: float,
    absolute: float | None,
    relative: float | None,
    dropped: Counter[str],
) -> list[tuple[str, float]]:
    kept = []
    for text, score in candidates:
        if text in known:
            dropped["positives, the question itself, or negatives already"] += 1
        elif not text.strip():
            dropped["empty"] += 1
        elif absolute is not None and score > limit - absolute:
            dropped[f"within {absolute:g} of the positive"] += 1
        # A share of a cosine below 0 would raise it.
        elif relative is not None and score > limit - relative * abs(limit):
            dropped[f"above {1 - relative:.0%} of the positive's cosine"] += 1
        else:
            kept.append((text, score))
    return kept


def _judged(
    reranker: Reranker,
    examples: Sequence[Example],
    found: Sequence[Sequence[tuple[str, float]]],
    dropped: Counter[str],
    cache: VectorCache | None,
    show_progress: bool,
) -> list[list[tuple[str, float]]]:
    """Leave out what the reranker takes for an answer."""
    groups = [
        (*each.positives, *(text for text, _ in candidates)) for each, candidates in zip(examples, found, strict=True)
    ]
    scores = _scores(reranker, examples, groups, cache, show_progress)
    kept = []
    for each, candidates, scored in zip(examples, found, scores, strict=True):
        limit = min(scored[: len(each.positives)])
        others = scored[len(each.positives) :]
        margin = 0.05 * (limit - min(others)) if len(others) else 0.0
        left = [pair for pair, score in zip(candidates, others, strict=True) if score <= limit - max(margin, 0.0)]
        dropped["answers, to the reranker"] += len(candidates) - len(left)
        kept.append(left)
    return kept


def _scored(
    teacher: Reranker, examples: Sequence[Example], cache: VectorCache | None, show_progress: bool
) -> list[Example]:
    groups = [(*each.positives, *each.negatives) for each in examples]
    scores = _scores(teacher, examples, groups, cache, show_progress)
    return [
        replace(
            each,
            positive_scores=tuple(scored[: len(each.positives)]),
            negative_scores=tuple(scored[len(each.positives) :]),
        )
        for each, scored in zip(examples, scores, strict=True)
    ]


def _scores(
    reranker: Reranker,
    examples: Sequence[Example],
    groups: Sequence[Sequence[str]],
    cache: VectorCache | None,
    show_progress: bool,
) -> list[list[float]]:
    pairs = [(each.query, text) for each, texts in zip(examples, groups, strict=True) for text in texts]
    scores, _ = score_pairs(reranker, pairs, cache, show_progress=show_progress)
    ends = np.cumsum([len(texts) for texts in groups])
    return [part.tolist() for part in np.split(scores, ends[:-1])]


def _chosen(
    example: Example, candidates: Sequence[tuple[str, float]], negatives: int, choose: str, seed: int
) -> list[str]:
    wanted = max(negatives - len(example.negatives), 0)
    texts = [text for text, _ in candidates]
    if choose == "top" or len(texts) <= wanted:
        return texts[:wanted]
    # By the question, so that neither the order nor the number of the others changes the choice.
    own = hashlib.sha256(f"{seed} {example.query}".encode()).digest()
    picked = sorted(random.Random(own).sample(range(len(texts)), wanted))
    return [texts[at] for at in picked]


def _shown(
    examples: Sequence[Example],
    chosen: Sequence[Sequence[str]],
    cosines: Sequence[dict[str, float]],
    lowest: Sequence[float],
    seed: int,
) -> list[dict[str, Any]]:
    pairs = [(at, text) for at, texts in enumerate(chosen) for text in texts]
    picked = random.Random(seed).sample(pairs, min(SHOWN, len(pairs)))
    return [
        {
            "query": examples[at].query,
            "positive": examples[at].positives[0],
            "cosine_of_positive": round(lowest[at], 4),
            "negative": text,
            "cosine_of_negative": round(cosines[at][text], 4),
        }
        for at, text in picked
    ]
