"""Three questions over real text, through LangChain and through LlamaIndex, on one set of weights.

Offline on the packaged all-MiniLM-L6-v2; or --model BAAI/bge-small-en-v1.5 --reranker BAAI/bge-reranker-base
"""

import argparse
import sys
from pathlib import Path

from corpus import DATA, read_documentation, read_passages
from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode

import bge_runtime
import langchain_bge
import llamaindex_bge

QUESTIONS = ["How do I turn the query instruction off?", "Who discovered oxygen?"]
QUESTIONS += ["Why are fossils of comb jellies so rare?"]
FETCH, KEEP = 20, 2


def with_langchain(corpus, model, reranker):
    """Return a function of a question: rows of (name, reranking score, retrieval score)."""
    store = InMemoryVectorStore(langchain_bge.BGEEmbeddings(model=model))
    store.add_documents([Document(id=name, page_content=text) for name, text in corpus.items()])
    rerank = langchain_bge.BGERerank(model=reranker)
    retriever = langchain_bge.BGERetriever(vectorstore=store, reranker=rerank, fetch_k=FETCH, k=KEEP)
    scores = ("relevance_score", "retrieval_score")
    return lambda question: [(each.id, *map(each.metadata.get, scores)) for each in retriever.invoke(question)]


def with_llamaindex(corpus, model, reranker):
    """The same through a VectorStoreIndex and a node postprocessor; no language model is involved."""
    nodes = [TextNode(id_=name, text=text) for name, text in corpus.items()]
    index = VectorStoreIndex(nodes, embed_model=llamaindex_bge.BGEEmbedding(model_name=model))
    retriever = index.as_retriever(similarity_top_k=FETCH)
    rerank = llamaindex_bge.BGERerank(model=reranker, top_n=KEEP)

    def answer(question):
        found = retriever.retrieve(question)
        retrieval = {node.node_id: node.score for node in found}
        best = rerank.postprocess_nodes(found, query_str=question)
        return [(each.node_id, each.score, retrieval[each.node_id]) for each in best]

    return answer


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=bge_runtime.DEFAULT_OFFLINE_MODEL)
    parser.add_argument("--reranker", help="default: the embedding model, by late interaction")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of *.jsonl: id, text")
    options = parser.parse_args()
    models = (options.model, options.reranker or options.model)
    corpus = read_documentation() | read_passages(options.data)
    method = bge_runtime.Reranker(models[1]).method.replace("_", " ")
    print(f"embedding model: {models[0]}\nreranking: {method} with {models[1]}\ncorpus: {len(corpus)} passages")
    builders = {"LangChain": with_langchain, "LlamaIndex": with_llamaindex}
    answers = {name: build(corpus, *models) for name, build in builders.items()}
    for question in QUESTIONS:
        print(f"\nQuestion: {question}")
        results = {name: answer(question) for name, answer in answers.items()}
        for name, rows in results.items():
            print(f"  {name}")
            for key, score, retrieval in rows:
                print(f"    {score:.4f} (retrieval {retrieval:.4f})  [{key}] {' '.join(corpus[key].split())[:70]}")
        passages = {tuple(row[0] for row in rows) for rows in results.values()}
        print(f"  same passages from both: {'yes' if len(passages) == 1 else 'no'}")
    print(f"\nmodels loaded: {len(bge_runtime.loaded_models())}")


if __name__ == "__main__":
    try:
        main()
    except bge_runtime.BGEError as error:
        sys.exit(f"Error: {error}")
