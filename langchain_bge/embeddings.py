"""LangChain's embedding interface over the runtime's `Embedder`."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar, Literal

from langchain_core.embeddings import Embeddings
from numpy.typing import NDArray
from pydantic import Field, PrivateAttr

from bge_runtime import DEFAULT_EMBEDDER, ConfigurationError, Embedder, VisionEmbedder, check_text
from bge_runtime.fields import (
    DocumentInstruction,
    EmbedderFields,
    ModelName,
    QueryInstruction,
    document_names,
    names_of,
)
from langchain_bge.arguments import query_options
from langchain_bge.configured import ConfiguredModel

__all__ = ["BGEEmbeddings"]

# Rows turned into Python floats between two turns of the event loop: a millisecond or two.
ROWS_PER_TURN = 128


class Instructed(ConfiguredModel):
    """What puts instructions before texts; a class of its own, so that they stay where they are in dumps."""

    query_instruction: QueryInstruction = None
    embed_instruction: DocumentInstruction = None


class BGEEmbeddings(EmbedderFields, Instructed, Embeddings):
    """BGE embeddings for LangChain; takes the arguments of `HuggingFaceBgeEmbeddings` as they are.

    Constructing loads nothing; the first text does. Objects of one model share one copy of the weights. Safe to
    use from any number of threads and event loops.

    Setup:
        ```bash
        pip install "bge-integrations[langchain]"
        ```

    Key init args:
        model: Hub id, name in the model table (`bge models`), folder, or `ModelSpec`. `model_name` is the same.
        query_instruction: Text before queries; `None` takes the model's own, `""` turns it off.
        examples: In-context examples before queries, for bge-en-icl: dictionaries with `query`, `response`, `instruct`.
        embed_instruction: The same before documents. `document_instruction` and
            `text_instruction` are the same.
        normalize: Whether vectors have length 1; `None` does as the model's authors do.
        device, precision, batch_size, max_length, truncation, cache_folder, show_progress, ...: see the fields.
        vector_cache: Remembers vectors: a `bge_runtime.VectorCache`, or the path of its file.
        model_kwargs: Arguments of `SentenceTransformer`; entries with a field of their own go there.
        encode_kwargs: Arguments of `SentenceTransformer.encode`; they go to the fields of the same meaning.
            `normalize_embeddings=False` leaves it to the model, as there; `normalize=False` gives raw vectors.
        query_encode_kwargs: The same for queries alone, over those of `encode_kwargs`.
        embedder: A `bge_runtime.Embedder` to use as it is, in place of the options that describe one.

    Instantiate:
        ```python
        from langchain_bge import BGEEmbeddings

        embeddings = BGEEmbeddings(model="BAAI/bge-small-en-v1.5")
        ```

    Embed single:
        ```python
        vector = embeddings.embed_query("Which organ moves blood?")
        ```

    Embed multiple:
        ```python
        vectors = embeddings.embed_documents(["The heart pumps blood.", "Paris is in France."])
        ```

    Async:
        ```python
        vector = await embeddings.aembed_query("Which organ moves blood?")
        ```

    Raises:
        UnknownArgumentError: An argument, or a key of a nested dictionary, does not exist.
        ConfigurationError: An argument has a value that is not allowed, or contradicts another.
        ModelNotFoundError: The name is neither in the table, nor a folder, nor a hub id.
    """

    runtime_names: ClassVar[dict[str, str]] = names_of(
        EmbedderFields,
        model_name="model",
        query_instruction="query_instruction",
        embed_instruction="document_instruction",
    )
    settled: ClassVar[tuple[str, ...]] = ("query_encode_kwargs",)
    renamed: ClassVar[dict[str, str]] = {
        **ConfiguredModel.renamed,
        **document_names("embed_instruction"),
        "show_progress_bar": "show_progress",
    }
    retired: ClassVar[dict[str, str]] = {
        "client": "Pass embedder=bge_runtime.Embedder(...) to share a loaded model.",
        "multi_process": "One copy of the weights serves all threads of the process; leave it out.",
    }

    model_name: ModelName = DEFAULT_EMBEDDER
    encode_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="As in LangChain's older classes; its entries go to the fields."
    )
    query_encode_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="What holds for queries only, over the other options."
    )

    _query_embedder: Embedder = PrivateAttr()
    _vision_embedder: VisionEmbedder | None = PrivateAttr(default=None)

    def __init__(self, model: Any = None, **options: Any) -> None:
        """Check the options; load nothing."""
        super().__init__(model=model, **options)
        overrides = query_options(self.query_encode_kwargs)
        self._query_embedder = Embedder(**self._runtime_arguments() | overrides) if overrides else self.embedder

    def cache_namespace(self, role: Literal["query", "document"]) -> str:
        """Return a cache key prefix that changes with whatever changes the vectors of one role.

        Queries and documents need a cache each: equal texts get different vectors. Reads the model's files.

        Args:
            role: `query` or `document`.

        Raises:
            ConfigurationError: There is no such role.
        """
        if role == "query":
            return f"bge-query-{self._query_embedder.identity}"
        if role == "document":
            return f"bge-document-{self.embedder.document_identity}"
        raise ConfigurationError(f"role={role!r} is not allowed. Use 'query' or 'document'.")

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed documents; vectors are in input order.

        Args:
            texts: Any iterable of strings.

        Raises:
            InputError: Something is not a string, or too long with `truncation="error"`.
        """
        vectors: list[list[float]] = self.embedder.encode_documents(texts).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """Embed a query, with the query instruction.

        Raises:
            InputError: It is not a string, or too long with `truncation="error"`.
        """
        vector: list[float] = self._query_embedder.encode_queries([check_text(text)])[0].tolist()
        return vector

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed documents without blocking the event loop; see `embed_documents`."""
        return await _lists(await self.embedder.aencode_documents(texts))

    async def aembed_query(self, text: str) -> list[float]:
        """Embed a query without blocking the event loop; see `embed_query`."""
        return (await _lists(await self._query_embedder.aencode_queries([check_text(text)])))[0]

    def embed_image(self, uris: list[str]) -> list[list[float]]:
        """Embed pictures, with a model for them such as `BAAI/BGE-VL-base`; stores such as Chroma call this.

        Args:
            uris: Paths of pictures; whatever else `VisionEmbedder.encode_images` takes is welcome too.

        Raises:
            InputError: Something is not a picture, or an address on a network.
            ConfigurationError: The model reads texts only, or Pillow is not installed.
        """
        vectors: list[list[float]] = self._vision.encode_images(uris).tolist()
        return vectors

    async def aembed_image(self, uris: list[str]) -> list[list[float]]:
        """Embed pictures without blocking the event loop; see `embed_image`."""
        return await _lists(await self._vision.aencode_images(uris))

    @property
    def _vision(self) -> VisionEmbedder:
        if self._vision_embedder is None:
            own = self.embedder
            self._vision_embedder = own if isinstance(own, VisionEmbedder) else VisionEmbedder.of(own)
        return self._vision_embedder

    def _runtimes(self) -> list[Any]:
        # Each holds the weights for itself, as the store counts; two are often one.
        made = [self.embedder, self._query_embedder, *([self._vision_embedder] if self._vision_embedder else [])]
        return list(dict.fromkeys(made))

    def _resolved(self) -> dict[str, Any]:
        if self.embedder.known_spec is None:
            return {}
        document = self.embedder.document_instruction
        shown = {"embed_instruction": document} if document else {}
        return {"query_instruction": self.embedder.query_instruction, **shown}


async def _lists(vectors: NDArray[Any]) -> list[list[float]]:
    """Return the rows as lists; a hundred thousand rows at once would hold the event loop for seconds."""
    rows: list[list[float]] = []
    for start in range(0, len(vectors), ROWS_PER_TURN):
        if start:
            await asyncio.sleep(0)
        rows += vectors[start : start + ROWS_PER_TURN].tolist()
    return rows
