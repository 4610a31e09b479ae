"""Texts to vectors."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_runtime.embedding.heads import MultiOutputEncoder
from bge_runtime.embedding.instructions import Example, Role, check_examples
from bge_runtime.engine.flow import arun, run
from bge_runtime.inputs.checks import check_count, check_text, check_texts
from bge_runtime.loading.model import Truncation
from bge_runtime.loading.source import ModelSource
from bge_runtime.loading.store import STORE
from bge_runtime.models.spec import DEFAULT_EMBEDDER, ModelSpec
from bge_runtime.vectors.cache import VectorCache

__all__ = ["Embedder"]


class Embedder(MultiOutputEncoder):
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
        examples: Iterable[Example] | None = None,
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
        adapter: str | os.PathLike[str] | None = None,
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
            examples: In-context examples before queries, for models that take some (bge-en-icl): dictionaries with
                `query`, `response` and, where it is another than the query instruction, `instruct`. They come on top
                of `max_length`.
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
            adapter: LoRA adapter, a folder that peft saved or a hub id; it is added to the weights on loading.
            model_kwargs: Extra arguments for the transformers model.
            processor_kwargs: Extra arguments for the tokenizer.
            config_kwargs: Extra arguments for the configuration.

        Raises:
            ConfigurationError: An argument has a wrong value.
            ModelNotFoundError: The name cannot be a model.
            UnsupportedModelError: The model's kind cannot run.
        """
        instructions = {
            "query_instruction": query_instruction,
            "document_instruction": document_instruction,
            "task": task,
            "examples": check_examples(examples),
            "legacy": legacy,
        }
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
            adapter=adapter,
            model_kwargs=model_kwargs or {},
            processor_kwargs=processor_kwargs or {},
            config_kwargs=config_kwargs or {},
        )
        super().__init__(
            source,
            instructions,
            normalize=normalize,
            truncate_dim=truncate_dim,
            vector_cache=vector_cache,
            max_length=max_length,
            truncation=truncation,
            batch_size=batch_size,
            batch_tokens=batch_tokens,
            show_progress=show_progress,
        )

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
