"""A FAISS index on disk, guarded: it knows which model filled it and refuses queries of another.

Needs `pip install faiss-cpu langchain-community`.
"""

import argparse
import tempfile
from pathlib import Path

from corpus import read_passages
from langchain_community.vectorstores import FAISS
from langchain_core.documents import Document

import bge_runtime
from langchain_bge import BGEEmbeddings, BGERerank, BGERetriever, bind_index

QUESTION = "Who discovered oxygen?"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=bge_runtime.DEFAULT_OFFLINE_MODEL, help="embeds and reranks")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "index"
        embeddings = bind_index(folder, BGEEmbeddings(model=options.model))
        documents = [Document(id=name, page_content=text) for name, text in read_passages().items()]
        FAISS.from_documents(documents, embeddings).save_local(str(folder))
        print(f"saved: {sorted(each.name for each in folder.iterdir())}")

        # FAISS keeps documents in a pickle: load your own files only.
        store = FAISS.load_local(str(folder), embeddings, allow_dangerous_deserialization=True)
        retriever = BGERetriever(vectorstore=store, index_path=folder, reranker=BGERerank(model=options.model), k=2)
        for document in retriever.invoke(QUESTION):
            print(f"{document.metadata['relevance_score']:.4f}  [{document.id}] {document.page_content[:60]}")

        other = BGEEmbeddings(model=options.model, truncate_dim=128)
        try:
            bind_index(folder, other)
        except bge_runtime.IndexIdentityError as error:
            print(f"refused: {str(error).partition('They differ')[1]}{str(error).partition('They differ')[2][:60]}")
        bind_index(folder, BGEEmbeddings(model=options.model, query_instruction="Find: "))
        print("another query instruction: accepted")


if __name__ == "__main__":
    main()
