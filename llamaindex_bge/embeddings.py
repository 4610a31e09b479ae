"""LlamaIndex's embedding interface over the runtime's `Embedder`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self, Unpack

from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding, SimilarityMode, mean_agg
from llama_index.core.bridge.pydantic import (
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
)
from llama_index.core.callbacks import CallbackManager
from llama_index.core.storage.kvstore.types import BaseKVStore

from bge_runtime import DEFAULT_EMBEDDER, ConfigurationError, Embedder, InputError, check_text, check_texts
from bge_runtime.fields import (
    DocumentInstruction,
    EmbedderArguments,
    EmbedderFields,
    ModelName,
    QueryInstruction,
    document_names,
    names_of,
)
from llamaindex_bge.caching import CachedVectors
from llamaindex_bge.events import embedding_events
from llamaindex_bge.identity import is_folder, known_defaults, vector_settings
from llamaindex_bge.options import WINDOW, ConfiguredModel, Window

__all__ = ["BGEEmbedding"]

Role = Literal["query", "document"]


class Arguments(EmbedderArguments, total=False):
    """Arguments of `BGEEmbedding` beside the model's name."""

    model: str | os.PathLike[str]
    query_instruction: str | None
    text_instruction: str | None
    document_instruction: str | None
    embed_instruction: str | None
    embed_batch_size: int
    num_workers: int | None
    embeddings_cache: BaseKVStore | None
    rate_limiter: Any
    callback_manager: CallbackManager | None
    show_progress_bar: bool
    target_devices: Sequence[str] | None
    tokenizer_kwargs: Mapping[str, Any] | None


