"""Real vector stores under LlamaIndex: how each is opened and saved.

Run as a module it opens what another process has filled:

    python -m tests.stores.llamaindex_stores FOLDER MODEL
"""

from __future__ import annotations

import json
import sys
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from llama_index.core import StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.types import BasePydanticVectorStore

from bge_runtime import IndexIdentityError
from llamaindex_bge import BGEEmbedding, bind_index
from tests.stores.facts import FACTS, QUERY

__all__ = ["STORES", "Place", "nodes"]


def nodes() -> list[TextNode]:
    return [
        TextNode(
            id_=f"00000000-0000-0000-0000-{number:012}",
            text=text,
            metadata={"name": name, "topic": topic},
            excluded_embed_metadata_keys=["name", "topic"],
            relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=name)},
        )
        for number, (name, (text, topic)) in enumerate(FACTS.items())
    ]


class Place(ABC):
    """One kind of store in a folder of its own."""

    filters = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def vector_store(self, dimension: int) -> BasePydanticVectorStore:
        """Open what is there, or begin an empty one."""

    def create(self, embed_model: BGEEmbedding) -> VectorStoreIndex:
        store = self.vector_store(embed_model.embedder.dimension)
        context = StorageContext.from_defaults(vector_store=store)
        return VectorStoreIndex([], storage_context=context, embed_model=embed_model)

    def open(self, embed_model: BGEEmbedding) -> VectorStoreIndex:
        store = self.vector_store(embed_model.embedder.dimension)
        return VectorStoreIndex.from_vector_store(store, embed_model=embed_model)

    def delete(self, index: VectorStoreIndex, name: str) -> None:
        """Delete a document's only node."""
        index.delete_ref_doc(name)

    @abstractmethod
    def close(self, index: VectorStoreIndex) -> None:
        """Leave everything on disk."""


class Persisted(Place):
    """LlamaIndex's own storage."""

    def vector_store(self, dimension: int) -> BasePydanticVectorStore:
        from llama_index.core.vector_stores import SimpleVectorStore

        return SimpleVectorStore()

    def open(self, embed_model: BGEEmbedding) -> VectorStoreIndex:
        context = StorageContext.from_defaults(persist_dir=str(self.folder))
        return load_index_from_storage(context, embed_model=embed_model)

    def close(self, index: VectorStoreIndex) -> None:
        index.storage_context.persist(str(self.folder))


class Faiss(Persisted):
    """Has no filters."""

    filters = False

    def delete(self, index: VectorStoreIndex, name: str) -> None:
        index.delete_nodes([node.node_id for node in nodes() if node.metadata["name"] == name])

    def vector_store(self, dimension: int) -> BasePydanticVectorStore:
        import faiss
        from llama_index.vector_stores.faiss import FaissMapVectorStore

        return FaissMapVectorStore(faiss_index=faiss.IndexIDMap2(faiss.IndexFlatIP(dimension)))

    def open(self, embed_model: BGEEmbedding) -> VectorStoreIndex:
        from llama_index.vector_stores.faiss import FaissMapVectorStore

        store = FaissMapVectorStore.from_persist_dir(str(self.folder))
        context = StorageContext.from_defaults(vector_store=store, persist_dir=str(self.folder))
        return load_index_from_storage(context, embed_model=embed_model)


class Chroma(Place):
    def vector_store(self, dimension: int) -> BasePydanticVectorStore:
        import chromadb
        from llama_index.vector_stores.chroma import ChromaVectorStore

        settings = chromadb.config.Settings(anonymized_telemetry=False)
        client = chromadb.PersistentClient(str(self.folder), settings=settings)
        return ChromaVectorStore(chroma_collection=client.get_or_create_collection("texts"))

    def close(self, index: VectorStoreIndex) -> None:
        """It writes at once."""


class Qdrant(Place):
    def vector_store(self, dimension: int) -> BasePydanticVectorStore:
        from llama_index.vector_stores.qdrant import QdrantVectorStore
        from qdrant_client import QdrantClient

        return QdrantVectorStore("texts", client=QdrantClient(path=str(self.folder)))

    def close(self, index: VectorStoreIndex) -> None:
        index.vector_store.client.close()


class LanceDB(Place):
    def vector_store(self, dimension: int) -> BasePydanticVectorStore:
        from llama_index.vector_stores.lancedb import LanceDBVectorStore

        mode = "append" if list(self.folder.glob("*.lance")) else "create"
        return LanceDBVectorStore(uri=str(self.folder), mode=mode)

    def delete(self, index: VectorStoreIndex, name: str) -> None:
        # The store quotes ids in a way that LanceDB takes for the names of columns.
        index.vector_store.table.delete(f"doc_id = '{name}'")

    def close(self, index: VectorStoreIndex) -> None:
        """It writes at once."""


STORES = {each.__name__: each for each in (Persisted, Faiss, Chroma, Qdrant, LanceDB)}


def main() -> None:
    folder, model = Path(sys.argv[1]), sys.argv[2]
    answers = {}
    for name, kind in STORES.items():
        place = kind(folder / name)
        answer: dict[str, Any] = {}
        try:
            index = place.open(bind_index(place.folder, BGEEmbedding(model)))
            found = index.as_retriever(similarity_top_k=3).retrieve(QUERY)
            answer["found"] = [each.node.metadata["name"] for each in found]
            place.close(index)
        except IndexIdentityError as error:
            answer["refused"] = str(error)
        answers[name] = answer
    sys.stdout.write(json.dumps(answers))


if __name__ == "__main__":
    main()
