"""One way of retrieving: what `bge eval --compare` varies, and the line of code that asks for it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from bge_runtime import ConfigurationError, Embedder, Reranker, VectorCache
from bge_runtime.evaluation.subjects import BITS, ModelSubject

__all__ = ["AXES", "Setting", "parse_axes", "settings_of"]

NO_RERANKING = "none"
LATE_INTERACTION = "late_interaction"
DEFAULT = "default"
FITTED = "fit"
# What each axis takes, for messages.
AXES = {
    "model": "names or folders of embedding models",
    "instruction": "'default' (the model's own), 'none', or the text of a query instruction",
    "precision": "float32, bfloat16, float16, int8, auto",
    "backend": "packed, torch, onnx, openvino, auto",
    "truncate_dim": "leading dimensions to keep, or 'all'",
    "bits": ", ".join(BITS),
    "chunk_tokens": "most tokens of a chunk, or 'whole' documents",
    "rerank": "'none', 'late_interaction' (with the same weights), or the name of a reranker",
    "depth": "how many candidates are reranked",
    "token_pooling": "token vectors merged into one, 1 to 8; for late_interaction",
    "cutoff_layers": "layer of a layerwise reranker that scores, or 'last'",
    "weights": "of dense, sparse and multi-vector scores (bge-m3), as 0.4/0.2/0.4, or 'fit'",
}
OTHER_NAMES = {"reranker": "rerank", "chunk_size": "chunk_tokens", "query_instruction": "instruction"}
NUMBERS = {
    "truncate_dim": "all",
    "chunk_tokens": "whole",
    "depth": None,
    "token_pooling": None,
    "cutoff_layers": "last",
}
CHOICES = {"bits": BITS}
_WEIGHTS = re.compile(r"([0-9.]+)/([0-9.]+)/([0-9.]+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One way of retrieving; the names are those of `AXES`."""

    model: str
    instruction: str | None = None
    precision: str | None = None
    backend: str | None = None
    truncate_dim: int | None = None
    bits: str = "float32"
    chunk_tokens: int | None = None
    rerank: str | None = None
    depth: int = 100
    token_pooling: int = 1
    cutoff_layers: int | None = None
    weights: str | None = None

    def label(self, varied: Iterable[str]) -> str:
        """Return what tells it from the others: the values of the axes that vary."""
        shown = [f"{name}={_shown(name, getattr(self, name))}" for name in varied if self._matters(name)]
        return " ".join(shown) or self.model

    def subject(
        self, cache: VectorCache | None, *, show_progress: bool = False, mode: str | None = None
    ) -> ModelSubject:
        """Return what ranks in this way; nothing is loaded.

        Args:
            cache: Remembers vectors and scores.
            show_progress: Whether to show progress bars.
            mode: How the reranker compares, in place of the setting's own weights.
        """
        kept = None if cache is None else self._apart(cache)
        options = {**self._reranker_options(), **({} if mode is None else {"mode": mode})}
        reranker = None if self.rerank is None else Reranker(**options, truncation="silent")
        return ModelSubject(
            Embedder(**self._embedder_options(), vector_cache=kept, truncation="silent"),
            reranker=reranker,
            depth=self.depth,
            bits=self.bits,
            chunk_tokens=self.chunk_tokens,
            cache=kept,
            show_progress=show_progress,
        )

    def _apart(self, cache: VectorCache) -> VectorCache:
        """Return a cache of this precision and backend alone.

        A vector of bfloat16 is as good as one of float32 to an index, and has the same identity: from one cache, each
        would be compared with itself.
        """
        usual = Embedder(self.model)
        own = Embedder(**self._embedder_options())
        if own.precision == usual.precision and self.backend is None:
            return cache
        if cache.path is None:
            return VectorCache(max_bytes=cache.max_bytes, storage=cache.storage)
        name = f"{cache.path.stem}.{self.backend or 'auto'}-{own.precision}{cache.path.suffix}"
        return VectorCache(cache.path.with_name(name), max_bytes=cache.max_bytes, storage=cache.storage)

    def code(self) -> str:
        """Return the LangChain code that asks for it."""
        options = self._embedder_options()
        embeddings = f"BGEEmbeddings({_arguments(options)})"
        packed = "" if self.bits == "float32" else f"  # documents by quantize_embeddings(vectors, {self.bits!r})"
        if self.rerank is None:
            return f"embeddings = {embeddings}{packed}"
        rerank = f"BGERerank({_arguments(self._reranker_options())})"
        return f"embeddings, rerank = {embeddings}, {rerank}  # BGERetriever(..., fetch_k={self.depth}){packed}"

    def _matters(self, name: str) -> bool:
        needs = {"depth": self.rerank, "token_pooling": self.rerank == LATE_INTERACTION, "cutoff_layers": self.rerank}
        return bool(needs.get(name, True))

    def simplified(self) -> Setting:
        """Return the setting without what has no meaning for it, so that the grid holds nothing twice."""
        plain: dict[str, Any] = {each.name: each.default for each in fields(self)}
        return replace(self, **{name: plain[name] for name in AXES if not self._matters(name)})

    def without_reranker(self) -> Setting:
        """Return the same with the first stage alone."""
        return replace(self, rerank=None, weights=None).simplified()

    def _embedder_options(self) -> dict[str, Any]:
        options = {
            "model": self.model,
            "query_instruction": self.instruction,
            "truncate_dim": self.truncate_dim,
            "precision": self.precision,
            "backend": self.backend,
        }
        return {name: value for name, value in options.items() if value is not None}

    def _reranker_options(self) -> dict[str, Any]:
        same = self.rerank == LATE_INTERACTION
        weights = (
            None if self.weights in (None, FITTED) else tuple(float(each) for each in str(self.weights).split("/"))
        )
        options = {
            "model": self.model if same else self.rerank,
            "precision": self.precision,
            "backend": self.backend,
            "token_pooling": self.token_pooling if self.token_pooling != 1 else None,
            "cutoff_layers": self.cutoff_layers,
            "mode": "hybrid" if weights else None,
            "weights": weights,
        }
        return {name: value for name, value in options.items() if value is not None}