class BGEEmbedding(EmbedderFields, ConfiguredModel, BaseEmbedding):
    """BGE embeddings for LlamaIndex.

    Constructing loads nothing; the first text does. Embedders of one model share one copy of the weights.
    `to_dict()` holds what changes vectors and nothing else, because the ingestion cache keys on it. Pickles
    and deep copies hold the configuration, not the weights.

    Args:
        model_name: Hub id, name in the model table, or folder. `model` is accepted too.
        embedder: A runtime `Embedder` to use as it is, in place of the options that describe one.
        **options: The other fields, and those of `BaseEmbedding`.

    Raises:
        UnknownArgumentError: An option does not exist.
        ConfigurationError: An option has a value that is not allowed.
        ModelNotFoundError: The name is neither in the table, nor a folder, nor a hub id.

    Examples:
        ```python
        from llama_index.core import Settings
        from llamaindex_bge import BGEEmbedding

        Settings.embed_model = BGEEmbedding(model_name="BAAI/bge-small-en-v1.5")
        ```
    """

    _owner: ClassVar[str] = "BGEEmbedding"
    runtime_names: ClassVar[dict[str, str]] = names_of(
        EmbedderFields,
        model_name="model",
        query_instruction="query_instruction",
        text_instruction="document_instruction",
    )
    renamed: ClassVar[dict[str, str]] = {
        **ConfiguredModel.renamed,
        **document_names("text_instruction"),
        "model": "model_name",
        "show_progress_bar": "show_progress",
        "target_devices": "devices",
        "tokenizer_kwargs": "processor_kwargs",
    }
    retired: ClassVar[dict[str, str]] = {
        "pooling": "Models pool as their authors trained them; base_model= names the family of a fine-tune.",
        "tokenizer_name": "The model's own tokenizer is used; leave it out.",
        "tokenizer": "The model's own tokenizer is used; leave it out.",
        "parallel_process": "One copy of the weights serves all threads of the process; leave it out.",
    }

    model_name: ModelName = DEFAULT_EMBEDDER
    query_instruction: QueryInstruction = None
    text_instruction: DocumentInstruction = None
    embed_batch_size: Window = WINDOW
    num_workers: int | None = Field(
        default=None, exclude=True, description="Accepted, without effect: the runtime has one queue."
    )
    embeddings_cache: Any | None = Field(
        default=None, exclude=True, description="Key-value store of vectors, keyed by model, role and text."
    )

    def __init__(
        self,
        model_name: str | os.PathLike[str] | None = None,
        *,
        embedder: Embedder | None = None,
        **options: Unpack[Arguments],
    ) -> None:
        """Check the options; load nothing."""
        store = options.get("embeddings_cache")
        if store is not None and not isinstance(store, BaseKVStore):
            raise ConfigurationError(
                f"embeddings_cache={store!r} is not a BaseKVStore. Pass one, such as SimpleKVStore()."
            )
        given: dict[str, Any] = {} if model_name is None else {"model_name": model_name}
        super().__init__(embedder=embedder, **given, **options)
        # Past our own __setattr__, which refuses these fields, and past `model_fields_set`: nobody has set them.
        self.__dict__.update(known_defaults(self.embedder))

    @property
    def model(self) -> str:
        """The model's name; `model_name` is the same."""
        return self.model_name

    @classmethod
    def _description(cls, runtime: Any) -> dict[str, Any]:
        return {**super()._description(runtime), **known_defaults(runtime)}

    def to_payload(self) -> dict[str, Any]:
        """Return what events say about this embedder: the instructions in force, and no secrets."""
        instructions = {
            "query_instruction": self.query_instruction,
            "text_instruction": self.text_instruction,
        }
        return {**super().to_payload(), **instructions}

    @model_serializer(mode="wrap")
    def custom_model_dump(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        """Dump what changes vectors."""
        settings = vector_settings(handler(self))
        # A folder's weights can change under the same name.
        identity: dict[str, Any] = {}
        if self.base_url is not None:  # what a server calls a model may be anything, and another one tomorrow
            identity = {"identity": self.embedder.identity}
        elif is_folder(self.model_name):
            identity = {"identity": self.embedder.identity}
        elif self.adapter is not None and is_folder(self.adapter):
            identity = {"identity": self.embedder.adapter_digest}  # asks for no file of the model
        return {**settings, **identity, "class_name": self.class_name()}

    @classmethod
    def from_dict(cls, data: dict[str, Any], **kwargs: Any) -> Self:
        """Build from `to_dict()`'s result; a folder is taken with the weights that it holds today."""
        return super().from_dict({key: value for key, value in data.items() if key != "identity"}, **kwargs)

    def get_query_embedding(self, query: str) -> Embedding:
        """Embed a query."""
        query = check_text(query, "query")
        with embedding_events(self, [query]) as finish:
            return finish([self._get_query_embedding(query)])[0]

    async def aget_query_embedding(self, query: str) -> Embedding:
        """Embed a query without blocking the event loop."""
        query = check_text(query, "query")
        with embedding_events(self, [query]) as finish:
            return finish([await self._aget_query_embedding(query)])[0]

    def get_text_embedding(self, text: str) -> Embedding:
        """Embed a document."""
        text = check_text(text, "text")
        with embedding_events(self, [text]) as finish:
            return finish([self._get_text_embedding(text)])[0]

    async def aget_text_embedding(self, text: str) -> Embedding:
        """Embed a document without blocking the event loop."""
        text = check_text(text, "text")
        with embedding_events(self, [text]) as finish:
            return finish([await self._aget_text_embedding(text)])[0]

    def get_text_embedding_batch(
        self, texts: Iterable[str], show_progress: bool = False, **kwargs: Any
    ) -> list[Embedding]:
        """Embed documents, in windows of 2048 with one pair of events each.

        Args:
            texts: Any iterable of strings.
            show_progress: Whether to show a progress bar; `False` takes the constructor's value.
            **kwargs: Ignored; ingestion pipelines hand theirs to every transformation.

        Returns:
            Vectors as lists of floats, in input order.
        """
        vectors: list[Embedding] = []
        for window in _windows(check_texts(texts)):
            with embedding_events(self, window) as finish:
                vectors += finish(self._get_text_embeddings(window, **_progress(show_progress)))
        return vectors

    async def aget_text_embedding_batch(
        self, texts: Iterable[str], show_progress: bool = False, **kwargs: Any
    ) -> list[Embedding]:
        """Embed documents without blocking the event loop; see `get_text_embedding_batch`."""
        vectors: list[Embedding] = []
        for window in _windows(check_texts(texts)):
            with embedding_events(self, window) as finish:
                vectors += finish(await self._aget_text_embeddings(window, **_progress(show_progress)))
        return vectors

    def get_agg_embedding_from_queries(
        self, queries: Iterable[str], agg_fn: Callable[..., Embedding] | None = None
    ) -> Embedding:
        """Embed queries in one call and combine them; `None` takes the plain mean."""
        texts = _some_queries(queries)
        with embedding_events(self, texts) as finish:
            vectors = finish(self._embed(texts, "query"))
        return (agg_fn or mean_agg)(vectors)

    async def aget_agg_embedding_from_queries(
        self, queries: Iterable[str], agg_fn: Callable[..., Embedding] | None = None
    ) -> Embedding:
        """Do the same without blocking the event loop."""
        texts = _some_queries(queries)
        with embedding_events(self, texts) as finish:
            vectors = finish(await self._aembed(texts, "query"))
        return (agg_fn or mean_agg)(vectors)

    def similarity(
        self, embedding1: Embedding, embedding2: Embedding, mode: SimilarityMode = SimilarityMode.DEFAULT
    ) -> float:
        """Return the similarity of two vectors as a Python float."""
        return float(super().similarity(embedding1, embedding2, mode))

    def _get_query_embedding(self, query: str) -> Embedding:
        return self._embed([query], "query")[0]

    async def _aget_query_embedding(self, query: str) -> Embedding:
        return (await self._aembed([query], "query"))[0]

    def _get_text_embedding(self, text: str) -> Embedding:
        return self._embed([text], "document")[0]

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return (await self._aembed([text], "document"))[0]

    def _get_text_embeddings(self, texts: list[str], show_progress: bool = False) -> list[Embedding]:
        return self._embed(texts, "document", show_progress)

    async def _aget_text_embeddings(self, texts: list[str], show_progress: bool = False) -> list[Embedding]:
        return await self._aembed(texts, "document", show_progress)

    def _embed(self, texts: list[str], role: Role, show_progress: bool = False) -> list[Embedding]:
        encode = self.embedder.encode_queries if role == "query" else self.embedder.encode_documents

        def compute(missing: list[str]) -> list[Embedding]:
            if self.rate_limiter is not None:
                self.rate_limiter.acquire()
            vectors: list[Embedding] = encode(missing, show_progress=show_progress or None).tolist()
            return vectors

        cache = self._cache(role)
        return compute(texts) if cache is None else cache.get(texts, compute)

    async def _aembed(self, texts: list[str], role: Role, show_progress: bool = False) -> list[Embedding]:
        encode = self.embedder.aencode_queries if role == "query" else self.embedder.aencode_documents

        async def compute(missing: list[str]) -> list[Embedding]:
            if self.rate_limiter is not None:
                await self.rate_limiter.async_acquire()
            vectors: list[Embedding] = (await encode(missing, show_progress=show_progress or None)).tolist()
            return vectors

        if self.embeddings_cache is None:
            return await compute(texts)
        # The identity of a model may need a look at its files.
        cache = await asyncio.to_thread(self._cache, role)
        return await compute(texts) if cache is None else await cache.aget(texts, compute)

    def _resolved(self) -> dict[str, Any]:
        return {**super()._resolved(), **known_defaults(self.embedder)}

    def _cache(self, role: Role) -> CachedVectors | None:
        if self.embeddings_cache is None:
            return None
        identity = self.embedder.identity if role == "query" else self.embedder.document_identity
        return CachedVectors(
            store=self.embeddings_cache, identity=identity, role=role, dimension=self.embedder.dimension
        )


def _progress(shown: bool) -> dict[str, bool]:
    # The base class's hook takes the texts only, and so may a subclass's.
    return {"show_progress": True} if shown else {}


def _windows(texts: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(texts), WINDOW):
        yield texts[start : start + WINDOW]


def _some_queries(queries: Iterable[str]) -> list[str]:
    texts = check_texts(queries, "queries")
    if not texts:
        raise InputError("queries is empty, so there is nothing to combine. Pass at least one query.")
    return texts
