"""Further outputs of models with several heads (bge-m3): sparse and multi-vector, from the pass of the dense one.

No other model's path comes through here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from bge_runtime.backends.head_outputs import unpack_outputs
from bge_runtime.embedding.dense import Request, rows_of, token_rows, vectors
from bge_runtime.embedding.settings import Vectors
from bge_runtime.engine.call import Rows
from bge_runtime.engine.deadline import Deadline
from bge_runtime.engine.flow import Flow
from bge_runtime.errors import ConfigurationError, ModelNotFoundError, public
from bge_runtime.inputs.checks import check_texts
from bge_runtime.loading.loaded import LoadedModel
from bge_runtime.loading.runner import Runner, distinct
from bge_runtime.locks import ForkLock
from bge_runtime.models.spec import ModelSpec
from bge_runtime.vectors.finite import check_finite, named
from bge_runtime.vectors.similarity import unit_rows

__all__ = ["EXPECTED", "EncodedTexts", "Outputs", "check_outputs", "encoded", "model_key", "output_rows", "sparse"]

Outputs = Sequence[Literal["dense", "sparse", "multi_vector"]]
Kind = Literal["dense", "sparse"]

MOST_ENTRIES = 8192  # a store writes a few thousand texts at a time, densely and then sparsely


@public
@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedTexts:
    """Vectors of several kinds, each in input order; `None` for kinds that were not asked for.

    Attributes:
        dense: Array float32 of shape (number of texts, dimension), of length 1 if the embedder normalises.
        sparse: Lexical weights, one mapping of token id to weight per text. Weights are positive; the score of a
            pair is the sum over shared tokens of their products (see `lexical_score`).
        multi_vector: One array float32 of shape (tokens - 1, dimension) per text: unit vectors of all tokens but
            the first.
    """

    dense: NDArray[np.float32] | None = None
    sparse: list[dict[int, float]] | None = None
    multi_vector: list[NDArray[np.float32]] | None = None


class Expected:
    """Who expects sparse vectors of which model, and what dense calls have computed of them on the way.

    A vector store asks for the dense vectors of its texts, and then for the sparse ones. While an object that will
    ask for sparse vectors lives, either call keeps what its forward pass gave for the other.
    """

    def __init__(self) -> None:
        """Start empty."""
        self._lock = ForkLock()
        # Weak, both: neither a dropped view nor unloaded weights are kept alive by what they asked for.
        self._views = WeakKeyDictionary[object, Hashable]()
        self._found = WeakKeyDictionary[LoadedModel, OrderedDict[tuple[Kind, int, Hashable], Any]]()

    def add(self, view: object, model: Hashable) -> None:
        """Note that sparse vectors of a model will be asked for as long as `view` lives."""
        with self._lock:
            self._views[view] = model

    def by(self, view: object) -> bool:
        """Whether `view` is one of those who will ask."""
        with self._lock:
            return view in self._views

    def __contains__(self, model: Hashable) -> bool:
        """Whether sparse vectors of a model will be asked for."""
        with self._lock:
            return model in self._views.values()

    def put(self, loaded: LoadedModel, kind: Kind, max_length: int, texts: Sequence[Hashable], values: Any) -> None:
        """Keep the results of texts that were cut to `max_length` tokens; the oldest go first."""
        with self._lock:
            found = self._found.setdefault(loaded, OrderedDict())
            for text, value in zip(texts, values, strict=True):
                found[kind, max_length, text] = value
            while len(found) > MOST_ENTRIES:
                found.popitem(last=False)

    def take(self, loaded: LoadedModel, kind: Kind, max_length: int, texts: Sequence[Hashable]) -> list[Any]:
        """Return and forget the results; `None` for texts that have none."""
        with self._lock:
            found = self._found.get(loaded)
            return [found.pop((kind, max_length, text), None) if found else None for text in texts]


EXPECTED = Expected()


def model_key(runner: Runner) -> Hashable:
    """Return by what a model is expected; known without files."""
    known = runner.source.known_spec
    return (known.id if known else runner.source.name, runner.source.revision)


def check_outputs(spec: ModelSpec, name: str, outputs: Sequence[str]) -> None:
    """Refuse outputs that a model does not have.

    Raises:
        ConfigurationError: Names those that it has.
    """
    for output in outputs:
        if output not in spec.outputs:
            raise ConfigurationError(
                f"{name!r} has no output {output!r}; it has {', '.join(map(repr, spec.outputs))}. "
                "BAAI/bge-m3 has 'dense', 'sparse' and 'multi_vector'."
            )


def encoded(request: Request, texts: Iterable[str], outputs: Outputs | None) -> Flow[EncodedTexts]:
    """Compute several outputs of each text with one forward pass; see `Embedder.encode_all`."""
    encoding = request.encoding
    wanted = tuple(encoding.source.spec.outputs if outputs is None else outputs)
    checked = check_texts(texts)
    _check_heads(request.runner, wanted)
    if not set(wanted) - {"dense"}:
        found = yield from vectors(request, checked)
        return EncodedTexts(dense=found if wanted else None)
    different, places = distinct(checked)
    packed = yield from rows_of(request, different, "all" if "multi_vector" in wanted else "lexical")
    check_finite(
        packed, request.runner.source.name, lambda index: named("texts", places.index(index), different[index])
    )
    unpacked = [unpack_outputs(row) for row in packed]
    rows = [unpacked[place] for place in places]
    return EncodedTexts(
        dense=encoding.scaled([row.dense for row in rows], request.role) if "dense" in wanted else None,
        sparse=[row.sparse for row in rows] if "sparse" in wanted else None,
        multi_vector=[row.vectors for row in rows] if "multi_vector" in wanted else None,
    )


def sparse(request: Request, texts: Iterable[str]) -> Flow[list[dict[int, float]]]:
    """Compute the lexical weights of each text, or take those that a dense call has left."""
    checked = check_texts(texts)
    _check_heads(request.runner, ("sparse",))
    different, places = distinct(checked)
    found = yield from _shared_pass(request, different, "sparse")
    weights = [np.fromiter(each.values(), np.float32, len(each)) for each in found]
    check_finite(
        weights, request.runner.source.name, lambda index: named("texts", places.index(index), different[index])
    )
    return [dict(found[place]) for place in places]


def dense_too(request: Request, texts: Sequence[str]) -> Flow[Vectors]:
    """Compute one vector per text, and keep the sparse ones for who expects them; a `Request.compute`."""
    found = yield from _shared_pass(request, texts, "dense")
    return request.encoding.scaled(found, request.role)


def output_rows(
    runner: Runner, texts: Sequence[str], *, bulk: bool, overlap: int | None, deadline: Deadline | None
) -> Flow[Rows]:
    """Read texts as `dense.token_rows` does; a row is `TextOutputs` with a dense vector of length 1."""
    # One of the two is enough: of a fine-tune that kept one head, a comparison reads that one.
    _check_heads(runner, [each for each in runner.source.spec.outputs if each != "dense"] or ["sparse"])
    rows = yield from token_rows(runner, texts, "all", bulk=bulk, overlap=overlap, deadline=deadline)
    unpacked = (unpack_outputs(row) for row in rows.values)
    rows.values = [each._replace(dense=unit_rows(each.dense)) for each in unpacked]
    return rows


def _shared_pass(request: Request, texts: Sequence[str], kind: Kind) -> Flow[list[Any]]:
    """Return the dense rows, not normalised, or the sparse vectors; keep the other kind."""
    loaded, length = request.runner.hold(), request.encoding.max_length
    framed = request.encoding.framed(texts, request.role)  # two roles may read one text differently
    found = EXPECTED.take(loaded, kind, length, framed)
    missing = [index for index, value in enumerate(found) if value is None]
    if missing:
        packed = yield from rows_of(request, [texts[index] for index in missing], "lexical")
        rows = [unpack_outputs(row) for row in packed]
        other: Kind = "sparse" if kind == "dense" else "dense"
        if model_key(request.runner) in EXPECTED:
            whole = [number for number, row in enumerate(packed) if np.isfinite(row).all()]
            kept = [getattr(rows[number], other) for number in whole]
            EXPECTED.put(loaded, other, length, [framed[missing[number]] for number in whole], kept)
        for index, row in zip(missing, rows, strict=True):
            found[index] = getattr(row, kind)
    return found


def _check_heads(runner: Runner, outputs: Sequence[str]) -> None:
    name = runner.source.name
    check_outputs(runner.source.spec, name, outputs)
    # The files last: an output that does not exist is an error without a look at the disk.
    if set(outputs) - {"dense"} and (missing := runner.source.missing_heads):
        raise ModelNotFoundError(
            f"The folder of {name!r} lacks the trained heads {', '.join(missing)} "
            f"(.safetensors or .pt). {runner.source.advice}"
        )
