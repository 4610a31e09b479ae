"""Lexical weights of bge-m3 for LangChain's stores of sparse vectors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PrivateAttr

from bge_runtime import DEFAULT_SPARSE_EMBEDDER, ConfigurationError, Embedder, check_text
from bge_runtime.fields import ModelName, names_of
from langchain_bge.configured import ConfiguredModel

if TYPE_CHECKING:
    from langchain_milvus.utils.sparse import BaseSparseEmbedding
    from langchain_qdrant import SparseEmbeddings

__all__ = ["BGESparseEmbeddings"]

Sparse = dict[int, float]


class BGESparseEmbeddings(ConfiguredModel):
    """Sparse vectors, token id to weight, for hybrid search.

    While this object lives, `BGEEmbeddings` of the same model computes dense and sparse vectors of a text with one
    forward pass, and the second one to be asked for is free. Constructing loads nothing.

    Setup:
        ```bash
        pip install "bge-integrations[langchain]" langchain-qdrant
        ```

    Key init args:
        model: Hub id, name in the model table, or folder, of a model with a sparse output: BAAI/bge-m3.
        device, precision, max_length, truncation, ...: see the fields; as those of the dense object.
        embedder: A `bge_runtime.Embedder` to use as it is, in place of the options that describe one.

    Qdrant:
        ```python
        from langchain_bge import BGEEmbeddings, BGESparseEmbeddings
        from langchain_qdrant import QdrantVectorStore, RetrievalMode

        store = QdrantVectorStore.from_documents(
            documents,
            embedding=BGEEmbeddings(model="BAAI/bge-m3"),
            sparse_embedding=BGESparseEmbeddings(model="BAAI/bge-m3").for_qdrant(),
            retrieval_mode=RetrievalMode.HYBRID,
            location=":memory:",
        )
        ```

    Milvus:
        ```python
        from langchain_milvus import Milvus

        store = Milvus(
            [BGEEmbeddings(model="BAAI/bge-m3"), BGESparseEmbeddings(model="BAAI/bge-m3").for_milvus()],
            connection_args={"uri": "milvus.db"},
            vector_field=["dense", "sparse"],
            index_params=[
                {"metric_type": "IP", "index_type": "AUTOINDEX"},
                {"metric_type": "IP", "index_type": "SPARSE_INVERTED_INDEX"},
            ],
            search_params=[{"metric_type": "IP"}, {"metric_type": "IP"}],  # the defaults drop small weights
        )
        ```

    Raises:
        UnknownArgumentError: An argument does not exist.
        ConfigurationError: An argument has a value that is not allowed, or the model has no sparse output.
        ModelNotFoundError: The name is neither in the table, nor a folder, nor a hub id.
    """

    runtime_names: ClassVar[dict[str, str]] = names_of(model_name="model")

    model_name: ModelName = DEFAULT_SPARSE_EMBEDDER

    _runtime: Embedder = PrivateAttr()

    def __init__(self, model: Any = None, **options: Any) -> None:
        """Check the options; load nothing."""
        super().__init__(model=model, **options)
        self.embedder.expect_sparse()

    @property
    def embedder(self) -> Embedder:
        """The runtime object that does the work."""
        return self._runtime

    def embed_documents(self, texts: Iterable[str]) -> list[Sparse]:
        """Return the lexical weights of documents, in input order.

        Raises:
            InputError: Something is not a string, or too long with `truncation="error"`.
        """
        return self.embedder.encode_sparse(texts)

    def embed_query(self, text: str) -> Sparse:
        """Return the lexical weights of a query."""
        return self.embedder.encode_sparse([check_text(text)], role="query")[0]

    async def aembed_documents(self, texts: Iterable[str]) -> list[Sparse]:
        """Do the same without blocking the event loop; see `embed_documents`."""
        return await self.embedder.aencode_sparse(texts)

    async def aembed_query(self, text: str) -> Sparse:
        """Do the same without blocking the event loop; see `embed_query`."""
        return (await self.embedder.aencode_sparse([check_text(text)], role="query"))[0]

    def for_qdrant(self) -> SparseEmbeddings:
        """Return the object that `QdrantVectorStore` takes as `sparse_embedding`.

        Raises:
            ConfigurationError: langchain-qdrant is not installed.
        """
        try:
            from langchain_bge.qdrant import QdrantSparse
        except ImportError as error:
            raise _missing("for_qdrant()", "langchain-qdrant") from error
        return QdrantSparse(self.embedder)

    def for_milvus(self) -> BaseSparseEmbedding:
        """Return the object that `Milvus` takes as an embedding of a sparse field.

        Raises:
            ConfigurationError: langchain-milvus is not installed.
        """
        try:
            from langchain_bge.milvus import MilvusSparse
        except ImportError as error:
            raise _missing("for_milvus()", "langchain-milvus") from error
        return MilvusSparse(self.embedder)


def _missing(method: str, package: str) -> ConfigurationError:
    return ConfigurationError(f"{method} needs {package}. Install it with: pip install {package}")
