"""The models of a server, by the name that clients use, with their role."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bge_runtime import ConfigurationError, Embedder, ModelNotFoundError, Reranker, VisionEmbedder
from bge_runtime.serving.settings import ModelSettings

__all__ = ["Asked", "Models", "Role", "Served"]

Role = Literal["query", "document"]
ROLES = ("query", "document")
# Of one model: each is a view of the same weights.
MOST_VIEWS = 16


class Served:
    """One model: an embedder, which reranks by late interaction too, or a reranker.

    Attributes:
        name: What clients call it.
        settings: What was asked for.
    """

    def __init__(self, settings: ModelSettings) -> None:
        """Describe the model, and read the facts that need its files, but no weights.

        Raises:
            BGEError: It cannot be found or run.
        """
        self.name = settings.shown
        self.settings = settings
        shared: dict[str, Any] = {
            "max_length": settings.max_length,
            "truncation": "silent",
            "device": settings.device,
            "devices": list(settings.devices) if settings.devices else None,
            "precision": settings.precision,
            "backend": settings.backend,
            "keep_alive_s": settings.keep_alive_s,
            "revision": settings.revision,
            "adapter": settings.adapter,
        }
        self._embedder: Embedder | None = None
        self._reranker: Reranker | None = None
        self._views: dict[int, Embedder] = {}
        self._rankings: dict[tuple[bool, int | None], Reranker] = {}
        self._is_warm = False
        try:
            first = Reranker(settings.model, normalize=bool(settings.normalize), **shared)
            kind = first.spec.kind
        except ConfigurationError as error:
            # Of pictures, by which nothing is reranked; whatever else is wrong is told as it was.
            try:
                self._embedder = VisionEmbedder(settings.model, normalize=settings.normalize, **shared)
                _ = self._embedder.identity
            except ConfigurationError:
                raise error from None
            return
        if kind == "reranker":
            given = settings.model_dump(include={"query_instruction", "document_instruction"}, exclude_none=True)
            if given:
                raise ConfigurationError(f"{settings.model!r} is a reranker and has no instructions: {given!r}.")
            self._reranker = first
            return
        self._embedder = Embedder(
            settings.model,
            query_instruction=settings.query_instruction,
            document_instruction=settings.document_instruction,
            normalize=settings.normalize,
            **shared,
        )
        self._reranker = Reranker(self._embedder)
        _ = self._embedder.identity

    @property
    def kind(self) -> Literal["embedder", "reranker"]:
        """Whether it embeds; whatever embeds texts alone reranks too."""
        return "reranker" if self._embedder is None else "embedder"

    @property
    def reranker(self) -> Reranker:
        """What scores pairs.

        Raises:
            ConfigurationError: It is an embedder of pictures.
        """
        if self._reranker is None:
            raise ConfigurationError(f"{self.name!r} embeds pictures and texts, and reranks nothing. Use /v1/encode.")
        return self._reranker

    @property
    def reranks(self) -> bool:
        """Whether it scores pairs."""
        return self._reranker is not None

    def vision(self) -> VisionEmbedder:
        """Return the embedder of pictures.

        Raises:
            ConfigurationError: It is none.
        """
        if not isinstance(self._embedder, VisionEmbedder):
            raise ConfigurationError(f"{self.name!r} reads no pictures, as BAAI/BGE-VL-base does. Send texts=.")
        return self._embedder

    @property
    def main(self) -> Embedder | Reranker:
        """The embedder, or else the reranker."""
        return self.reranker if self._embedder is None else self._embedder

    def embedder(self, dimensions: int | None = None) -> Embedder:
        """Return the embedder, with vectors cut to some dimensions.

        Raises:
            ConfigurationError: It is a reranker, or has no so many dimensions.
        """
        if self._embedder is None:
            raise ConfigurationError(f"{self.name!r} is a reranker, which has no vectors. Use /v1/rerank.")
        if dimensions is None or dimensions == self._embedder.dimension:
            return self._embedder
        if not 0 < dimensions < self._embedder.dimension:
            raise ConfigurationError(
                f"dimensions={dimensions!r} is not allowed. Pass 1 to {self._embedder.dimension}, or leave it out."
            )
        if dimensions not in self._views:
            if len(self._views) >= MOST_VIEWS:
                self._views.pop(next(iter(self._views)))
            options = {**self._embedder.options(), "truncate_dim": dimensions}
            self._views[dimensions] = type(self._embedder)(**options)
        return self._views[dimensions]

    def ranking(self, *, normalize: bool | None = None, cutoff_layers: int | None = None) -> Reranker:
        """Return the reranker, with another scale or layer than its own; each is a view of the same weights.

        Raises:
            ConfigurationError: The model has no such layer.
        """
        wanted = (self.reranker.normalize if normalize is None else normalize, cutoff_layers)
        if wanted == (self.reranker.normalize, None):
            return self.reranker
        if wanted not in self._rankings:
            options = {**self.reranker.options(), "normalize": wanted[0]}
            if cutoff_layers is not None:
                options["cutoff_layers"] = cutoff_layers
            if len(self._rankings) >= MOST_VIEWS:
                self._rankings.pop(next(iter(self._rankings)))
            self._rankings[wanted] = Reranker(**options)
        return self._rankings[wanted]

    async def warm_up(self) -> None:
        """Have the weights in memory: what counts tokens would load them, and hold up everybody else's requests."""
        # Weights that are freed when idle are asked for each time.
        if self._is_warm and self.settings.keep_alive_s is None:
            return
        await self.main.awarm_up()
        self._is_warm = True

    async def close(self) -> None:
        """Give the weights back."""
        self._is_warm = False
        for each in (*self._views.values(), *self._rankings.values(), self._reranker, self._embedder):
            if each is not None:
                await each.aclose()


