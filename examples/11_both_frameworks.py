"""LangChain and LlamaIndex in one process: one copy of the weights, one cache, each text computed once."""

import argparse

from corpus import read_passages
from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode

import bge_runtime
import langchain_bge
import llamaindex_bge

QUESTION = "Who discovered oxygen?"


def computed():
    return int(bge_runtime.stats()["inputs"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=bge_runtime.DEFAULT_OFFLINE_MODEL)
    options = parser.parse_args()

    passages = read_passages()
    cache = bge_runtime.VectorCache()
    before = computed()
    store = InMemoryVectorStore(langchain_bge.BGEEmbeddings(model=options.model, vector_cache=cache))
    store.add_documents([Document(id=name, page_content=text) for name, text in passages.items()])
    first = [each.id for each in store.similarity_search(QUESTION, k=3)]
    print(f"LangChain:  {computed() - before} texts computed, best {first}")

    before = computed()
    nodes = [TextNode(id_=name, text=text) for name, text in passages.items()]
    embed_model = llamaindex_bge.BGEEmbedding(options.model, vector_cache=cache)
    index = VectorStoreIndex(nodes, embed_model=embed_model)
    second = [each.node_id for each in index.as_retriever(similarity_top_k=3).retrieve(QUESTION)]
    print(f"LlamaIndex: {computed() - before} texts computed, best {second}")
    print(f"models loaded: {len(bge_runtime.loaded_models())}; same answer: {'yes' if first == second else 'no'}")


if __name__ == "__main__":
    main()
