"""What is compared of an embedder's outputs, and how: token vectors, or all outputs of trained heads."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from bge_runtime.backends.head_outputs import TextOutputs, are_outputs, pack_outputs, unpack_outputs
from bge_runtime.embedding.instructions import Role
from bge_runtime.engine.call import Rows
from bge_runtime.engine.deadline import Deadline
from bge_runtime.engine.flow import Flow
from bge_runtime.errors import ConfigurationError, check_choice
from bge_runtime.models.spec import ModelSpec
from bge_runtime.vectors.similarity import max_similarity, sparse_product
from bge_runtime.vectors.token_pooling import pool_each

if TYPE_CHECKING:
    from bge_runtime.embedding.embedder import Embedder

__all__ = ["HeadComparison", "Mode", "TokenComparison", "check_mode", "check_weights", "comparison_of"]

Mode = Literal["multi_vector", "sparse", "dense", "hybrid"]
MODES = ("multi_vector", "sparse", "dense", "hybrid")
# The model card of BAAI/bge-m3: dense, sparse, multi-vector.
DEFAULT_WEIGHTS = (0.4, 0.2, 0.4)
NOTHING = TextOutputs(np.empty(0, np.float32), np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.float32))

Weights = tuple[float, float, float]
Vectors = NDArray[np.float32]


def check_weights(mode: Mode | None, weights: Sequence[float] | None) -> Weights:
    """Return the weights of the dense, the sparse and the multi-vector score.

    Raises:
        ConfigurationError: The mode is unknown, or the weights are not three numbers for `hybrid`.
    """
    if mode is not None:
        check_choice(mode, "mode", MODES)
    if weights is None:
        return DEFAULT_WEIGHTS
    if mode != "hybrid":
        raise ConfigurationError(f"weights={weights!r} has no meaning for mode={mode!r}. Pass mode='hybrid' with it.")
    values = tuple(weights) if isinstance(weights, Sequence) and not isinstance(weights, str) else ()
    if len(values) != 3 or not all(_is_weight(value) for value in values) or not sum(values) > 0:
        raise ConfigurationError(
            f"weights={weights!r} is not allowed. Pass three numbers of at least 0, not all 0: those of the dense, "
            "the sparse and the multi-vector score, such as (0.4, 0.2, 0.4)."
        )
    return float(values[0]), float(values[1]), float(values[2])


def check_mode(spec: ModelSpec, mode: Mode | None, weights: Weights = DEFAULT_WEIGHTS) -> None:
    """Refuse a mode that the model has no output for; in `hybrid`, outputs without weight are not needed.

    Raises:
        ConfigurationError: Names the outputs that it has.
    """
    if mode is None:
        return
    if spec.kind != "embedder":
        raise ConfigurationError(f"mode={mode!r} is for embedders; {spec.id!r} scores pairs itself. Leave it out.")
    shares = dict(zip(("dense", "sparse", "multi_vector"), weights, strict=True))
    needed = {name for name, share in shares.items() if share} if mode == "hybrid" else {mode}
    has_heads = len(spec.outputs) > 1
    if mode != "multi_vector" and not (has_heads and needed <= set(spec.outputs)):
        raise ConfigurationError(
            f"mode={mode!r} needs a model with trained heads, such as 'BAAI/bge-m3'; {spec.id!r} has the outputs "
            f"{', '.join(map(repr, spec.outputs))}. Use mode='multi_vector', which compares the vectors of its tokens."
        )


class TokenComparison:
    """Compares the states of all tokens, scaled to length 1 (MaxSim of ColBERT, arXiv:2004.12832, as a mean).

    What is read of a passage is its value: here the token vectors, float32 [tokens, dimension].

    Attributes:
        token_pooling: How many token vectors of a document are merged into one.
        whole_numbers: Whether values as numbers hold token ids, which need a cache of float32.
    """

    whole_numbers = False

    def __init__(self, embedder: Embedder, token_pooling: int) -> None:
        """Note what reads the texts."""
        self.token_pooling = token_pooling
        self._embedder = embedder

    def read(self, texts: Sequence[str], *, bulk: bool, overlap: int | None, deadline: Deadline | None) -> Flow[Rows]:
        """Compute one value per passage of each text; arguments as for `Embedder.read_tokens`."""
        return self._embedder.read_tokens(texts, bulk=bulk, overlap=overlap, deadline=deadline)

    def score(self, query: Any, document: Any) -> float:
        """Return the relevance of a document's value for a query's."""
        return max_similarity(query, document)

    def is_finite(self, value: Any) -> bool:
        """Return whether a value holds neither NaN nor infinities."""
        return bool(np.isfinite(value).all())

    def vectors(self, value: Any) -> Vectors:
        """Return the token vectors of a value."""
        return np.asarray(value, np.float32)

    def pooled(self, values: Sequence[Any]) -> list[Any]:
        """Return the values of documents with their token vectors merged."""
        vectors = pool_each([self.vectors(value) for value in values], self.token_pooling)
        return [self._with_vectors(value, each) for value, each in zip(values, vectors, strict=True)]

    def identity(self, role: Role) -> str:
        """Return what changes values, for a cache; queries are never pooled."""
        own = self._identity()
        return f"{own} pooled {self.token_pooling}" if role == "document" and self.token_pooling > 1 else own

    def to_numbers(self, value: Any) -> Vectors:
        """Return a value as numbers, for a cache: its width first, since a cache keeps numbers without a shape."""
        rows = self.vectors(value)
        return np.concatenate([[rows.shape[1]], rows.ravel()], dtype=np.float32)

    def from_numbers(self, numbers: Vectors) -> Any:
        """Return the value of such numbers."""
        return numbers[1:].reshape(-1, int(numbers[0]))

    @property
    def fits(self) -> Callable[[Vectors], bool]:
        """What tells whether such numbers can be those of a value."""
        return _are_vectors

    def _identity(self) -> str:
        return self._embedder.token_identity

    def _with_vectors(self, value: Any, vectors: Vectors) -> Any:
        return vectors


class HeadComparison(TokenComparison):
    """Compares what trained heads make of a text (bge-m3); a value is a `TextOutputs`."""

    def __init__(self, embedder: Embedder, mode: Mode, weights: Weights, token_pooling: int) -> None:
        """Note the share of each output in the score; in `hybrid` it is `weights`."""
        super().__init__(embedder, token_pooling)
        alone = {"dense": (1.0, 0.0, 0.0), "sparse": (0.0, 1.0, 0.0), "multi_vector": (0.0, 0.0, 1.0)}
        self._dense, self._sparse, self._vectors = alone.get(mode, weights)
        self._only_vectors = mode == "multi_vector"
        self.whole_numbers = not self._only_vectors

    def read(self, texts: Sequence[str], *, bulk: bool, overlap: int | None, deadline: Deadline | None) -> Flow[Rows]:
        """Compute all outputs of each text's passages."""
        return self._embedder.read_tokens(texts, output="all", bulk=bulk, overlap=overlap, deadline=deadline)

    def score(self, query: TextOutputs, document: TextOutputs) -> float:
        """Return the weighted mean of the outputs' scores; an output without weight is not compared."""
        total = 0.0
        if self._dense:
            total += self._dense * float(query.dense @ document.dense)
        if self._sparse:
            total += self._sparse * sparse_product(query.ids, query.weights, document.ids, document.weights)
        if self._vectors:
            total += self._vectors * max_similarity(query.vectors, document.vectors)
        # The mean, so that scores stay comparable when the weights do not add up to 1.
        return total / (self._dense + self._sparse + self._vectors)

    def is_finite(self, value: TextOutputs) -> bool:
        """Return whether a value holds neither NaN nor infinities."""
        return all(np.isfinite(part).all() for part in value)

    def vectors(self, value: TextOutputs) -> Vectors:
        """Return the token vectors of a value."""
        return value.vectors

    def to_numbers(self, value: TextOutputs) -> Vectors:
        """Return a value as numbers: token vectors alone where nothing else is compared, since they fill the cache."""
        return super().to_numbers(value) if self._only_vectors else pack_outputs(value)

    def from_numbers(self, numbers: Vectors) -> TextOutputs:
        """Return the value of such numbers."""
        if self._only_vectors:
            return NOTHING._replace(vectors=super().from_numbers(numbers))
        return unpack_outputs(numbers)

    @property
    def fits(self) -> Callable[[Vectors], bool]:
        """What tells whether such numbers can be those of a value."""
        return super().fits if self._only_vectors else are_outputs

    def _identity(self) -> str:
        return f"{self._embedder.output_identity} {'vectors' if self._only_vectors else 'all'}"

    def _with_vectors(self, value: TextOutputs, vectors: Vectors) -> TextOutputs:
        return value._replace(vectors=vectors)


def comparison_of(embedder: Embedder, mode: Mode | None, weights: Weights, token_pooling: int = 1) -> TokenComparison:
    """Return the comparison of a mode.

    Args:
        embedder: Reads the texts.
        mode: `multi_vector`, also as `None`, takes the model's trained head, or the states of all tokens where it has
            none.
        weights: Of the dense, the sparse and the multi-vector score in `hybrid`.
        token_pooling: How many token vectors of a document are merged into one.
    """
    wanted: Mode = mode or "multi_vector"
    if wanted == "multi_vector" and "multi_vector" not in embedder.spec.outputs:
        return TokenComparison(embedder, token_pooling)
    return HeadComparison(embedder, wanted, weights, token_pooling)


def _are_vectors(numbers: Vectors) -> bool:
    width = float(numbers[0]) if len(numbers) > 1 else 0.0
    return width >= 1 and width.is_integer() and (len(numbers) - 1) % int(width) == 0


def _is_weight(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
