"""Splits documents by the tokens of the model that will embed them."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from langchain_core.documents import Document

from bge_runtime import ConfigurationError, InputError
from langchain_bge.embeddings import BGEEmbeddings

try:
    from langchain_text_splitters import RecursiveCharacterTextSplitter, TextSplitter
except ImportError as error:
    raise ImportError(
        "BGETokenSplitter needs langchain-text-splitters. Install it with: pip install langchain-text-splitters"
    ) from error

__all__ = ["BGETokenSplitter"]

CHUNK_OVERLAP = 64


class BGETokenSplitter(TextSplitter):
    """LangChain's `RecursiveCharacterTextSplitter`, counting the embedding model's own tokens, so that nothing is cut.

    A chunk and the model's document instruction together fit into the model's maximum length. Constructing reads the
    model. Needs langchain-text-splitters.

    Key init args:
        embeddings: The embeddings.
        chunk_size: Most tokens of a chunk; `None` is all that the model reads.
        chunk_overlap: Tokens that neighbouring chunks share; `None` is 64, or an eighth of a smaller chunk.
        separators, keep_separator, is_separator_regex, strip_whitespace: As for `RecursiveCharacterTextSplitter`.
        add_start_index: Whether metadata gets `start_index`, the character where the chunk begins.

    Instantiate:
        ```python
        from langchain_bge import BGEEmbeddings, BGETokenSplitter

        splitter = BGETokenSplitter(BGEEmbeddings(model="BAAI/bge-small-en-v1.5"))
        chunks = splitter.split_documents(documents)
        ```

    Raises:
        ConfigurationError: `chunk_size` is more than the model reads, or something else is not allowed.
        InputError: On splitting: one character has more tokens than a chunk.
    """

    def __init__(
        self,
        embeddings: BGEEmbeddings,
        chunk_size: int | None = None,
        chunk_overlap: int | None = None,
        *,
        separators: Sequence[str] | None = None,
        keep_separator: bool = True,
        is_separator_regex: bool = False,
        add_start_index: bool = False,
        strip_whitespace: bool = True,
    ) -> None:
        """Read the model's tokenizer."""
        if not isinstance(embeddings, BGEEmbeddings):
            raise ConfigurationError(f"embeddings={embeddings!r} is not allowed. Pass BGEEmbeddings.")
        self._embedder = embeddings.embedder
        self._specials, taken = self._embedder.count_tokens(["", self._embedder.document_instruction])
        room = self._embedder.max_length - taken
        if room < 1:
            raise ConfigurationError(
                f"{embeddings.model!r} with max_length={self._embedder.max_length} has no room for text."
            )
        size = room if chunk_size is None else _count(chunk_size, "chunk_size", 1)
        if size > room:
            raise ConfigurationError(
                f"chunk_size={size} is more than the {room} tokens that {embeddings.model!r} reads beside its special "
                f"tokens and instruction. Use at most {room}, or None for all of them."
            )
        overlap = min(CHUNK_OVERLAP, size // 8) if chunk_overlap is None else _count(chunk_overlap, "chunk_overlap", 0)
        if overlap > size:
            raise ConfigurationError(f"chunk_overlap={overlap} is more than chunk_size={size}. Use a smaller one.")
        super().__init__(chunk_size=size, chunk_overlap=overlap, length_function=self._length)
        self._start_index = add_start_index
        self._options: dict[str, Any] = {
            "separators": None if separators is None else list(separators),
            "keep_separator": keep_separator,
            "is_separator_regex": is_separator_regex,
            "strip_whitespace": strip_whitespace,
        }

    def split_text(self, text: str) -> list[str]:
        """Split a text into chunks that fit."""
        size = self._chunk_size
        # Tokens of joined text can differ from those of its parts, so what came out is counted again.
        while size > 0:
            splitter = RecursiveCharacterTextSplitter(
                chunk_size=size,
                chunk_overlap=min(self._chunk_overlap, size),
                length_function=self._length,
                **self._options,
            )
            chunks = splitter.split_text(text)
            excess = self._excess(chunks)
            if excess <= 0:
                return chunks
            size -= excess
        raise InputError(
            f"A character of the text has more tokens than chunk_size={self._chunk_size}. Use a larger chunk_size."
        )

    def create_documents(self, texts: list[str], metadatas: list[dict[Any, Any]] | None = None) -> list[Document]:
        """Return the chunks of texts as documents, each with a copy of its text's metadata."""
        documents = []
        for text, metadata in zip(texts, metadatas or [{}] * len(texts), strict=True):
            earliest = 0
            for chunk in self.split_text(text):
                place = {}
                if self._start_index:
                    start = place["start_index"] = text.find(chunk, earliest)
                    earliest = earliest if start < 0 else start + self._overlap_in(chunk)
                documents.append(Document(page_content=chunk, metadata={**deepcopy(metadata), **place}))
        return documents

    def _overlap_in(self, chunk: str) -> int:
        """Return the character of a chunk before which the next cannot begin; LangChain's own takes tokens for it."""
        offsets = self._embedder.token_offsets(chunk)
        overlap = min(self._chunk_overlap, len(offsets) - 1)
        return max(offsets[-overlap][0] if overlap > 0 else len(chunk), 1)

    def _length(self, text: str) -> int:
        return self._embedder.count_tokens([text])[0] - self._specials

    def _excess(self, chunks: Sequence[str]) -> int:
        """Return by how many tokens the longest chunk is too long, negative if it is not."""
        if not chunks:
            return 0
        embedder, instruction = self._embedder, self._embedder.document_instruction
        excess = max(embedder.count_tokens(chunks)) - self._specials - self._chunk_size
        if not instruction:
            return excess
        return max(excess, max(embedder.count_tokens([instruction + each for each in chunks])) - embedder.max_length)


def _count(value: Any, name: str, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigurationError(f"{name}={value!r} is not allowed. Pass a whole number of at least {least}, or None.")
    return value
