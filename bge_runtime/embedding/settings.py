"""What an embedder does to texts, settled once when the model's facts are known; and the identity of the result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_runtime.backends.base import Output
from bge_runtime.embedding.instructions import Instructions, Role, resolve_instructions
from bge_runtime.errors import ConfigurationError
from bge_runtime.inputs.prepared import RoleText
from bge_runtime.inputs.tokenizing import Framed
from bge_runtime.loading.source import ModelSource
from bge_runtime.models.hub import weights_digest
from bge_runtime.models.spec import ModelSpec
from bge_runtime.vectors.similarity import unit_rows

__all__ = ["Encoding", "Vectors"]

Vectors = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoding:
    """How texts become vectors.

    Attributes:
        source: The model.
        instructions: The instructions in force.
        pooling: What a forward pass returns of a text.
        normalize: Whether vectors have length 1.
        truncate_dim: How many leading dimensions are kept; `None` keeps all.
        dimension: Length of a vector.
        max_length: Longest text in tokens.
    """

    source: ModelSource
    instructions: Instructions
    pooling: Output
    normalize: bool
    truncate_dim: int | None
    dimension: int
    max_length: int
    # By the query's side. Without a lock: it would hold up one model while the files of another are read.
    _digests: dict[tuple[str, ...], str] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def of(
        cls,
        source: ModelSource,
        given: Mapping[str, Any],
        *,
        normalize: bool | None,
        truncate_dim: int | None,
        max_length: int,
    ) -> Encoding:
        """Settle what the caller left to the model.

        Args:
            source: The model, whose facts are read.
            given: What the caller says of instructions, arguments of `resolve_instructions`.
            normalize: `None` does as the model's authors do.
            truncate_dim: `None` keeps all dimensions.
            max_length: Longest text in tokens.

        Raises:
            ConfigurationError: The model has fewer dimensions, or takes no such instructions.
        """
        spec: ModelSpec = source.spec
        if truncate_dim and spec.dimension and truncate_dim > spec.dimension:
            raise ConfigurationError(
                f"truncate_dim={truncate_dim} is more than the {spec.dimension} dimensions of {source.name!r}."
            )
        return cls(
            source=source,
            instructions=resolve_instructions(spec, **given),
            pooling=spec.pooling or "model",
            normalize=spec.normalize if normalize is None else normalize,
            truncate_dim=truncate_dim,
            dimension=truncate_dim or spec.dimension or 0,
            max_length=max_length,
        )

    def framed(self, texts: Sequence[str], role: Role) -> Sequence[str | Framed | RoleText]:
        """Return the texts as the model is to read them in this role."""
        if self.source.api == "bge":  # a server of ours puts them around texts
            return [RoleText(text, role) for text in texts]
        apply = self.instructions.apply
        return [apply(text, role) for text in texts]

    def scaled(self, rows: Sequence[Vectors], role: Role = "document") -> Vectors:
        """Return rows of a forward pass as vectors: cut to the dimension, of length 1 where that is wanted."""
        if not rows:
            return self.nothing
        stacked = np.stack(rows)
        if role == "query" and (query_map := self.source.query_map) is not None:
            stacked = query_map.apply(stacked)
        # Cut first: the length is to be 1 after it.
        vectors = stacked[:, : self.truncate_dim]
        return np.ascontiguousarray(unit_rows(vectors) if self.normalize else vectors, dtype=np.float32)

    @property
    def nothing(self) -> Vectors:
        """The vectors of no texts."""
        return np.empty((0, self.dimension), dtype=np.float32)

    @property
    def identity(self) -> str:
        """Digest of exactly what changes the vectors of queries."""
        instructions = self.instructions
        # Without an instruction the words around it do not matter, but a tail still does.
        template = instructions.query_format if instructions.query else instructions.query_tail
        more = filter(None, [instructions.examples, self.source.query_map_digest])
        return self._digest([instructions.query, template, *more])

    @property
    def document_identity(self) -> str:
        """Digest of exactly what changes the vectors of documents."""
        return self._digest([])

    @property
    def token_identity(self) -> str:
        """Digest of exactly what changes token vectors: neither instructions nor pooling."""
        source = self.source
        parts = [source.weights_digest, self.max_length, source.precision_class, source.vector_arguments]
        return digest(["tokens with their length", *parts])

    @property
    def output_identity(self) -> str:
        """Digest of exactly what changes the outputs of further heads."""
        return f"{self.token_identity} {weights_digest(self.source.folder, heads=True)}"

    def _digest(self, query_side: Sequence[str]) -> str:
        key = tuple(query_side)
        if key not in self._digests:
            source, instructions = self.source, self.instructions
            self._digests[key] = digest(
                [
                    source.weights_digest,
                    source.spec.pooling,
                    self.normalize,
                    self.dimension,
                    self.max_length,
                    instructions.document,
                    source.precision_class,
                    source.vector_arguments,
                    *(["joined lines"] if instructions.joins_lines else []),
                    *query_side,
                ]
            )
        return self._digests[key]


def digest(parts: Sequence[object]) -> str:
    """Return what identities are made of. Indexes in the field carry them: not one byte of this may change."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
