"""Hybrid search with bge-m3 on Qdrant in both frameworks: dense and sparse vectors from one forward pass per text.

Needs `pip install langchain-qdrant llama-index-vector-stores-qdrant`, and BAAI/bge-m3: the hub, or a folder.
"""

import argparse

import langchain_qdrant
import llama_index.vector_stores.qdrant as llama_index_qdrant
from corpus import read_passages
from langchain_core.documents import Document
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode
from qdrant_client import QdrantClient
from qdrant_client.models import Distance, SparseVectorParams, VectorParams

import bge_runtime
import langchain_bge
import llamaindex_bge

QUESTION = "Who discovered oxygen?"


def with_langchain(client, model, texts):
    dense = langchain_bge.BGEEmbeddings(model=model)
    sparse = langchain_bge.BGESparseEmbeddings(model=model)
    size = VectorParams(size=dense.embedder.dimension, distance=Distance.COSINE)
    client.create_collection("texts", size, sparse_vectors_config={"lexical": SparseVectorParams()})
    store = langchain_qdrant.QdrantVectorStore(
        client,
        "texts",
        embedding=dense,
        sparse_embedding=sparse.for_qdrant(),
        sparse_vector_name="lexical",
        retrieval_mode=langchain_qdrant.RetrievalMode.HYBRID,
        validate_collection_config=False,  # it would embed a text of its own
    )
    store.add_documents([Document(page_content=text, metadata={"name": name}) for name, text in texts.items()])
    passes = int(bge_runtime.stats()["inputs"])
    rerank = langchain_bge.BGERerank(model=model, mode="hybrid", top_n=3)
    best = rerank.compress_documents(store.similarity_search(QUESTION, k=10), QUESTION)
    return passes, [(each.metadata["relevance_score"], each.metadata["name"]) for each in best]


def with_llamaindex(client, model, texts):
    sparse = llamaindex_bge.BGESparseEmbedding(model=model)
    store = llama_index_qdrant.QdrantVectorStore(
        "texts",
        client=client,
        enable_hybrid=True,
        sparse_doc_fn=sparse.sparse_doc_fn,
        sparse_query_fn=sparse.sparse_query_fn,
    )
    index = VectorStoreIndex.from_vector_store(store, embed_model=llamaindex_bge.BGEEmbedding(model=model))
    hidden = {"excluded_embed_metadata_keys": ["name"]}
    index.insert_nodes([TextNode(text=text, metadata={"name": name}, **hidden) for name, text in texts.items()])
    passes = int(bge_runtime.stats()["inputs"])
    nodes = index.as_retriever(vector_store_query_mode="hybrid", similarity_top_k=10).retrieve(QUESTION)
    best = llamaindex_bge.BGERerank(model=model, mode="hybrid", top_n=3).postprocess_nodes(nodes, query_str=QUESTION)
    return passes, [(each.score, each.node.metadata["name"]) for each in best]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=bge_runtime.DEFAULT_SPARSE_EMBEDDER)
    model = parser.parse_args().model
    texts = read_passages()
    for name, search in (("LangChain", with_langchain), ("LlamaIndex", with_llamaindex)):
        before = int(bge_runtime.stats()["inputs"])
        passes, best = search(QdrantClient(location=":memory:"), model, texts)
        print(f"{name}: {passes - before} forward passes for dense and sparse vectors of {len(texts)} texts")
        for score, place in best:
            print(f"  {score:.4f}  [{place}]")
    print(f"models loaded: {len(bge_runtime.loaded_models())}")


if __name__ == "__main__":
    main()
