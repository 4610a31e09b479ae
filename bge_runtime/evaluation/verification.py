"""What `bge doctor --verify` does: compute what a model's authors printed, on this machine, and compare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import bge_runtime
from bge_runtime import ConfigurationError
from bge_runtime.evaluation.published import PUBLISHED, PublishedValue, Quantity

__all__ = ["Check", "Listing", "Verification", "labels", "published_values", "verify"]

SHOWN = 24

Table = tuple[Sequence[str], list[Sequence[str]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One number.

    Attributes:
        value: Title of the published value that it belongs to.
        item: Which of its numbers.
        expected: As printed by the authors.
        got: As computed here.
        tolerance: Largest difference that passes.
        ok: Whether the difference is within the tolerance.
    """

    value: str
    item: str
    expected: float
    got: float
    tolerance: float
    ok: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """All numbers of one model.

    Attributes:
        model: Hub id.
        checks: One per number.
        ok: Whether all passed.
    """

    model: str
    checks: tuple[Check, ...]
    ok: bool

    def as_dict(self) -> dict[str, Any]:
        """Return the attributes as plain values, for JSON."""
        return asdict(self)

    def table(self) -> Table:
        """Return titles and rows, one row per number."""
        rows: list[Sequence[str]] = [
            (
                check.value,
                check.item,
                f"{check.expected:.6g}",
                f"{check.got:.6g}",
                f"{check.tolerance:g}",
                "ok" if check.ok else "WRONG",
            )
            for check in self.checks
        ]
        return ("VALUE", "OF", "EXPECTED", "GOT", "TOLERANCE", "OK"), rows


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """All published values, uncomputed.

    Attributes:
        values: The values.
        ok: Always true: nothing was compared.
    """

    values: tuple[PublishedValue, ...] = PUBLISHED
    ok: bool = True

    def as_dict(self) -> dict[str, Any]:
        """Return the values as plain ones, for JSON."""
        return {"values": [value.as_dict() for value in self.values]}

    def table(self) -> Table:
        """Return titles and rows, one row per published value."""
        rows: list[Sequence[str]] = [
            (value.model, value.title, str(len(value.expected)), value.printed_in, f"{value.tolerance:g}", value.source)
            for value in self.values
        ]
        return ("MODEL", "VALUE", "NUMBERS", "PRINTED IN", "TOLERANCE", "SOURCE"), rows


def published_values(model: str) -> list[PublishedValue]:
    """Return the published values of a model.

    Args:
        model: Hub id in any letter case, or its part after the slash.

    Raises:
        ConfigurationError: There are none; the message names the models that have some.
    """
    name = model.lower()
    found = [value for value in PUBLISHED if name in (value.model.lower(), value.model.lower().rpartition("/")[2])]
    if not found:
        models = ", ".join(dict.fromkeys(value.model for value in PUBLISHED))
        raise ConfigurationError(f"No published values are known of {model!r}. Models that have some: {models}.")
    return found


def verify(model: str) -> Verification:
    """Compute every published value of a model and compare.

    Args:
        model: Hub id in any letter case, or its part after the slash.

    Raises:
        ConfigurationError: The model has no published values.
        BGEError: The model cannot be loaded or run.
    """
    values = published_values(model)
    with ExitStack() as opened:
        checks = [check for value in values for check in _checks(value, _compute(value, opened))]
    return Verification(model=values[0].model, checks=tuple(checks), ok=all(check.ok for check in checks))


def labels(value: PublishedValue) -> list[str]:
    """Return what each expected number is, in their order."""
    if value.quantity == "vector":
        return [f"dimension {at}" for at in range(len(value.expected))]
    if value.quantity == "token_vectors":
        return [f"{part}: {_short(text)}" for text in value.passages for part in ("vectors", "dimensions")]
    if value.quantity == "lexical_weights":
        return [*(repr(token) for token, _ in value.tokens), "tokens with a weight"]
    if value.quantity == "score":
        pairs = list(zip(value.queries, value.passages, strict=True))
    else:
        pairs = [(query, passage) for query in value.queries for passage in value.passages]
    return [f"{_short(query)} | {_short(passage)}" for query, passage in pairs]


def _compute(value: PublishedValue, opened: ExitStack) -> list[float]:
    make = bge_runtime.Reranker if value.quantity == "score" else bge_runtime.Embedder
    precision = "float32" if value.printed_in == "float32" else None
    model = opened.enter_context(make(value.model, precision=precision, **value.options))
    return [float(number) for number in _WAYS[value.quantity](model, value)]


def _checks(value: PublishedValue, numbers: Sequence[float]) -> list[Check]:
    return [
        Check(
            value=value.title,
            item=label,
            expected=expected,
            got=got,
            tolerance=value.tolerance,
            ok=abs(got - expected) <= value.tolerance,  # NaN is not
        )
        for label, expected, got in zip(labels(value), value.expected, numbers, strict=True)
    ]


def _similarities(embedder: Any, value: PublishedValue) -> Any:
    return (embedder.encode_queries(value.queries) @ embedder.encode_documents(value.passages).T).ravel()


def _first_dimensions(embedder: Any, value: PublishedValue) -> Any:
    return embedder.encode_documents(value.passages)[0, : len(value.expected)]


def _lexical_weights(embedder: Any, value: PublishedValue) -> Any:
    (weights,) = embedder.encode_all(value.queries, outputs=("sparse",)).sparse
    return [*(weights.get(number, 0.0) for _, number in value.tokens), len(weights)]


def _shapes(embedder: Any, value: PublishedValue) -> Any:
    rows = embedder.encode_all(value.passages, outputs=("multi_vector",)).multi_vector
    return [size for vectors in rows for size in vectors.shape]


def _scores(reranker: Any, value: PublishedValue) -> Any:
    return reranker.score_pairs(list(zip(value.queries, value.passages, strict=True)))


_WAYS: dict[Quantity, Callable[[Any, PublishedValue], Any]] = {
    "similarity": _similarities,
    "vector": _first_dimensions,
    "lexical_weights": _lexical_weights,
    "token_vectors": _shapes,
    "score": _scores,
}


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
