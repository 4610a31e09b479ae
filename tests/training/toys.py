"""Small data to train on, and settings under which a small model learns it in seconds."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from bge_runtime.evaluation.judgements import Judgements
from bge_runtime.training import Example, TrainingData, TrainingSettings

ANIMALS = "cat dog horse sheep goat cow pig hen duck goose mouse rat".split()
PLACES = "house garden river forest field road bridge market school church harbour island".split()
DEEDS = "sleeps runs eats waits sings hides swims works".split()


def toy_data(count: int = 60, *, seed: int = 0, negatives: int = 0, scores: bool = False) -> TrainingData:
    """Return questions whose words stand in what answers them; two of three share a document with another one."""
    chance = random.Random(seed)
    pairs = [(animal, place) for animal in ANIMALS for place in PLACES]
    chance.shuffle(pairs)
    texts = {pair: f"The {pair[0]} {chance.choice(DEEDS)} in the {pair[1]} all day." for pair in pairs}
    examples = []
    for number in range(count):
        animal, place = pair = pairs[number * 2 // 3]
        query = f"where is the {animal} of the {place}" if number % 3 else f"{place} with {animal}"
        others = tuple(texts[each] for each in pairs if each != pair and animal in each)[:negatives]
        examples.append(
            Example(
                query=f"{query} {number}",
                positives=(texts[pair],),
                negatives=others,
                positive_scores=(4.0,) if scores else (),
                negative_scores=tuple(-1.0 - at for at in range(len(others))) if scores else (),
                where=f"toys line {number + 1}",
            )
        )
    return TrainingData(
        name="toys", examples=tuple(examples), documents={f"d{at}": text for at, text in enumerate(texts.values())}
    )


def toy_guard() -> Judgements:
    """Return a few questions of another kind."""
    texts = {"a": "Bread is made of flour.", "b": "Snow is cold.", "c": "A ship needs water."}
    queries = {"q1": "what is bread made of", "q2": "is snow cold"}
    return Judgements(name="few", queries=queries, grades={"q1": {"a": 1}, "q2": {"b": 1}}, documents=texts)


def quick(**changes: Any) -> TrainingSettings:
    """Return settings for a small model."""
    return replace(
        TrainingSettings(max_steps=6, batch_size=8, learning_rate=3e-4, negatives=1, dropout=0.0, evaluations=2),
        **changes,
    )
