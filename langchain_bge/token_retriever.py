"""Late interaction over a small corpus as a LangChain retriever."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Self

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from pydantic import ConfigDict, Field, PrivateAttr, ValidationError

from bge_runtime import (
    ConfigurationError,
    Embedder,
    InputError,
    ModelSpec,
    Reranker,
    TokenHit,
    TokenIndex,
    UnknownArgumentError,
    check_texts,
)
from bge_runtime.fields import Count, check_items
from langchain_bge.notes import RERANKING, annotated

__all__ = ["BGETokenRetriever"]

Scorer = Reranker | Embedder | ModelSpec | str | os.PathLike[str]


class BGETokenRetriever(BaseRetriever):
    """Compare the query's token vectors with those of every document; for corpora that fit in memory.

    Documents come back as copies, best first, with `metadata["relevance_score"]`: the mean over the query's tokens of
    the best cosine with a token of the document.

    Key init args:
        index: A `bge_runtime.TokenIndex` that holds the documents' vectors by their ids.
        documents: The documents, each with an id.
        k: How many documents to return.

    Instantiate:
        ```python
        from langchain_bge import BGETokenRetriever

        retriever = BGETokenRetriever.from_documents(documents, "BAAI/bge-m3", k=3)
        ```

    Use:
        ```python
        documents = retriever.invoke("Which organ moves blood?")
        documents = retriever.invoke("Which organ moves blood?", k=1)
        ```

    Raises:
        UnknownArgumentError: An argument does not exist.
        ConfigurationError: An argument has a value that is not allowed.
        InputError: A document has no id, or one that another has.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    index: TokenIndex = Field(description="Token vectors by document id.")
    documents: list[Document] = Field(repr=False, exclude=True, description="The documents, each with an id.")
    k: Count = Field(default=4, description="How many documents to return.")

    _by_id: dict[str, Document] = PrivateAttr()

    def __init__(self, **options: Any) -> None:
        """Check the options; load nothing."""
        UnknownArgumentError.check("BGETokenRetriever", options, type(self).model_fields)
        try:
            super().__init__(**options)
        except ValidationError as error:
            raise ConfigurationError.from_validation("BGETokenRetriever", error.errors()) from error
        self._by_id = {document.id: document for document in self.documents if document.id is not None}
        if len(self._by_id) < len(self.documents):
            raise InputError("Some documents have no id, or the same one. Give each its own: Document(id=...).")

    @classmethod
    def from_documents(
        cls,
        documents: Iterable[Document],
        model: Scorer,
        *,
        k: int = 4,
        storage: Literal["float16", "float32"] = "float16",
        show_progress: bool | None = None,
        **options: Any,
    ) -> Self:
        """Read documents into a new index.

        Args:
            documents: The documents; those without an id get one, in a copy.
            model: Name, folder or spec of an embedder, an `Embedder`, or a `Reranker` with options of its own, such
                as `token_pooling` and `vector_cache`.
            k: How many documents to return.
            storage: Number format of the vectors; see `TokenIndex`.
            show_progress: Whether to show a progress bar.
            **options: Those of `BaseRetriever`: `tags`, `metadata`.
        """
        named = _named(documents)
        made = cls(index=TokenIndex(model, storage=storage), documents=named, k=k, **options)
        made.index.add([each.page_content for each in named], list(made._by_id), show_progress=show_progress)
        return made

    @classmethod
    async def afrom_documents(
        cls,
        documents: Iterable[Document],
        model: Scorer,
        *,
        k: int = 4,
        storage: Literal["float16", "float32"] = "float16",
        show_progress: bool | None = None,
        **options: Any,
    ) -> Self:
        """Read documents without blocking the event loop; see `from_documents`."""
        named = _named(documents)
        made = cls(index=TokenIndex(model, storage=storage), documents=named, k=k, **options)
        await made.index.aadd([each.page_content for each in named], list(made._by_id), show_progress=show_progress)
        return made

    @classmethod
    def from_texts(
        cls,
        texts: Iterable[str],
        model: Scorer,
        metadatas: Iterable[Mapping[str, Any]] | None = None,
        *,
        ids: Iterable[str] | None = None,
        **options: Any,
    ) -> Self:
        """Read texts into a new index.

        Args:
            texts: Any iterable of strings.
            model: As for `from_documents`.
            metadatas: One per text.
            ids: One per text; `None` makes some up.
            **options: Those of `from_documents`.
        """
        checked = check_texts(texts)
        facts = [{} for _ in checked] if metadatas is None else _facts(metadatas)
        names = [None for _ in checked] if ids is None else check_texts(ids, "ids")
        if not len(checked) == len(facts) == len(names):
            raise InputError(
                f"{len(checked)} texts came with {len(facts)} metadatas and {len(names)} ids. Pass one per text."
            )
        rows = zip(checked, facts, names, strict=True)
        documents = [Document(page_content=text, metadata=each, id=name) for text, each, name in rows]
        return cls.from_documents(documents, model, **options)

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        return [self._scored(hit) for hit in self.index.search(query, self.k if k is None else k)]

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        return [self._scored(hit) for hit in await self.index.asearch(query, self.k if k is None else k)]

    def _scored(self, hit: TokenHit) -> Document:
        document = self._by_id.get(hit.id)
        if document is None:
            raise ConfigurationError(
                f"The index holds {hit.id!r}, which is the id of none of the documents. "
                "Pass documents= that belong to the index, or remove the id from it."
            )
        return annotated(document, {"relevance_score": hit.score}, RERANKING)


def _facts(metadatas: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    given = list(check_items(metadatas, "metadatas", "dictionaries"))
    for index, each in enumerate(given):
        if not isinstance(each, Mapping):
            raise InputError(f"metadatas[{index}] is {type(each).__name__}; pass a dictionary.")
    return [dict(each) for each in given]


def _named(documents: Iterable[Document]) -> list[Document]:
    named = []
    for index, document in enumerate(check_items(documents, "documents", "Documents")):
        if not isinstance(document, Document):
            raise InputError(f"documents[{index}] is {type(document).__name__}; pass Document(...), or use from_texts.")
        named.append(document if document.id else document.model_copy(update={"id": uuid.uuid4().hex}))
    return named
