"""The models that are checked: small ones of every kind, and the published shapes, all with seeded weights."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.model_speed import SHAPES, Shape
from tests.checkpoints.encoder_tokenizers import vocabulary

__all__ = [
    "LENGTHS",
    "LONGEST",
    "SHAPE_KINDS",
    "SUBJECTS",
    "Inputs",
    "Kind",
    "Outputs",
    "Subject",
    "distance",
    "mixed",
    "of_length",
    "shapes",
    "write_shape",
]

Kind = Literal["embed", "score"]
Inputs = list[Any]  # texts, or pairs of query and document
# Output -> one array or mapping per input.
Outputs = dict[str, Sequence[Any]]

LONGEST = 512
# Of every kind of group: alone, pairs and threes of equal length, the longest and what has to be cut.
LENGTHS = (3, 3, 4, 9, 9, 9, 17, 40, 64, 64, 130, 257, 512, 600)
SHAPE_KINDS: dict[str, Kind] = {
    "small-en": "embed",
    "base": "embed",
    "large": "embed",
    "reranker-base": "score",
    "m3": "score",
}
REDUCED_LAYERS = 2
REDUCED_WORDS = 2_000


def shapes(*, reduced: bool) -> list[Shape]:
    """Return the published shapes, or some with two layers and few words, for machines without a GPU."""
    chosen = [shape for shape in SHAPES if shape.name in SHAPE_KINDS]
    if reduced:
        chosen = [replace(shape, layers=REDUCED_LAYERS, vocabulary=REDUCED_WORDS) for shape in chosen]
    return sorted(chosen, key=lambda shape: list(SHAPE_KINDS).index(shape.name))


def write_shape(folder: Path, shape: Shape) -> Path:
    """Write a seeded checkpoint of a shape into a folder and return it."""
    from tests.checkpoints.hub_cache import Checkpoint, write_checkpoint

    kind = SHAPE_KINDS[shape.name]
    checkpoint = Checkpoint(
        name=shape.name,
        family="bert" if shape.family == "bert" else "xlmr",
        hidden=shape.width,
        layers=shape.layers,
        heads=shape.heads,
        inner=4 * shape.width,
        words=shape.vocabulary,
        positions=LONGEST + (0 if shape.family == "bert" else 2),
        head=int(kind == "score"),
        modules=kind == "embed",
        seed=41,
    )
    return write_checkpoint(folder, checkpoint)


@cache
def _words(family: str) -> tuple[str, ...]:
    """Return words that are one token each."""
    bert = family == "bert"
    pieces = vocabulary("bert" if bert else "xlmr")
    found = pieces if bert else (piece[1:] for piece in pieces if piece.startswith("▁"))
    return tuple(word for word in found if len(word) > 2 and word.isascii() and word.isalpha())


def of_length(family: str, kind: Kind, tokens: int, count: int, seed: str = "") -> Inputs:
    """Return distinct texts or pairs of exactly so many tokens, special ones included."""
    dice, words = random.Random(f"{family} {tokens} {seed}"), _words(family)
    if kind == "embed":
        return [" ".join(dice.choices(words, k=tokens - 2)) for _ in range(count)]
    special = 3 if family == "bert" else 4
    asked = max(1, tokens // 4)
    query = " ".join(dice.choices(words, k=asked))
    return [(query, " ".join(dice.choices(words, k=tokens - special - asked))) for _ in range(count)]


def mixed(family: str, kind: Kind, *, longest: int = max(LENGTHS)) -> Inputs:
    """Return texts or pairs of mixed lengths, not in their order; some have to be cut."""
    least = 3 if kind == "embed" else 6
    lengths = [max(least, length) for length in LENGTHS if length <= longest]
    random.Random(0).shuffle(lengths)
    return [of_length(family, kind, length, 1, f"mixed {at}")[0] for at, length in enumerate(lengths)]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A small seeded model, what is asked of it, and the same computed in another way.

    Attributes:
        name: Of the model whose file layout and architecture it has.
        family: Whose vocabulary its inputs are of: `bert` or `xlmr`.
        kind: Whether it embeds or scores.
        backends: What runs it; `None` is every backend that runs encoders.
        outputs: Computes with ours: model, device, backend and precision in `options`, and inputs.
        reference: The same from the files with plain transformers, in float32 on the CPU; `None` takes ours.
        longest: Longest input, in tokens.
    """

    name: str
    family: str
    kind: Kind
    backends: tuple[str, ...] | None
    outputs: Callable[[str, Mapping[str, Any], Inputs], Outputs]
    reference: Callable[[Path, Inputs], Outputs] | None = None
    longest: int = max(LENGTHS)

    def inputs(self, longest: int) -> Inputs:
        """Return what it reads, no input longer than `longest` tokens."""
        return mixed(self.family, self.kind, longest=min(longest, self.longest))


