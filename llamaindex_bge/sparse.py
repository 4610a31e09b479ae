"""Lexical weights of bge-m3 for LlamaIndex's stores of sparse vectors."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

from llama_index.core.base.embeddings.base_sparse import BaseSparseEmbedding, SparseEmbedding
from llama_index.core.bridge.pydantic import PrivateAttr

from bge_runtime import DEFAULT_SPARSE_EMBEDDER, ConfigurationError, Embedder, check_texts
from bge_runtime.fields import LoadingArguments, ModelName, names_of
from llamaindex_bge.options import WINDOW, ConfiguredModel, Window

if TYPE_CHECKING:
    from llama_index.vector_stores.milvus.utils import BaseSparseEmbeddingFunction

__all__ = ["BGESparseEmbedding"]

# Token ids and their weights, one list each per text.
IdsAndWeights = tuple[list[list[int]], list[list[float]]]


class Arguments(LoadingArguments, total=False):
    """Arguments of `BGESparseEmbedding` beside the model's name."""

    model: str | os.PathLike[str]
    embed_batch_size: int
    num_workers: int | None


class BGESparseEmbedding(ConfiguredModel, BaseSparseEmbedding):
    """Sparse vectors, token id to weight, for hybrid search.

    While this object lives, `BGEEmbedding` of the same model computes dense and sparse vectors of a text with one
    forward pass, and the second one to be asked for is free. Constructing loads nothing.

    Args:
        model_name: Hub id, name in the model table, or folder, of a model with a sparse output: BAAI/bge-m3.
            `model` is accepted too.
        embedder: A runtime `Embedder` to use as it is, in place of the options that describe one.
        **options: The other fields.

    Raises:
        UnknownArgumentError: An option does not exist.
        ConfigurationError: An option has a value that is not allowed, or the model has no sparse output.
        ModelNotFoundError: The name is neither in the table, nor a folder, nor a hub id.

    Examples:
        ```python
        from llama_index.vector_stores.qdrant import QdrantVectorStore
        from llamaindex_bge import BGESparseEmbedding

        sparse = BGESparseEmbedding(model_name="BAAI/bge-m3")
        store = QdrantVectorStore(
            "articles",
            client=client,
            enable_hybrid=True,
            sparse_doc_fn=sparse.sparse_doc_fn,
            sparse_query_fn=sparse.sparse_query_fn,
        )
        ```
    """

    _owner: ClassVar[str] = "BGESparseEmbedding"
    runtime_names: ClassVar[dict[str, str]] = names_of(model_name="model")
    renamed: ClassVar[dict[str, str]] = {**ConfiguredModel.renamed, "model": "model_name"}

    model_name: ModelName = DEFAULT_SPARSE_EMBEDDER
    embed_batch_size: Window = WINDOW

    _runtime: Embedder = PrivateAttr()

    def __init__(
        self,
        model_name: str | os.PathLike[str] | None = None,
        *,
        embedder: Embedder | None = None,
        **options: Unpack[Arguments],
    ) -> None:
        """Check the options; load nothing."""
        given: dict[str, Any] = {} if model_name is None else {"model_name": model_name}
        super().__init__(embedder=embedder, **given, **options)
        self.embedder.expect_sparse()

    @property
    def model(self) -> str:
        """The model's name; `model_name` is the same."""
        return self.model_name

    @property
    def embedder(self) -> Embedder:
        """The runtime object that does the work."""
        return self._runtime

    def __setstate__(self, state: dict[Any, Any]) -> None:
        """Restore the configuration, and expect sparse vectors in this process too."""
        super().__setstate__(state)
        self.embedder.expect_sparse()

    def get_text_embedding_batch(
        self, texts: Iterable[str], show_progress: bool = False, **kwargs: Any
    ) -> list[SparseEmbedding]:
        """Return the lexical weights of documents, in input order.

        Args:
            texts: Any iterable of strings.
            show_progress: Whether to show a progress bar.
            **kwargs: Ignored; ingestion pipelines hand theirs to every transformation.
        """
        return super().get_text_embedding_batch(check_texts(texts), show_progress, **kwargs)

    async def aget_text_embedding_batch(
        self, texts: Iterable[str], show_progress: bool = False
    ) -> list[SparseEmbedding]:
        """Do the same without blocking the event loop; see `get_text_embedding_batch`."""
        return await super().aget_text_embedding_batch(check_texts(texts), show_progress)

    def get_agg_embedding_from_queries(
        self, queries: Iterable[str], agg_fn: Callable[..., SparseEmbedding] | None = None
    ) -> SparseEmbedding:
        """Return the lexical weights of queries combined; `None` takes the plain mean."""
        return super().get_agg_embedding_from_queries(check_texts(queries, "queries"), agg_fn)

    async def aget_agg_embedding_from_queries(
        self, queries: Iterable[str], agg_fn: Callable[..., SparseEmbedding] | None = None
    ) -> SparseEmbedding:
        """Do the same without blocking the event loop; see `get_agg_embedding_from_queries`."""
        return await super().aget_agg_embedding_from_queries(check_texts(queries, "queries"), agg_fn)

    def sparse_doc_fn(self, texts: Sequence[str]) -> IdsAndWeights:
        """Embed documents as Qdrant's store asks: token ids and weights, a list of each per text."""
        return _split(self.embedder.encode_sparse(texts))

    def sparse_query_fn(self, texts: Sequence[str]) -> IdsAndWeights:
        """Embed queries as Qdrant's store asks; see `sparse_doc_fn`."""
        return _split(self.embedder.encode_sparse(texts, role="query"))

    def for_milvus(self) -> BaseSparseEmbeddingFunction:
        """Return the object that `MilvusVectorStore` takes as `sparse_embedding_function`.

        Raises:
            ConfigurationError: llama-index-vector-stores-milvus is not installed.
        """
        try:
            from llamaindex_bge.milvus import MilvusSparse
        except ImportError as error:
            raise ConfigurationError(
                "for_milvus() needs llama-index-vector-stores-milvus. "
                "Install it with: pip install llama-index-vector-stores-milvus"
            ) from error
        return MilvusSparse(self.embedder)

    def _get_query_embedding(self, query: str) -> SparseEmbedding:
        return self.embedder.encode_sparse([query], role="query")[0]

    async def _aget_query_embedding(self, query: str) -> SparseEmbedding:
        return (await self.embedder.aencode_sparse([query], role="query"))[0]

    def _get_text_embedding(self, text: str) -> SparseEmbedding:
        return self._get_text_embeddings([text])[0]

    async def _aget_text_embedding(self, text: str) -> SparseEmbedding:
        return (await self._aget_text_embeddings([text]))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[SparseEmbedding]:
        return self.embedder.encode_sparse(texts)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[SparseEmbedding]:
        return await self.embedder.aencode_sparse(texts)


def _split(rows: Sequence[SparseEmbedding]) -> IdsAndWeights:
    return [list(row) for row in rows], [list(row.values()) for row in rows]
