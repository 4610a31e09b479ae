"""Real vector stores under LangChain: how each is opened, filtered and saved.

Run as a module it opens what another process has filled:

    python -m tests.stores.langchain_stores FOLDER MODEL
"""

from __future__ import annotations

import json
import sys
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from langchain_core.documents import Document
from langchain_core.vectorstores import VectorStore

from bge_runtime import IndexIdentityError
from langchain_bge import BGEEmbeddings, BGERetriever, bind_index
from tests.stores.facts import FACTS, QUERY

__all__ = ["STORES", "Place", "documents", "names"]


def documents() -> list[Document]:
    return [
        Document(id=name, page_content=text, metadata={"name": name, "topic": topic})
        for name, (text, topic) in FACTS.items()
    ]


def names(found: list[Document]) -> list[str]:
    return [document.metadata["name"] for document in found]


class Place(ABC):
    """One kind of store in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store: VectorStore | None = None

    @abstractmethod
    def open(self, embeddings: BGEEmbeddings) -> VectorStore:
        """Open what is there, or begin an empty one."""

    @abstractmethod
    def filter(self, topic: str) -> Any:
        """What the store takes as filter=."""

    def ids(self) -> list[str]:
        """Ids that documents are added under."""
        return list(FACTS)

    def close(self) -> None:
        """Leave everything on disk."""
        self.store = None


class Faiss(Place):
    def open(self, embeddings: BGEEmbeddings) -> VectorStore:
        import faiss
        from langchain_community.docstore.in_memory import InMemoryDocstore
        from langchain_community.vectorstores import FAISS

        if (self.folder / "index.faiss").exists():
            self.store = FAISS.load_local(str(self.folder), embeddings, allow_dangerous_deserialization=True)
        else:
            self.store = FAISS(embeddings, faiss.IndexFlatL2(embeddings.embedder.dimension), InMemoryDocstore(), {})
        return self.store

    def filter(self, topic: str) -> Any:
        return {"topic": topic}

    def close(self) -> None:
        self.store.save_local(str(self.folder))  # type: ignore[union-attr]
        super().close()


class Chroma(Place):
    def open(self, embeddings: BGEEmbeddings) -> VectorStore:
        import chromadb
        from langchain_chroma import Chroma

        settings = chromadb.config.Settings(anonymized_telemetry=False, is_persistent=True)
        self.store = Chroma(embedding_function=embeddings, persist_directory=str(self.folder), client_settings=settings)
        return self.store

    def filter(self, topic: str) -> Any:
        return {"topic": topic}


class Qdrant(Place):
    def open(self, embeddings: BGEEmbeddings) -> VectorStore:
        from langchain_qdrant import QdrantVectorStore
        from qdrant_client import QdrantClient
        from qdrant_client.models import Distance, VectorParams

        self.client = QdrantClient(path=str(self.folder))
        if not self.client.collection_exists("texts"):
            size = VectorParams(size=embeddings.embedder.dimension, distance=Distance.COSINE)
            self.client.create_collection("texts", vectors_config=size)
        self.store = QdrantVectorStore(self.client, "texts", embedding=embeddings, validate_collection_config=False)
        return self.store

    def filter(self, topic: str) -> Any:
        from qdrant_client.models import FieldCondition, Filter, MatchValue

        return Filter(must=[FieldCondition(key="metadata.topic", match=MatchValue(value=topic))])

    def ids(self) -> list[str]:
        return [f"00000000-0000-0000-0000-{number:012}" for number in range(len(FACTS))]

    def close(self) -> None:
        self.client.close()
        super().close()


class LanceDB(Place):
    def open(self, embeddings: BGEEmbeddings) -> VectorStore:
        from langchain_community.vectorstores import LanceDB

        self.store = LanceDB(uri=str(self.folder), embedding=embeddings, mode="append", distance="cosine")
        return self.store

    def filter(self, topic: str) -> Any:
        return f"metadata.topic = '{topic}'"


class InMemory(Place):
    def open(self, embeddings: BGEEmbeddings) -> VectorStore:
        from langchain_core.vectorstores import InMemoryVectorStore

        file = self.folder / "store.json"
        exists = file.exists()
        self.store = InMemoryVectorStore.load(str(file), embeddings) if exists else InMemoryVectorStore(embeddings)
        return self.store

    def filter(self, topic: str) -> Any:
        return lambda document: document.metadata["topic"] == topic

    def close(self) -> None:
        self.store.dump(str(self.folder / "store.json"))  # type: ignore[union-attr]
        super().close()


STORES = {each.__name__: each for each in (Faiss, Chroma, Qdrant, LanceDB, InMemory)}


def main() -> None:
    folder, model = Path(sys.argv[1]), sys.argv[2]
    answers = {}
    for name, kind in STORES.items():
        place = kind(folder / name)
        answer: dict[str, Any] = {}
        try:
            bind_index(place.folder, BGEEmbeddings(model=model))
        except IndexIdentityError as error:
            answer["bind_index"] = str(error)
        store = place.open(BGEEmbeddings(model=model))
        try:
            retriever = BGERetriever(vectorstore=store, index_path=place.folder, fetch_k=3, k=3)
            answer["found"] = names(retriever.invoke(QUERY))
        except IndexIdentityError as error:
            answer["query"] = str(error)
        answers[name] = answer
        place.close()
    sys.stdout.write(json.dumps(answers))


if __name__ == "__main__":
    main()
