"""Hybrid retrieval: BM25 finds words, vectors find meaning, reciprocal rank fusion joins them, a reranker decides.

Needs `pip install rank-bm25`. Any LangChain retriever can stand in for the small one below.
"""

import argparse
import re

from corpus import read_passages
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.vectorstores import InMemoryVectorStore
from rank_bm25 import BM25Okapi

from bge_runtime import DEFAULT_OFFLINE_MODEL
from langchain_bge import BGEEmbeddings, BGERerank, BGERetriever

QUESTIONS = ("ctDNA plastome", "Which jelly-like hunters of the sea leave almost no fossils?")


def words(text):
    return re.findall(r"\w+", text.lower())


class BM25(BaseRetriever):
    """The best documents by their words."""

    documents: list[Document]
    k: int = 10

    def _get_relevant_documents(self, query, *, run_manager):
        index = BM25Okapi([words(document.page_content) for document in self.documents])
        return index.get_top_n(words(query), self.documents, n=self.k)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=DEFAULT_OFFLINE_MODEL, help="embeds and reranks")
    options = parser.parse_args()

    documents = [Document(id=name, page_content=text) for name, text in read_passages().items()]
    store = InMemoryVectorStore(BGEEmbeddings(model=options.model))
    store.add_documents(documents)
    bm25 = BM25(documents=documents)
    hybrid = BGERetriever(sources=[store, bm25], fetch_k=10, reranker=BGERerank(model=options.model), k=2)
    for question in QUESTIONS:
        print(f"question: {question}")
        print(f"  vectors: {[each.id for each in store.similarity_search(question, k=2)]}")
        print(f"  words:   {[each.id for each in bm25.invoke(question)[:2]]}")
        for each in hybrid.invoke(question):
            fused = each.metadata["retrieval_score"]
            print(f"  hybrid:  {each.metadata['relevance_score']:.4f} (fused {fused:.4f})  [{each.id}]")


if __name__ == "__main__":
    main()
