"""Three questions over real text, through LangChain and through LlamaIndex, on one set of weights.

Prints the models and the kind of reranking in use; for each question the best passages that each framework
returns, with the reranking score and the retrieval score; whether both frameworks agree; and at the end
"models loaded: 1" (2 with a separate reranker). Runs offline on the packaged all-MiniLM-L6-v2. With a hub:

    python examples/quickstart.py --model BAAI/bge-small-en-v1.5 --reranker BAAI/bge-reranker-base
"""

import argparse
import json
import re
import sys
from pathlib import Path

from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode

import bge_runtime
import langchain_bge
import llamaindex_bge

ROOT = Path(__file__).resolve().parents[1]
QUESTIONS = (
    "How do I turn the query instruction off?",
    "Who discovered oxygen?",
    "Why are fossils of comb jellies so rare?",
)
FETCH, KEEP = 20, 2


def read_corpus(passages: Path, docs: Path) -> dict[str, str]:
    """Return name -> text: sections of the documentation (prose only), and passages."""
    corpus = {}
    for page in sorted(docs.glob("*.md")):
        prose = re.sub(r"```.*?\n```\n|\|[^\n]*\n", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for section in prose.split("\n## ")[1:]:
            corpus[f"{page.name}: {section.splitlines()[0]}"] = section.strip()
    for file in sorted(passages.glob("*.jsonl")):
        rows = map(json.loads, file.read_text(encoding="utf-8").splitlines())
        corpus |= {row["id"]: row["text"] for row in rows}
    return corpus


def with_langchain(corpus, model, reranker):
    """Return question -> rows of (name, reranking score, retrieval score)."""
    store = InMemoryVectorStore(langchain_bge.BGEEmbeddings(model=model))
    store.add_documents([Document(id=name, page_content=text) for name, text in corpus.items()])
    rerank = langchain_bge.BGERerank(model=reranker, top_n=KEEP)

    def answer(question):
        found = store.similarity_search_with_score(question, k=FETCH)
        retrieval = {document.id: score for document, score in found}
        best = rerank.compress_documents([document for document, _ in found], question)
        return [(each.id, each.metadata["relevance_score"], retrieval[each.id]) for each in best]

    return answer


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
    parser.add_argument("--data", type=Path, default=ROOT / "examples/data", help="*.jsonl: id, text")
    options = parser.parse_args()
    models = (options.model, options.reranker or options.model)
    corpus = read_corpus(options.data, ROOT / "docs")
    method = bge_runtime.Reranker(models[1]).method.replace("_", " ")
    print(f"embedding model: {models[0]}\nreranking: {method} with {models[1]}")
    print(f"corpus: {len(corpus)} passages")
    builders = {"LangChain": with_langchain, "LlamaIndex": with_llamaindex}
    answers = {name: build(corpus, *models) for name, build in builders.items()}
    for question in QUESTIONS:
        print(f"\nQuestion: {question}")
        results = {name: answer(question) for name, answer in answers.items()}
        for name, rows in results.items():
            print(f"  {name}")
            for key, score, retrieval in rows:
                start = " ".join(corpus[key].split())[:70]
                print(f"    {score:.4f} (retrieval {retrieval:.4f})  [{key}] {start}")
        passages = {tuple(row[0] for row in rows) for rows in results.values()}
        print(f"  same passages from both: {'yes' if len(passages) == 1 else 'no'}")
    print(f"\nmodels loaded: {len(bge_runtime.loaded_models())}")


if __name__ == "__main__":
    try:
        main()
    except bge_runtime.BGEError as error:
        sys.exit(f"Error: {error}")