@dataclass(frozen=True, slots=True)
class Asked:
    """A model, and the role that its name says; `None` where it says none."""

    served: Served
    role: Role | None


class Models:
    """All models of a server."""

    def __init__(self, settings: Sequence[ModelSettings]) -> None:
        """Describe each.

        Raises:
            BGEError: One cannot be found or run.
        """
        self.all = {each.shown: Served(each) for each in settings}
        # As models are named elsewhere: in any letter case, or by the part after the slash.
        self._short: dict[str, str | None] = {}
        for name in self.all:
            for short in {name.lower(), name.rsplit("/", 1)[-1].lower()}:
                self._short[short] = None if short in self._short else name

    def find(self, name: str) -> Asked:
        """Return the model that a client names, `NAME` or `NAME:query`.

        Raises:
            ModelNotFoundError: Names those that are served.
        """
        head, _, tail = name.rpartition(":")
        bare, role = (head, tail) if tail in ROLES else (name, None)
        known = bare if bare in self.all else self._short.get(bare.lower())
        if known is None:
            raise ModelNotFoundError(f"{name[:200]!r} is not served here. There is {', '.join(map(repr, self.all))}.")
        return Asked(self.all[known], role)  # type: ignore[arg-type]

    def first(self, kind: Literal["embedder", "reranker"]) -> Asked:
        """Return what answers where a format names no model: the first of the kind; an embedder reranks too.

        Raises:
            ModelNotFoundError: There is none.
        """
        found = next((each for each in self.all.values() if each.kind == kind), None)
        if found is None and kind == "reranker":
            found = next((each for each in self.all.values() if each.reranks), None)
        if found is None:
            raise ModelNotFoundError(f"No {kind} is served here. There is {', '.join(map(repr, self.all))}.")
        return Asked(found, None)

    async def load(self) -> None:
        """Read the weights of those that are to be ready at the start."""
        await asyncio.gather(*(each.warm_up() for each in self.all.values() if each.settings.load == "start"))

    async def close(self) -> None:
        """Give all weights back."""
        await asyncio.gather(*(each.close() for each in self.all.values()))
