"""Texts to vectors."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from bge_runtime.backends import Output
from bge_runtime.cache import VectorCache, cached_vectors, check_cache
from bge_runtime.deadline import Deadline
from bge_runtime.errors import ConfigurationError
from bge_runtime.inputs import check_count, check_text, check_texts
from bge_runtime.instructions import Instructions, Role, resolve_instructions
from bge_runtime.loading import STORE, LoadedModel
from bge_runtime.model import Model, Rows, Truncation
from bge_runtime.source import ModelSource
from bge_runtime.spec import DEFAULT_EMBEDDER, ModelSpec
from bge_runtime.steps import Steps, arun, run

__all__ = ["Embedder", "unit_rows"]

# Between two writes into the vector cache: little is lost with the process, and batches fill all the same.
BATCHES_PER_WRITE = 8
CHARACTERS_PER_TOKEN = 4


class Embedder(Model):
    """An embedding model: queries and documents in, float32 vectors out.

    Nothing is loaded before the first call. Embedders that differ only in instructions, lengths, pooling or
    normalisation share one copy of the weights and one queue with every other caller in the process.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | ModelSpec = DEFAULT_EMBEDDER,
        *,
        query_instruction: str | None = None,
        document_instruction: str | None = None,
        task: str | None = None,
        legacy: bool = False,
        normalize: bool | None = None,
        truncate_dim: int | None = None,
        max_length: int | None = None,
        truncation: Truncation = "warn",
        batch_size: int | None = None,
        batch_tokens: int | None = None,
        show_progress: bool = False,
        vector_cache: VectorCache | str | os.PathLike[str] | None = None,
        device: str | None = None,
        precision: str | None = None,
        backend: str = "auto",
        calibration: str | os.PathLike[str] | None = None,
        devices: Sequence[str] | None = None,
        keep_alive_s: float | None = None,
        revision: str | None = None,
        token: str | None = None,
        cache_folder: str | None = None,
        local_files_only: bool = False,
        trust_remote_code: bool = False,
        base_model: str | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        processor_kwargs: Mapping[str, Any] | None = None,
        config_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """Describe the model; errors that need no files are raised here.

        Args:
            model: Hub id (any letter case), its part after the slash, a folder, or a `ModelSpec`.
            query_instruction: Text for queries; `""` turns it off, `None` takes the model's own.
            document_instruction: The same for documents; BGE models want none, but for llm-embedder.
            task: Named pair of instructions, for models that have some (llm-embedder).
            legacy: Whether to read texts as `HuggingFaceBgeEmbeddings` did, for indexes that it filled: an English
                instruction with "question" instead of "sentence", and newlines as spaces.
            normalize: Whether vectors have length 1; `None` does as the model's authors do.
            truncate_dim: Keep this many leading dimensions, before normalising.
            max_length: Longest input in tokens; `None` takes the model's own.
            truncation: What to do about longer texts: cut `silent`, cut and `warn` once per call, or `error`.
            batch_size: Most texts in a forward pass; `None` sets no limit.
            batch_tokens: Most padded tokens in a forward pass; `None` takes the device's default.
            show_progress: Whether to show a progress bar on standard error.
            vector_cache: Remembers vectors: a `VectorCache`, or the path of its file; `None` remembers nothing.
            device: `cpu`, `cuda`, `cuda:N`, `mps`; `None` chooses.
            precision: `float32`, `float16`, `bfloat16`, `int8` (CPUs); `None` chooses: float32 on CPUs.
            backend: Way of executing: `packed`, `torch`, `onnx`, `openvino`; `auto` chooses.
            calibration: File with one text per line, like those to embed, that an int8 export is calibrated on.
            devices: Devices that each hold a replica and work off one queue, instead of `device`.
            keep_alive_s: Seconds without work after which the weights are freed, until the next call; `None` never.
            revision: Branch, tag or commit on the hub.
            token: Access token for private models.
            cache_folder: Hugging Face cache folder; `None` is the usual one.
            local_files_only: Never use the network.
            trust_remote_code: Whether the repository's own Python code may run.
            base_model: Row of the model table that a fine-tuned model comes from.
            model_kwargs: Extra arguments for the transformers model.
            processor_kwargs: Extra arguments for the tokenizer.
            config_kwargs: Extra arguments for the configuration.

        Raises:
            ConfigurationError: An argument has a wrong value.
            ModelNotFoundError: The name cannot be a model.
            UnsupportedModelError: The model's kind cannot run.
        """
        self._given: dict[str, Any] = {
            "query_instruction": query_instruction,
            "document_instruction": document_instruction,
            "task": task,
            "legacy": legacy,
        }
        self._normalize = normalize
        self._cache = check_cache(vector_cache)
        self._truncate_dim = check_count(truncate_dim, "truncate_dim")
        source = ModelSource(
            model=model,
            device=device,
            precision=precision,
            backend=backend,
            calibration=calibration,
            devices=devices,
            keep_alive_s=keep_alive_s,
            revision=revision,
            token=token,
            cache_folder=cache_folder,
            local_files_only=local_files_only,
            trust_remote_code=trust_remote_code,
            base_model=base_model,
            model_kwargs=model_kwargs or {},
            processor_kwargs=processor_kwargs or {},
            config_kwargs=config_kwargs or {},
        )
        super().__init__(
            source,
            max_length=max_length,
            truncation=truncation,
            batch_size=batch_size,
            batch_tokens=batch_tokens,
            show_progress=show_progress,
        )

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
        return self._digest([instructions.query, instructions.query_format if instructions.query else ""])

    @property
    def token_identity(self) -> str:
        """Like `identity`, for `encode_tokens`: neither instructions nor pooling matter."""
        source = self.source
        parts = ["tokens", source.weights_digest, self.max_length, source.precision_class, source.vector_arguments]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]

    @property
    def document_identity(self) -> str:
        """Like `identity`, without the query side: what an index of documents depends on."""
        return self._digest([])

    def encode_queries(self, texts: Iterable[str], *, show_progress: bool | None = None) -> NDArray[np.float32]:
        """Embed queries, each with the query instruction.

        Args:
            texts: Queries; any iterable of strings.
            show_progress: Overrides the constructor's value.

        Returns:
            Array float32 of shape (number of texts, dimension), rows in input order.

        Raises:
            InputError: Something is not a string, or too long with `truncation="error"`.
            BackendError: The computation failed.
        """
        return run(self._vectors(texts, "query", show_progress))

    def encode_documents(self, texts: Iterable[str], *, show_progress: bool | None = None) -> NDArray[np.float32]:
        """Embed documents; see `encode_queries`."""
        return run(self._vectors(texts, "document", show_progress))

    async def aencode_queries(self, texts: Iterable[str], *, show_progress: bool | None = None) -> NDArray[np.float32]:
        """Embed queries without blocking the event loop; see `encode_queries`."""
        return await arun(self._vectors(texts, "query", show_progress), STORE.pool)

    async def aencode_documents(
        self, texts: Iterable[str], *, show_progress: bool | None = None
    ) -> NDArray[np.float32]:
        """Embed documents without blocking the event loop; see `encode_queries`."""
        return await arun(self._vectors(texts, "document", show_progress), STORE.pool)

    def stream_documents(self, texts: Iterable[str], *, window: int = 2048) -> Iterator[NDArray[np.float32]]:
        """Embed documents from any iterable, holding `window` of them at a time.

        Yields:
            Arrays float32 of shape (at most `window`, dimension), in input order.
        """
        size = check_count(window, "window") or 2048
        if isinstance(texts, str | bytes):
            check_texts(texts)
        items = iter(texts)
        while block := list(islice(items, size)):
            yield self.encode_documents(block, show_progress=False)

    def encode_tokens(self, texts: Iterable[str], *, role: Role = "document") -> list[NDArray[np.float32]]:
        """Return the L2-normalised vector of every token, special tokens included, without any instruction.

        Returns:
            One array float32 of shape (tokens, hidden size) per text, in input order.
        """
        rows = run(self.token_steps(check_texts(texts), bulk=role == "document"))
        self._note_truncation(rows.cut, len(rows.values))
        return rows.values

    def count_tokens(self, texts: Iterable[str]) -> list[int]:
        """Return how many tokens each text has, special tokens included, uncut and without instructions."""
        return self._acquire().tokenizing.count(check_texts(texts))

    def token_offsets(self, text: str) -> list[tuple[int, int]]:
        """Return start and end, in characters, of every content token of `text`."""
        return self._acquire().tokenizing.offsets(check_text(text))

    def options(self) -> dict[str, Any]:
        """Return the constructor's arguments, without the access token."""
        return {
            **self._shared_options(),
            **self._given,
            "vector_cache": self._cache,
            "normalize": self._normalize,
            "truncate_dim": self._truncate_dim,
        }

    def __repr__(self) -> str:
        """Show the model and the instructions in force."""
        known = self.source.known_spec is not None
        shown = f"query_instruction={self.query_instruction!r}, " if known else ""
        return f"Embedder({self.model!r}, {shown}max_length={self.max_length if known else self._max_length})"

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
        if spec.kind != "embedder":
            raise ConfigurationError(f"{self.model!r} is a {spec.kind}, not an embedder. Use Reranker for it.")
        if self._truncate_dim and spec.dimension and self._truncate_dim > spec.dimension:
            raise ConfigurationError(
                f"truncate_dim={self._truncate_dim} is more than the {spec.dimension} dimensions of {self.model!r}."
            )
        resolve_instructions(spec, **self._given)

    def warm_up(self) -> Self:
        """Load the weights ahead of the first call."""
        self._acquire()
        return self

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
            vectors = yield from cached_vectors(
                self._cache,
                identity,
                distinct,
                lambda part: self._computed(part, role, show_progress),
                self._portion,
            )
        if len(distinct) < len(checked):
            position = {text: index for index, text in enumerate(distinct)}
            vectors = vectors[[position[text] for text in checked]]
        return vectors

    def _computed(self, texts: Sequence[str], role: Role, show_progress: bool | None) -> Steps[NDArray[np.float32]]:
        """Compute one vector per text."""
        instructions = self._instructions
        pooling: Output = self.spec.pooling or "model"
        loaded = self._acquire()
        rows = yield from self._rows(
            loaded,
            [instructions.apply(text, role) for text in texts],
            loaded.tokenizing.texts,
            pooling,
            bulk=role == "document",
            show_progress=show_progress,
        )
        self._note_truncation(rows.cut, len(texts))
        vectors = np.stack(rows.values)[:, : self._truncate_dim]
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
