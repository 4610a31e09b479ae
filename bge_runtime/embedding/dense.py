"""Texts to vectors, from top to bottom: checked, looked up, instructed, computed, scaled, put back in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from bge_runtime.embedding.instructions import Role
from bge_runtime.embedding.settings import Encoding, Vectors
from bge_runtime.engine.call import Rows
from bge_runtime.engine.deadline import Deadline
from bge_runtime.engine.flow import Flow
from bge_runtime.engine.job import Output
from bge_runtime.inputs.checks import check_texts
from bge_runtime.loading.runner import Runner, distinct
from bge_runtime.vectors.cache import VectorCache
from bge_runtime.vectors.finite import named, not_finite
from bge_runtime.vectors.similarity import unit_rows

__all__ = ["Request", "computed", "rows_of", "token_rows", "vectors"]

# Between two writes into the vector cache: little is lost with the process, and batches fill all the same.
BATCHES_PER_WRITE = 8
CHARACTERS_PER_TOKEN = 4
MOST_AT_ONCE = 4096  # texts in one write


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What one call asks of an embedder.

    Attributes:
        runner: Runs the model.
        encoding: How texts become vectors.
        role: Whose instruction the texts get, and who goes first: queries before documents.
        show_progress: Overrides the model's own setting.
        compute: Computes one vector per distinct text: `computed`, or what shares its forward pass with other outputs.
        cache: Remembers vectors.
    """

    runner: Runner
    encoding: Encoding
    role: Role
    show_progress: bool | None
    compute: Callable[[Request, Sequence[str]], Flow[Vectors]]
    cache: VectorCache | None


def vectors(request: Request, texts: Iterable[str]) -> Flow[Vectors]:
    """Return a vector per text, in their order: float32 of shape (number of texts, dimension)."""
    checked = check_texts(texts)
    if not checked:
        return request.encoding.nothing
    different, places = distinct(checked)
    if request.cache is None:
        found = yield from request.compute(request, different)
        _check(request, found, different, checked)
    else:
        found = yield from _remembered(request, different, checked, request.cache)
    # No copy where there is nothing to repeat.
    return found if len(different) == len(checked) else found[places]


def computed(request: Request, texts: Sequence[str]) -> Flow[Vectors]:
    """Compute one vector per text."""
    rows = yield from rows_of(request, texts, request.encoding.pooling)
    return request.encoding.scaled(rows, request.role)


def rows_of(request: Request, texts: Sequence[str], output: Output) -> Flow[list[Any]]:
    """Return what a forward pass gives of each text with its instruction."""
    runner, encoding = request.runner, request.encoding
    tokenize = partial(runner.hold().tokenizing.texts, max_length=encoding.max_length)
    rows = yield from runner.rows(
        encoding.framed(texts, request.role),
        tokenize,
        output,
        bulk=request.role == "document",
        show_progress=request.show_progress,
    )
    runner.note_truncation(rows, texts)
    return rows.values


def token_rows(
    runner: Runner,
    texts: Sequence[str],
    output: Output = "tokens",
    *,
    bulk: bool = False,
    overlap: int | None = None,
    deadline: Deadline | None = None,
) -> Flow[Rows]:
    """Read texts without any instruction, for comparisons token by token.

    Args:
        runner: Runs the model.
        texts: Checked texts.
        output: `tokens` gives the unit vectors of every text's tokens, float32 [tokens, width]; anything else comes as
            the forward pass gives it.
        bulk: Whether interactive work goes first.
        overlap: Tokens shared by two passages of a text that is too long; `None` cuts it.
        deadline: When to stop.
    """
    tokenize = partial(runner.hold().tokenizing.texts, max_length=runner.max_length, overlap=overlap)
    rows = yield from runner.rows(texts, tokenize, output, bulk=bulk, deadline=deadline)
    if output == "tokens":
        rows.values = [unit_rows(row) for row in rows.values]
    return rows


def _check(request: Request, found: Vectors, texts: Sequence[str], given: Sequence[str]) -> None:
    """Refuse vectors that are not finite; the message names the first text and its place among those given."""
    whole = np.asarray(np.isfinite(found).all(axis=1))
    if not whole.all():
        broken = [text for text, sound in zip(texts, whole, strict=True) if not sound]
        what = named("texts", given.index(broken[0]), broken[0])
        raise not_finite(request.runner.source.name, what, len(broken) - 1)


def _remembered(request: Request, texts: Sequence[str], given: Sequence[str], cache: VectorCache) -> Flow[Vectors]:
    """Return a vector per distinct text, computing those that the cache lacks and storing them portion by portion."""
    encoding = request.encoding
    identity = f"{request.role}:{encoding.identity if request.role == 'query' else encoding.document_identity}"
    quiet = replace(request, show_progress=False)  # one bar for the call, not one for each portion
    if dimension := encoding.dimension:
        cache.expect(identity, lambda vector: vector.size == dimension)
    with request.runner.progress(len(texts), request.show_progress) as progress:
        found = cache.get(identity, texts)
        missing = [index for index, vector in enumerate(found) if vector is None]
        if progress is not None:
            progress(len(texts) - len(missing))
        for part in _portions(texts, missing, request.runner):
            asked = [texts[index] for index in part]
            fresh = yield from request.compute(quiet, asked)
            cache.put(identity, asked, fresh)  # all but those that the next line refuses
            _check(request, fresh, asked, given)
            for index, vector in zip(part, fresh, strict=True):
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
