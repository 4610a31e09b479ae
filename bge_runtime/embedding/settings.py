"""Checked texts to vectors: instructions, cache, forward passes, scaling; and the identity of the result."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from bge_runtime.backends import Output
from bge_runtime.embedding.instructions import Framed, Instructions, Role, resolve_instructions
from bge_runtime.engine.deadline import Deadline
from bge_runtime.engine.flow import Steps
from bge_runtime.errors import ConfigurationError
from bge_runtime.inputs.checks import check_count, check_texts
from bge_runtime.loading.model import Model, Rows
from bge_runtime.loading.source import ModelSource
from bge_runtime.loading.store import STORE, LoadedModel
from bge_runtime.models.hub import weights_digest
from bge_runtime.models.spec import ModelSpec
from bge_runtime.vectors.cache import VectorCache, cached_vectors, check_cache

__all__ = ["TextEncoder", "unit_rows"]

# Between two writes into the vector cache: little is lost with the process, and batches fill all the same.
BATCHES_PER_WRITE = 8
CHARACTERS_PER_TOKEN = 4


class TextEncoder(Model):
    """What makes vectors of texts."""

    def __init__(
        self,
        source: ModelSource,
        instructions: Mapping[str, Any],
        *,
        normalize: bool | None,
        truncate_dim: int | None,
        vector_cache: VectorCache | str | os.PathLike[str] | None,
        **options: Any,
    ) -> None:
        """Check the options.

        Args:
            source: The model.
            instructions: What the caller says of instructions, arguments of `resolve_instructions`.
            normalize: Whether vectors have length 1.
            truncate_dim: How many leading dimensions to keep.
            vector_cache: Remembers vectors.
            **options: Those of `Model`.
        """
        self._given = dict(instructions)
        self._normalize = normalize
        self._cache = check_cache(vector_cache)
        self._truncate_dim = check_count(truncate_dim, "truncate_dim")
        super().__init__(source, **options)

    @property
    def query_instruction(self) -> str:
        """Instruction that queries get; empty when none."""
        return self._instructions.query

    @property
    def document_instruction(self) -> str:
        """Instruction that documents get; empty when none."""
        return self._instructions.document

    @property
    def normalize(self) -> bool:
        """Whether vectors have length 1."""
        return self.spec.normalize if self._normalize is None else self._normalize

    @property
    def dimension(self) -> int:
        """Length of a vector; known without loading weights."""
        return self._truncate_dim or self.spec.dimension or 0

    @property
    def vector_cache(self) -> VectorCache | None:
        """Where vectors are remembered."""
        return self._cache

    @property
    def identity(self) -> str:
        """Digest of exactly what changes vectors; needs the model's files, not its weights in memory.

        Weights, instructions, pooling, normalisation, dimension, maximum length and the precision class are part
        of it; device, float width and batching are not.
        """
        instructions = self._instructions
        template = instructions.query_format if instructions.query else instructions.query_tail
        return self._digest([instructions.query, template, *filter(None, [instructions.examples])])

    @property
    def token_identity(self) -> str:
        """Like `identity`, for `encode_tokens`: neither instructions nor pooling matter."""
        source = self.source
        parts = [
            "tokens with their length",
            source.weights_digest,
            self.max_length,
            source.precision_class,
            source.vector_arguments,
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]

    @property
    def output_identity(self) -> str:
        """Like `token_identity`, for the outputs of further heads."""
        return f"{self.token_identity} {weights_digest(self.source.folder, heads=True)}"

    @property
    def document_identity(self) -> str:
        """Like `identity`, without the query side: what an index of documents depends on."""
        return self._digest([])

    def warm_up(self) -> Self:
        """Load the weights ahead of the first call."""
        self._acquire()
        return self

    def token_steps(
        self,
        texts: Sequence[str],
        *,
        bulk: bool = False,
        overlap: int | None = None,
        deadline: Deadline | None = None,
    ) -> Steps[Rows]:
        """Body of `encode_tokens`, for late interaction.

        Args:
            texts: Checked texts.
            bulk: Whether interactive work goes first.
            overlap: Tokens shared by two passages of a text that is too long; `None` cuts it.
            deadline: When to stop.
        """
        loaded = self._acquire()
        tokenize = partial(loaded.tokenizing.texts, overlap=overlap)
        rows = yield from self._rows(
            loaded, texts, tokenize, "tokens", bulk=bulk, show_progress=False, deadline=deadline
        )
        rows.values = [unit_rows(row) for row in rows.values]
        return rows

    def cosine_steps(self, query: str, documents: Sequence[str]) -> Steps[NDArray[np.float32]]:
        """Body of the dense score of a query and documents, whatever `normalize` says."""
        query_vectors = yield from self._vectors([query], "query", False)
        vectors = yield from self._vectors(documents, "document", False)
        return np.asarray(unit_rows(vectors) @ unit_rows(query_vectors)[0], dtype=np.float32)

    @property
    def _instructions(self) -> Instructions:
        return resolve_instructions(self.spec, **self._given)

    def _check_spec(self, spec: ModelSpec) -> None:
        super()._check_spec(spec)
        if spec.kind not in ("embedder", "vision"):
            raise ConfigurationError(f"{self.model!r} is a {spec.kind}, not an embedder. Use Reranker for it.")
        if self._truncate_dim and spec.dimension and self._truncate_dim > spec.dimension:
            raise ConfigurationError(
                f"truncate_dim={self._truncate_dim} is more than the {spec.dimension} dimensions of {self.model!r}."
            )
        resolve_instructions(spec, **self._given)

    def _acquire(self) -> LoadedModel:
        return self._hold("embed")

    def _vectors(self, texts: Iterable[str], role: Role, show_progress: bool | None) -> Steps[NDArray[np.float32]]:
        checked = check_texts(texts)
        if not checked:
            return np.empty((0, self.dimension), dtype=np.float32)
        distinct = list(dict.fromkeys(checked))
        STORE.counters.add(texts=len(checked), duplicates=len(checked) - len(distinct))
        if self._cache is None:
            vectors = yield from self._computed(distinct, role, show_progress)
        else:
            identity = f"{role}:{self.identity if role == 'query' else self.document_identity}"
            with self._progress(len(distinct), show_progress) as progress:
                vectors = yield from cached_vectors(
                    self._cache,
                    identity,
                    distinct,
                    lambda part: self._computed(part, role, False),
                    self._portion,
                    progress.update,
                )
        if len(distinct) < len(checked):
            position = {text: index for index, text in enumerate(distinct)}
            vectors = vectors[[position[text] for text in checked]]
        return vectors

    def _computed(self, texts: Sequence[str], role: Role, show_progress: bool | None) -> Steps[NDArray[np.float32]]:
        """Compute one vector per text."""
        pooling: Output = self.spec.pooling or "model"
        loaded = self._acquire()
        rows = yield from self._rows(
            loaded,
            self._applied(texts, role),
            loaded.tokenizing.texts,
            pooling,
            bulk=role == "document",
            show_progress=show_progress,
        )
        self._note_truncation(rows.cut, len(texts))
        return self._scaled(rows.values)

    def _applied(self, texts: Sequence[str], role: Role) -> list[str | Framed]:
        instructions = self._instructions
        return [instructions.apply(text, role) for text in texts]

    def _scaled(self, rows: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        if not rows:
            return np.empty((0, self.dimension), dtype=np.float32)
        vectors = np.stack(rows)[:, : self._truncate_dim]
        return np.ascontiguousarray(unit_rows(vectors) if self.normalize else vectors, dtype=np.float32)

    def _portion(self) -> int:
        return BATCHES_PER_WRITE * CHARACTERS_PER_TOKEN * (self._batch_tokens or self._acquire().batch_tokens)

    def _digest(self, query_side: list[str]) -> str:
        parts = [
            self.source.weights_digest,
            self.spec.pooling,
            self.normalize,
            self.dimension,
            self.max_length,
            self.document_instruction,
            self.source.precision_class,
            self.source.vector_arguments,
            *(["joined lines"] if self._instructions.joins_lines else []),
            *query_side,
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def unit_rows(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the rows scaled to length 1, in float32; a zero row stays zero."""
    norms = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.asarray(rows / np.maximum(norms, 1e-12), dtype=np.float32)
