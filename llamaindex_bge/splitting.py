"""Splits documents by the tokens of the model that will embed them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from llama_index.core.bridge.pydantic import Field
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.node_parser.node_utils import build_nodes_from_splits
from llama_index.core.schema import BaseNode, MetadataMode
from llama_index.core.utils import get_tqdm_iterable

from bge_runtime import ConfigurationError, Embedder, InputError, UnknownArgumentError
from llamaindex_bge.embeddings import BGEEmbedding

__all__ = ["BGETokenSplitter"]

CHUNK_OVERLAP = 64


class BGETokenSplitter(SentenceSplitter):
    """LlamaIndex's `SentenceSplitter`, counting the embedding model's own tokens, so that nothing is cut off.

    A chunk, the metadata that is embedded with it in the words of the node's `text_template`, and the model's document
    instruction together fit into the model's maximum length; metadata that is not embedded takes no room. Constructing
    reads the model.

    Args:
        embed_model: The embedding model.
        chunk_size: Most tokens of a chunk and its metadata; `None` is all that the model reads.
        chunk_overlap: Tokens that neighbouring chunks share; `None` is 64, or an eighth of a smaller chunk.
        **options: The other arguments of `SentenceSplitter`, but for `tokenizer`.

    Raises:
        ConfigurationError: `chunk_size` is more than the model reads, or something else is not allowed.
        InputError: On splitting: embedded metadata leaves no room for text.

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
        size = room if chunk_size is None else _count(chunk_size, "chunk_size", 1)
        if size > room:
            raise ConfigurationError(
                f"chunk_size={chunk_size!r} is more than the {room} tokens that {embed_model.model_name!r} reads "
                f"beside its special tokens and instruction. Use at most {room}, or None for all of them."
            )
        overlap = min(CHUNK_OVERLAP, size // 8) if chunk_overlap is None else _count(chunk_overlap, "chunk_overlap", 0)
        if overlap > size:
            raise ConfigurationError(f"chunk_overlap={overlap} is more than chunk_size={size}. Use a smaller one.")
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

    def split_text(self, text: str) -> list[str]:
        """Split a text that is embedded without metadata."""
        return self._fitting(text, lambda chunk: chunk)

    def split_text_metadata_aware(self, text: str, metadata_str: str) -> list[str]:
        """Split a text that is embedded below this metadata, as LlamaIndex's own `text_template` puts it."""
        return self._fitting(text, lambda chunk: f"{metadata_str}\n\n{chunk}" if metadata_str else chunk)

    def _parse_nodes(self, nodes: Sequence[BaseNode], show_progress: bool = False, **kwargs: Any) -> list[BaseNode]:
        parsed: list[BaseNode] = []
        for node in get_tqdm_iterable(nodes, show_progress, "Parsing nodes"):
            texts = self._fitting(node.get_content(MetadataMode.NONE), self._embedded(node), f" of {node.node_id!r}")
            parsed += build_nodes_from_splits(texts, node, id_func=self.id_func)
        return parsed

    def _embedded(self, node: BaseNode) -> Callable[[str], str]:
        """Return what makes of a chunk the text that is embedded: the words of a node that will be built of it."""
        (like,) = build_nodes_from_splits([""], node)  # not by id_func, which may count
        like.metadata = node.metadata if self.include_metadata else {}

        def text_of(chunk: str) -> str:
            like.text = chunk
            return like.get_content(MetadataMode.EMBED)

        return text_of

    def _fitting(self, text: str, embedded: Callable[[str], str], of: str = "") -> list[str]:
        """Return chunks that fit as they are embedded."""
        size = -self._excess([embedded("")])
        # Tokens of joined text can differ from those of its parts, so what came out is counted again.
        while size > 0:
            try:
                chunks = self._split_text(text, size)
            except ValueError:  # one character has more tokens
                break
            excess = self._excess([embedded(chunk) for chunk in chunks])
            if excess <= 0:
                return chunks
            size -= excess
        raise InputError(
            f"Nothing of the text{of} fits into chunk_size={self.chunk_size} beside the metadata that is embedded with "
            "it. Name keys that need not be embedded in excluded_embed_metadata_keys, or use a larger chunk_size."
        )

    def _excess(self, texts: Sequence[str]) -> int:
        """Return by how many tokens the longest of the texts is too long, negative if it is not."""
        if not texts:
            return 0
        assert self.embed_model is not None
        embedder, instruction = self.embed_model.embedder, self.embed_model.embedder.document_instruction
        excess = max(embedder.count_tokens(texts)) - _specials(embedder) - self.chunk_size
        if not instruction:
            return excess
        return max(excess, max(embedder.count_tokens([instruction + text for text in texts])) - embedder.max_length)


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


def _specials(embedder: Embedder) -> int:
    return embedder.count_tokens([""])[0]


def _count(value: Any, name: str, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigurationError(f"{name}={value!r} is not allowed. Pass a whole number of at least {least}, or None.")
    return value
