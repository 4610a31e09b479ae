"""What a caller may choose about an LLM reranker: the layer that scores, the compression of documents, the prompt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bge_runtime.backends.base import LayerScore, Output
from bge_runtime.errors import ConfigurationError
from bge_runtime.models.spec import ModelSpec

__all__ = ["LLMOptions"]

RATIOS = (1, 2, 4, 8)
COMPRESSING = "cost_wise_gemma"
COMPRESS_LAYERS = (8,)  # FlagEmbedding's default


@dataclass(frozen=True, kw_only=True, slots=True)
class LLMOptions:
    """Options of an LLM reranker, each `None` for the model's own.

    Attributes:
        cutoff_layer: The layer whose score head is read; the last one.
        compress_ratio: How many neighbouring tokens of a document become one; 1.
        compress_layers: Before which layers; 8.
        prompt: The text behind query and document.
    """

    cutoff_layer: int | None = None
    compress_ratio: int | None = None
    compress_layers: tuple[int, ...] | None = None
    prompt: str | None = None

    @classmethod
    def checked(
        cls,
        cutoff_layers: int | Sequence[int] | None,
        compress_ratio: int | None,
        compress_layers: Sequence[int] | None,
        prompt: str | None,
    ) -> LLMOptions:
        """Build from what the caller gives.

        Raises:
            ConfigurationError: A value is wrong for every model.
        """
        is_number = isinstance(compress_ratio, int) and not isinstance(compress_ratio, bool)
        if compress_ratio is not None and not (is_number and compress_ratio in RATIOS):
            raise ConfigurationError(
                f"compress_ratio={compress_ratio!r} is not allowed. Use {', '.join(map(str, RATIOS))}, or None."
            )
        layers = None if compress_layers is None else _numbers(compress_layers, "compress_layers")
        if layers is not None and compress_ratio is None:
            raise ConfigurationError(f"compress_layers={list(layers)} does nothing without compress_ratio=. Pass both.")
        if prompt is not None and not isinstance(prompt, str):
            raise ConfigurationError(f"prompt={prompt!r} is not a string. Pass a string, or None for the model's own.")
        return cls(
            cutoff_layer=_one_layer(cutoff_layers),
            compress_ratio=compress_ratio,
            compress_layers=layers,
            prompt=None if prompt is None else str.__str__(prompt),  # the characters, whatever a subclass prints as
        )

    def check(self, spec: ModelSpec, name: str) -> None:
        """Refuse what a model does not have.

        Raises:
            ConfigurationError: Says what it has.
        """
        if self.prompt is not None and spec.score not in ("yes_logit", "layerwise"):
            raise ConfigurationError(f"{name!r} takes no prompt=. LLM rerankers do, such as bge-reranker-v2-gemma.")
        if self.cutoff_layer is not None:
            self._check_layers([self.cutoff_layer], spec, name)
        if self.compress_ratio is not None and spec.architecture != COMPRESSING:
            raise ConfigurationError(
                f"{name!r} cannot compress documents (compress_ratio={self.compress_ratio}). "
                "bge-reranker-v2.5-gemma2-lightweight can; leave it out for others."
            )
        if (
            self.compress_layers
            and spec.layers
            and not all(0 < layer < spec.layers[1] for layer in self.compress_layers)
        ):
            raise ConfigurationError(
                f"compress_layers={list(self.compress_layers)} are not all layers of {name!r} that can compress: "
                f"1 to {spec.layers[1] - 1}."
            )

    def output(self, spec: ModelSpec, layers: Sequence[int] = ()) -> Output:
        """Return what to ask of the model: at these layers, or at its own."""
        if spec.layers is None:
            return "score"
        ratio = self.compress_ratio or 1
        compress = COMPRESS_LAYERS if self.compress_layers is None else self.compress_layers
        return LayerScore(
            layers=tuple(layers) or (self.cutoff_layer or spec.layers[1],),
            compress_ratio=ratio,
            compress_layers=tuple(sorted(set(compress))) if ratio > 1 else (),
        )

    def layers(self, wanted: Iterable[int] | None, spec: ModelSpec, name: str) -> list[int]:
        """Return the layers asked for, ascending; `None` is all that have a score head.

        Raises:
            ConfigurationError: One has none.
        """
        self._check_layers([], spec, name)
        if wanted is None:
            assert spec.layers is not None
            return list(range(spec.layers[0], spec.layers[1] + 1))
        numbers = sorted(set(_numbers(wanted, "layers")))
        self._check_layers(numbers, spec, name)
        return numbers

    def identity(self, spec: ModelSpec) -> list[Any]:
        """Return what of it changes scores; nothing for models that take no options."""
        if spec.score not in ("yes_logit", "layerwise"):
            return []
        return [repr(self.output(spec)), self.prompt]

    def as_arguments(self) -> dict[str, Any]:
        """Return the arguments of `Reranker`."""
        return {
            "cutoff_layers": self.cutoff_layer,
            "compress_ratio": self.compress_ratio,
            "compress_layers": None if self.compress_layers is None else list(self.compress_layers),
            "prompt": self.prompt,
        }

    def _check_layers(self, layers: Sequence[int], spec: ModelSpec, name: str) -> None:
        if spec.layers is None:
            raise ConfigurationError(
                f"{name!r} has no score heads between its layers. Leave cutoff_layers= out, or use a layerwise "
                "reranker such as bge-reranker-v2-minicpm-layerwise."
            )
        wrong = [layer for layer in layers if not spec.layers[0] <= layer <= spec.layers[1]]
        if wrong:
            raise ConfigurationError(
                f"cutoff layer {', '.join(map(str, wrong))} of {name!r} has no score head. "
                f"Use {spec.layers[0]} to {spec.layers[1]}, or None."
            )


def _one_layer(given: int | Sequence[int] | None) -> int | None:
    if given is None:
        return None
    layers = _numbers([given] if isinstance(given, int) else given, "cutoff_layers")
    if len(layers) != 1:
        raise ConfigurationError(
            f"cutoff_layers={given!r} is not allowed: a score comes from one layer. Pass one number, and call "
            "score_layers(query, documents, layers=[...]) for the scores of several."
        )
    return layers[0]


def _numbers(given: Any, name: str) -> tuple[int, ...]:
    items = None if isinstance(given, str | bytes) or not isinstance(given, Iterable) else tuple(given)
    if not items or any(isinstance(item, bool) or not isinstance(item, int) for item in items):
        raise ConfigurationError(f"{name}={given!r} is not allowed. Pass whole numbers, such as [28].")
    return items
