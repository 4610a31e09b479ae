"""A Chroma collection through LlamaIndex: fill it, reopen it, filter by metadata, rerank.

Needs `pip install llama-index-vector-stores-chroma`.
"""

import argparse
import tempfile

import chromadb
from corpus import read_documentation, read_passages
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores import MetadataFilters
from llama_index.vector_stores.chroma import ChromaVectorStore

import bge_runtime
from llamaindex_bge import BGEEmbedding, BGERerank, bind_index

QUESTION = "How do I turn the query instruction off?"


def open_store(folder):
    client = chromadb.PersistentClient(folder, settings=chromadb.Settings(anonymized_telemetry=False))
    return ChromaVectorStore(chroma_collection=client.get_or_create_collection("texts"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=bge_runtime.DEFAULT_OFFLINE_MODEL, help="embeds and reranks")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        embed_model = bind_index(folder, BGEEmbedding(options.model))
        nodes = [
            TextNode(id_=name, text=text, metadata={"kind": kind}, excluded_embed_metadata_keys=["kind"])
            for kind, texts in (("manual", read_documentation()), ("encyclopedia", read_passages()))
            for name, text in texts.items()
        ]
        context = StorageContext.from_defaults(vector_store=open_store(folder))
        VectorStoreIndex(nodes, storage_context=context, embed_model=embed_model)

        before = bge_runtime.stats()["inputs"]
        index = VectorStoreIndex.from_vector_store(open_store(folder), embed_model=embed_model)
        rerank = BGERerank(options.model, top_n=1)
        for kind in ("manual", "encyclopedia"):
            filters = MetadataFilters.from_dict({"kind": kind})
            found = index.as_retriever(similarity_top_k=20, filters=filters).retrieve(QUESTION)
            (best,) = rerank.postprocess_nodes(found, query_str=QUESTION)
            print(f"{kind}: {len(found)} candidates, best {best.score:.4f} [{best.node_id}]")
        documents = bge_runtime.stats()["inputs"] - before
        print(f"computed after reopening: {documents:.0f} queries and token vectors, no stored document again")


if __name__ == "__main__":
    main()