def parse_axes(given: Sequence[str]) -> dict[str, list[str]]:
    """Return axes and values of arguments such as `precision=float32,int8`.

    Raises:
        ConfigurationError: An axis does not exist, stands twice, or has no or twice the same value.
    """
    axes: dict[str, list[str]] = {}
    for each in given:
        name, equals, told = each.partition("=")
        name = OTHER_NAMES.get(name.strip(), name.strip())
        # An instruction is a sentence, which may hold commas: alternatives then stand between bars.
        values = [value.strip() for value in told.split("|" if "|" in told else ",")]
        if not equals or name not in AXES or not all(values):
            raise ConfigurationError(
                f"--compare {each!r} is not allowed. Write AXIS=VALUE,VALUE with one of: {_help()}"
            )
        if name in axes or len(set(values)) < len(values):
            raise ConfigurationError(f"--compare {each!r} says {name!r}, or one of its values, twice. Say each once.")
        axes[name] = values
    return axes


def settings_of(model: str, axes: Mapping[str, Sequence[str]]) -> list[Setting]:
    """Return every combination of values, those that mean the same once.

    Raises:
        ConfigurationError: A value is not allowed, or an axis applies to nothing.
    """
    names = list(axes)
    found = []
    for values in itertools.product(*axes.values()):
        told = {name: _value(name, value) for name, value in zip(names, values, strict=True)}
        if told.get("weights") is not None and told.get("rerank") is None:
            told["rerank"] = LATE_INTERACTION
        found.append(Setting(**{"model": model, **told}))
    for name in names:
        if not any(each._matters(name) for each in found):
            raise ConfigurationError(
                f"--compare {name}=... applies to nothing here: it is for {AXES[name]}, with a reranker. "
                "Add rerank=late_interaction, or leave it out."
            )
    return list(dict.fromkeys(each.simplified() for each in found))


def _value(name: str, value: str) -> Any:
    if name in NUMBERS:
        if value == NUMBERS[name]:
            return None
        if not value.isascii() or not value.isdigit() or not int(value):
            raise ConfigurationError(f"--compare {name}={value!r} is not allowed. It takes: {AXES[name]}.")
        return int(value)
    if name in CHOICES and value not in CHOICES[name]:
        raise ConfigurationError(f"--compare {name}={value!r} is not allowed. It takes: {AXES[name]}.")
    if name == "weights" and value != FITTED and not _WEIGHTS.fullmatch(value):
        raise ConfigurationError(f"--compare {name}={value!r} is not allowed. It takes: {AXES[name]}.")
    if value == {"rerank": NO_RERANKING, "precision": "auto", "backend": "auto"}.get(name):
        return None
    if name == "instruction":
        return {DEFAULT: None, "none": ""}.get(value, value)
    return value


def _shown(name: str, value: Any) -> str:
    if name == "instruction":
        return DEFAULT if value is None else repr(value) if value else "none"
    if value is None:
        return str({"rerank": NO_RERANKING, **NUMBERS}.get(name, "auto"))
    return str(value)


def _arguments(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in options.items())


def _help() -> str:
    return "; ".join(f"{name} ({what})" for name, what in AXES.items())
