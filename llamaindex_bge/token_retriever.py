"""Late interaction over a small corpus as a LlamaIndex retriever."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Literal, Self

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager
from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle

from bge_runtime import ConfigurationError, Embedder, InputError, ModelSpec, Reranker, TokenHit, TokenIndex
from bge_runtime.fields import check_items

__all__ = ["BGETokenRetriever"]

Scorer = Reranker | Embedder | ModelSpec | str | os.PathLike[str]


class BGETokenRetriever(BaseRetriever):
    """Compare the query's token vectors with those of every node; for corpora that fit in memory.

    Scores are the mean over the query's tokens of the best cosine with a token of the node. Nodes are read as an
    index would embed them (`MetadataMode.EMBED`). Constructing loads nothing.

    Examples:
        ```python
        from llamaindex_bge import BGETokenRetriever

        retriever = BGETokenRetriever.from_nodes(nodes, "BAAI/bge-m3", similarity_top_k=3)
        ```
    """

    def __init__(
        self,
        index: TokenIndex,
        nodes: Iterable[BaseNode],
        *,
        similarity_top_k: int = 2,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        """Check the arguments.

        Args:
            index: Holds the nodes' token vectors by their ids.
            nodes: The nodes.
            similarity_top_k: How many nodes to return.
            callback_manager: Hears of each retrieval.

        Raises:
            ConfigurationError: An argument has a value that is not allowed.
            InputError: Something is not a node, or two nodes have the same id.
        """
        if not isinstance(index, TokenIndex):
            raise ConfigurationError(f"index={index!r} is not a bge_runtime.TokenIndex. Pass one, or use from_nodes.")
        if isinstance(similarity_top_k, bool) or not isinstance(similarity_top_k, int) or similarity_top_k < 1:
            raise ConfigurationError(
                f"similarity_top_k={similarity_top_k!r} is not allowed. Pass a positive whole number."
            )
        super().__init__(callback_manager=callback_manager)
        self.index = index
        self.similarity_top_k = similarity_top_k
        self._nodes = _by_id(nodes)

    @classmethod
    def from_nodes(
        cls,
        nodes: Iterable[BaseNode],
        model: Scorer,
        *,
        similarity_top_k: int = 2,
        storage: Literal["float16", "float32"] = "float16",
        show_progress: bool | None = None,
        callback_manager: CallbackManager | None = None,
    ) -> Self:
        """Read nodes into a new index.

        Args:
            nodes: The nodes, which stay as they are.
            model: Name, folder or spec of an embedder, an `Embedder`, or a `Reranker` with options of its own, such
                as `token_pooling` and `vector_cache`.
            similarity_top_k: How many nodes to return.
            storage: Number format of the vectors; see `TokenIndex`.
            show_progress: Whether to show a progress bar.
            callback_manager: Hears of each retrieval.
        """
        index = TokenIndex(model, storage=storage)
        made = cls(index, nodes, similarity_top_k=similarity_top_k, callback_manager=callback_manager)
        index.add(made._texts(), list(made._nodes), show_progress=show_progress)
        return made

    @classmethod
    async def afrom_nodes(
        cls,
        nodes: Iterable[BaseNode],
        model: Scorer,
        *,
        similarity_top_k: int = 2,
        storage: Literal["float16", "float32"] = "float16",
        show_progress: bool | None = None,
        callback_manager: CallbackManager | None = None,
    ) -> Self:
        """Read nodes without blocking the event loop; see `from_nodes`."""
        index = TokenIndex(model, storage=storage)
        made = cls(index, nodes, similarity_top_k=similarity_top_k, callback_manager=callback_manager)
        await index.aadd(made._texts(), list(made._nodes), show_progress=show_progress)
        return made

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return self._scored(self.index.search(query_bundle.query_str, self.similarity_top_k))

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return self._scored(await self.index.asearch(query_bundle.query_str, self.similarity_top_k))

    def _texts(self) -> list[str]:
        return [node.get_content(metadata_mode=MetadataMode.EMBED) for node in self._nodes.values()]

    def _scored(self, hits: Sequence[TokenHit]) -> list[NodeWithScore]:
        if unknown := [hit.id for hit in hits if hit.id not in self._nodes]:
            raise ConfigurationError(
                f"The index holds {unknown[0]!r}, which is the id of none of the nodes. "
                "Pass nodes= that belong to the index, or remove the id from it."
            )
        return [NodeWithScore(node=self._nodes[hit.id], score=hit.score) for hit in hits]


def _by_id(nodes: Iterable[BaseNode]) -> dict[str, BaseNode]:
    found: dict[str, BaseNode] = {}
    for index, node in enumerate(check_items(nodes, "nodes", "nodes")):
        if not isinstance(node, BaseNode):
            raise InputError(f"nodes[{index}] is {type(node).__name__}; pass TextNode(text=...).")
        if found.setdefault(node.node_id, node) is not node:
            raise InputError(f"nodes[{index}] has the id {node.node_id!r} of another node. Ids must be unique.")
    return found
