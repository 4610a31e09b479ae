"""Texts to vectors, from top to bottom: checked, looked up, instructed, computed, scaled, put back in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TypeAlias

import numpy as np

from bge_runtime.embedding.instructions import Role
from bge_runtime.embedding.settings import Encoding, Vectors
from bge_runtime.engine.flow import Flow
from bge_runtime.inputs.checks import check_texts
from bge_runtime.loading.runner import Progress, Runner, distinct
from bge_runtime.vectors.cache import VectorCache

__all__ = ["Compute", "computed", "vectors"]

# Computes one vector per distinct text; arguments as for `computed`.
Compute: TypeAlias = Callable[[Runner, Encoding, Sequence[str], Role, bool | None], Flow[Vectors]]

# Between two writes into the vector cache: little is lost with the process, and batches fill all the same.
BATCHES_PER_WRITE = 8
CHARACTERS_PER_TOKEN = 4
MOST_AT_ONCE = 4096  # texts in one write


def vectors(
    runner: Runner,
    encoding: Encoding,
    texts: Iterable[str],
    role: Role,
    show_progress: bool | None,
    *,
    compute: Compute,
    cache: VectorCache | None = None,
) -> Flow[Vectors]:
    """Return a vector per text, in their order: float32 of shape (number of texts, dimension).

    Args:
        runner: Runs the model.
        encoding: How texts become vectors.
        texts: What a caller handed in.
        role: Whose instruction they get, and who goes first: queries before documents.
        show_progress: Overrides the model's own setting.
        compute: Computes distinct texts: `computed`, or what shares its forward pass with other outputs.
        cache: Remembers vectors.
    """
    checked = check_texts(texts)
    if not checked:
        return encoding.nothing
    different, places = distinct(checked)
    if cache is None:
        found = yield from compute(runner, encoding, different, role, show_progress)
    else:
        with runner.progress(len(different), show_progress) as progress:
            found = yield from _remembered(runner, encoding, different, role, compute, cache, progress)
    return found if len(different) == len(checked) else found[places]


def computed(
    runner: Runner, encoding: Encoding, texts: Sequence[str], role: Role, show_progress: bool | None
) -> Flow[Vectors]:
    """Compute one vector per text."""
    tokenize = partial(runner.hold().tokenizing.texts, max_length=encoding.max_length)
    rows = yield from runner.rows(
        encoding.framed(texts, role), tokenize, encoding.pooling, bulk=role == "document", show_progress=show_progress
    )
    runner.note_truncation(rows.cut, len(texts))
    return encoding.scaled(rows.values)


def _remembered(
    runner: Runner,
    encoding: Encoding,
    texts: Sequence[str],
    role: Role,
    compute: Compute,
    cache: VectorCache,
    progress: Progress,
) -> Flow[Vectors]:
    """Return a vector per distinct text, computing those that the cache lacks and storing them portion by portion."""
    identity = f"{role}:{encoding.identity if role == 'query' else encoding.document_identity}"
    found = cache.get(identity, texts)
    missing = [index for index, vector in enumerate(found) if vector is None]
    if progress is not None:
        progress(len(texts) - len(missing))
    for part in _portions(texts, missing, runner):
        asked = [texts[index] for index in part]
        computed_now = yield from compute(runner, encoding, asked, role, False)
        cache.put(identity, asked, computed_now)
        for index, vector in zip(part, computed_now, strict=True):
            found[index] = vector
        if progress is not None:
            progress(len(part))
    return np.stack([vector for vector in found if vector is not None])


def _portions(texts: Sequence[str], indices: Sequence[int], runner: Runner) -> Iterator[list[int]]:
    """Divide texts by what is computed between two writes, which is what a killed process loses at most."""
    if not indices:  # nothing is to be computed, so the weights need not be read to know how much fits
        return
    characters = BATCHES_PER_WRITE * CHARACTERS_PER_TOKEN * runner.batch_tokens
    part: list[int] = []
    size = 0
    for index in indices:
        part.append(index)
        size += len(texts[index])
        if size >= characters or len(part) == MOST_AT_ONCE:
            yield part
            part, size = [], 0
    if part:
        yield part