def _vectors(name: str, options: Mapping[str, Any], texts: Inputs) -> Outputs:
    from bge_runtime import Embedder

    with Embedder(name, truncation="silent", **options) as embedder:
        return {"vectors": list(embedder.encode_documents(texts))}


def _m3(name: str, options: Mapping[str, Any], texts: Inputs) -> Outputs:
    from bge_runtime import Embedder

    with Embedder(name, truncation="silent", **options) as embedder:
        found = embedder.encode_all(texts)
    assert found.dense is not None
    assert found.sparse is not None
    assert found.multi_vector is not None
    return {"vectors": list(found.dense), "lexical weights": found.sparse, "token vectors": found.multi_vector}


def _scores(name: str, options: Mapping[str, Any], pairs: Inputs) -> Outputs:
    from bge_runtime import Reranker

    with Reranker(name, truncation="silent", **options) as reranker:
        return {"scores": list(reranker.score_pairs(pairs))}


def _pictures(name: str, options: Mapping[str, Any], texts: Inputs) -> Outputs:
    from bge_runtime import VisionEmbedder
    from tests.checkpoints.pictures import picture

    with VisionEmbedder(name, truncation="silent", **options) as embedder:
        pictures = embedder.encode_images([picture(seed, 60 + 40 * seed) for seed in range(4)])
        return {"vectors": list(embedder.encode_documents(texts)), "picture vectors": list(pictures)}


def _plain_vectors(folder: Path, texts: Inputs) -> Outputs:
    from tests.runtime import references

    return {"vectors": [references.vector(folder, text, max_length=LONGEST) for text in texts]}


def _plain_m3(folder: Path, texts: Inputs) -> Outputs:
    from tests.runtime import references

    found = [references.m3(folder, text, max_length=8192) for text in texts]
    return {
        "vectors": [each.dense for each in found],
        "lexical weights": [each.sparse for each in found],
        "token vectors": [each.vectors for each in found],
    }


def _plain_last(folder: Path, texts: Inputs) -> Outputs:
    from tests.runtime import references

    return {"vectors": [references.last_token_vector(folder, text) for text in texts]}


def _plain_scores(folder: Path, pairs: Inputs) -> Outputs:
    from tests.runtime import references

    return {"scores": [references.pair_logit(folder, *pair, max_length=LONGEST)[0] for pair in pairs]}


def _llm(name: str) -> Subject:
    return Subject(name=name, family="bert", kind="score", backends=("llm",), outputs=_scores, longest=130)


# Every backend comes early; those that take long come last.
SUBJECTS = (
    Subject(
        name="BAAI/bge-small-en-v1.5",
        family="bert",
        kind="embed",
        backends=None,
        outputs=_vectors,
        reference=_plain_vectors,
    ),
    Subject(
        name="BAAI/bge-reranker-base",
        family="xlmr",
        kind="score",
        backends=None,
        outputs=_scores,
        reference=_plain_scores,
    ),
    _llm("BAAI/bge-reranker-v2-gemma"),
    Subject(
        name="BAAI/bge-code-v1",
        family="bert",
        kind="embed",
        backends=("torch",),
        outputs=_vectors,
        reference=_plain_last,
        longest=130,
    ),
    Subject(name="BAAI/BGE-VL-base", family="bert", kind="embed", backends=("torch",), outputs=_pictures, longest=64),
    _llm("BAAI/bge-reranker-v2-minicpm-layerwise"),
    _llm("BAAI/bge-reranker-v2.5-gemma2-lightweight"),
    Subject(name="BAAI/bge-m3", family="xlmr", kind="embed", backends=None, outputs=_m3, reference=_plain_m3),
)


def distance(output: str, found: Sequence[Any], expected: Sequence[Any]) -> float:
    """Return how far results are from what is expected: the worst input's value, NaN where they cannot be compared.

    Of vectors it is |a - b|² / 2, which for unit vectors is 1 - cosine, and more for any other; of scores the largest
    difference in standard deviations of the expected ones; of lexical weights the largest difference.
    """
    if len(found) != len(expected):
        return float("nan")
    if output == "scores":
        mine, other = (np.asarray(each, np.float64) for each in (found, expected))
        return float(np.abs(mine - other).max() / other.std())  # max of an array keeps NaN, Python's does not
    apart = _mapping_difference if output == "lexical weights" else _vector_distance
    return float(np.max([apart(mine, other) for mine, other in zip(found, expected, strict=True)]))


def _mapping_difference(mine: Mapping[int, float], other: Mapping[int, float]) -> float:
    return float(np.max([0.0, *(abs(mine.get(key, 0.0) - other.get(key, 0.0)) for key in {*mine, *other})]))


def _vector_distance(mine: NDArray[Any], other: NDArray[Any]) -> float:
    mine, other = (np.asarray(each, np.float64) for each in (mine, other))
    if mine.shape != other.shape:
        return float("nan")
    return float(np.max(((mine - other) ** 2).sum(-1) / 2))
