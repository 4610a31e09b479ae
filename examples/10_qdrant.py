"""Qdrant in local mode through LangChain: add, filter, delete, reopen; two-stage retrieval on top.

Needs `pip install langchain-qdrant`. With a server, pass url= instead of path=.
"""

import argparse
import tempfile

from corpus import read_documentation, read_passages
from langchain_core.documents import Document
from langchain_qdrant import QdrantVectorStore
from qdrant_client import QdrantClient
from qdrant_client.models import Distance, FieldCondition, Filter, MatchValue, VectorParams

from bge_runtime import DEFAULT_OFFLINE_MODEL
from langchain_bge import BGEEmbeddings, BGERerank, BGERetriever, bind_index

QUESTION = "Who discovered oxygen?"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=DEFAULT_OFFLINE_MODEL, help="embeds and reranks")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        embeddings = bind_index(folder, BGEEmbeddings(model=options.model), collection="texts")
        client = QdrantClient(path=folder)
        size = embeddings.embedder.dimension
        client.create_collection("texts", vectors_config=VectorParams(size=size, distance=Distance.COSINE))
        store = QdrantVectorStore(client, "texts", embedding=embeddings)
        kinds = (("manual", read_documentation()), ("encyclopedia", read_passages()))
        ids = {
            kind: store.add_documents(
                [Document(page_content=text, metadata={"kind": kind, "name": name}) for name, text in texts.items()]
            )
            for kind, texts in kinds
        }
        client.close()

        client = QdrantClient(path=folder)
        store = QdrantVectorStore(client, "texts", embedding=embeddings)
        retriever = BGERetriever(vectorstore=store, reranker=BGERerank(model=options.model), fetch_k=20, k=1)
        for kind in ids:
            only = Filter(must=[FieldCondition(key="metadata.kind", match=MatchValue(value=kind))])
            (best,) = retriever.invoke(QUESTION, filter=only)
            print(f"{kind}: {best.metadata['relevance_score']:.4f} [{best.metadata['name']}]")
        store.delete(ids["encyclopedia"])
        (best,) = retriever.invoke(QUESTION)
        print(f"after deleting the encyclopedia: [{best.metadata['name']}]")
        client.close()


if __name__ == "__main__":
    main()
