"""Splits documents by the tokens of the model that will embed them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from llama_index.core.bridge.pydantic import Field
from llama_index.core.node_parser import SentenceSplitter

from bge_runtime import ConfigurationError, UnknownArgumentError
from llamaindex_bge.embeddings import BGEEmbedding

__all__ = ["BGETokenSplitter"]

CHUNK_OVERLAP = 64


class BGETokenSplitter(SentenceSplitter):
    """LlamaIndex's `SentenceSplitter`, counting the embedding model's own tokens, so that nothing is cut off.

    A chunk, its metadata and the model's document instruction together fit into the model's maximum length.
    Constructing reads the model.

    Args:
        embed_model: The embedding model.
        chunk_size: Most tokens of a chunk and its metadata; `None` is all that the model reads.
        chunk_overlap: Tokens that neighbouring chunks share; `None` is 64, or an eighth of a smaller chunk.
        **options: The other arguments of `SentenceSplitter`, but for `tokenizer`.

    Raises:
        ConfigurationError: `chunk_size` is more than the model reads, or something else is not allowed.

    Examples:
        ```python
        from llamaindex_bge import BGEEmbedding, BGETokenSplitter

        splitter = BGETokenSplitter(BGEEmbedding(model_name="BAAI/bge-small-en-v1.5"))
        nodes = splitter.get_nodes_from_documents(documents)
        ```
    """

    embed_model: BGEEmbedding | None = Field(default=None, description="Whose tokens are counted.")

    def __init__(
        self,
        embed_model: BGEEmbedding | Mapping[str, Any],
        chunk_size: int | None = None,
        chunk_overlap: int | None = None,
        **options: Any,
    ) -> None:
        """Read the model's tokenizer."""
        if isinstance(embed_model, Mapping):  # what to_dict() gives
            embed_model = BGEEmbedding.from_dict(dict(embed_model))
        if not isinstance(embed_model, BGEEmbedding):
            raise ConfigurationError(f"embed_model={embed_model!r} is not allowed. Pass a BGEEmbedding.")
        allowed = {"separator", "paragraph_separator", "chunking_tokenizer_fn", "secondary_chunking_regex"}
        allowed |= {"callback_manager", "include_metadata", "include_prev_next_rel", "id_func"}
        UnknownArgumentError.check("BGETokenSplitter", options, allowed)
        room = _room(embed_model)
        size = chunk_size or room
        if size > room:
            raise ConfigurationError(
                f"chunk_size={chunk_size!r} is more than the {room} tokens that {embed_model.model_name!r} reads "
                f"beside its special tokens and instruction. Use at most {room}, or None for all of them."
            )
        overlap = min(CHUNK_OVERLAP, size // 8) if chunk_overlap is None else chunk_overlap
        super().__init__(chunk_size=size, chunk_overlap=overlap, tokenizer=_Tokens(embed_model), **options)
        self.embed_model = embed_model

    @classmethod
    def from_dict(cls, data: dict[str, Any], **kwargs: Any) -> Self:
        """Build from `to_dict()`'s result, which names the function that makes ids without holding it."""
        return super().from_dict({key: value for key, value in data.items() if key != "id_func"}, **kwargs)

    @classmethod
    def class_name(cls) -> str:
        """Return the name that dumps carry."""
        return "BGETokenSplitter"


class _Tokens:
    """The content tokens of a text, in a form that pickles."""

    def __init__(self, embed_model: BGEEmbedding) -> None:
        self._embed_model = embed_model

    def __call__(self, text: str) -> list[tuple[int, int]]:
        return self._embed_model.embedder.token_offsets(text)


def _room(embed_model: BGEEmbedding) -> int:
    embedder = embed_model.embedder
    room = embedder.max_length - embedder.count_tokens([embedder.document_instruction])[0]
    if room < 1:
        raise ConfigurationError(
            f"{embed_model.model_name!r} with max_length={embedder.max_length} has no room for text."
        )
    return room
