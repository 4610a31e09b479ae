"""Which examples are kept from training, so that what it gained can be told."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from bge_runtime import ConfigurationError
from bge_runtime.evaluation.judgements import Judgements
from bge_runtime.training.examples import Example, TrainingData

__all__ = ["Split", "as_judgements", "hold_out"]

SHARE = 0.1
MOST = 500
# Fewer questions can tell nothing apart.
LEAST = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """Examples to learn from, and questions to measure on.

    Attributes:
        training: What is learned from.
        unseen: Questions none of whose positive documents is positive in any training example: how the model does on
            documents that are new to it. `None` where the data cannot be divided so.
        seen: Questions whose positive documents are all positive in training examples, of other questions: how it does
            on documents that it was trained for. `None` where no two questions share a document.
    """

    training: TrainingData
    unseen: Judgements | None
    seen: Judgements | None

    @property
    def development(self) -> dict[str, Judgements]:
        """The sets that there are, by name."""
        sets = {"unseen": self.unseen, "seen": self.seen}
        return {name: each for name, each in sets.items() if each is not None}


def hold_out(data: TrainingData, *, share: float = SHARE, seed: int = 0) -> Split:
    """Divide examples; the same data and seed give the same parts in whatever order they come.

    Args:
        data: All examples.
        share: How many of them go into each of the two development sets, at most 500.
        seed: Of the choice.

    Raises:
        ConfigurationError: `share` is not allowed, or nothing can be held out.
    """
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 0.4:
        raise ConfigurationError(f"share={share!r} is not allowed. Pass more than 0, and at most 0.4.")
    wanted = min(round(share * len(data.examples)), MOST)
    # Sorted, so that the order of the file does not matter.
    groups = sorted((sorted(group, key=_key) for group in _connected(data.examples)), key=lambda group: _key(group[0]))
    chance = random.Random(seed)
    chance.shuffle(groups)
    unseen: list[Example] = []
    rest: list[Example] = []
    for group in groups:
        (unseen if len(unseen) + len(group) <= wanted else rest).extend(group)
    chance.shuffle(rest)
    # By question: one in two lines is one question, and goes as a whole.
    asked: dict[str, list[Example]] = defaultdict(list)
    for each in rest:
        asked[each.query].append(each)
    answers = {query: {text for each in found for text in each.positives} for query, found in asked.items()}
    times = Counter(text for texts in answers.values() for text in texts)
    seen: list[Example] = []
    for query, found in asked.items():
        if len(seen) + len(found) <= wanted and all(times[text] > 1 for text in answers[query]):
            seen += found
            times.subtract(answers[query])
    sets = {"unseen": unseen, "seen": seen}
    kept = {name: found if len(found) >= LEAST else [] for name, found in sets.items()}
    if not any(kept.values()):
        raise ConfigurationError(
            f"Of the {len(data.examples)} examples of {data.name!r} none can be held out to measure on: with "
            f"share={share:g} that is {wanted}, of at least {LEAST}, and questions that share a document stay "
            "together. Pass a larger share, more examples, or a development set of your own."
        )
    out = {id(each) for found in kept.values() for each in found}
    training = replace(data, examples=tuple(each for each in data.examples if id(each) not in out))
    judged = {
        name: as_judgements(found, data.documents, f"{data.name} ({name})") if found else None
        for name, found in kept.items()
    }
    return Split(training=training, **judged)


def as_judgements(examples: Sequence[Example], documents: Mapping[str, str], name: str) -> Judgements:
    """Return examples as judged questions over documents; a positive that is none of them becomes one."""
    ids: dict[str, str] = {}
    for each, text in documents.items():
        ids.setdefault(text, each)
    grades: dict[str, dict[str, int]] = {}
    queries = {}
    for at, example in enumerate(examples, start=1):
        queries[f"q{at}"] = example.query
        grades[f"q{at}"] = {ids.setdefault(text, f"positive {len(ids)}"): 1 for text in example.positives}
    return Judgements(name=name, queries=queries, grades=grades, documents={each: text for text, each in ids.items()})


def _key(example: Example) -> tuple[str, tuple[str, ...]]:
    return example.query, example.positives


def _connected(examples: Sequence[Example]) -> list[list[Example]]:
    """Return groups of examples that share a question or a positive document, with each other or through others."""
    above = list(range(len(examples)))

    def top(at: int) -> int:
        while above[at] != at:
            above[at] = above[above[at]]
            at = above[at]
        return at

    first: dict[str, int] = {}
    for at, example in enumerate(examples):
        for text in (f"query {example.query}", *example.positives):
            above[top(at)] = top(first.setdefault(text, at))
    groups: dict[int, list[Example]] = defaultdict(list)
    for at, example in enumerate(examples):
        groups[top(at)].append(example)
    return list(groups.values())
