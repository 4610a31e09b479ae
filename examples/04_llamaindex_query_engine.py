"""A LlamaIndex query engine in two stages: embed and take 20, rerank to 3, answer.

The language model is LlamaIndex's MockLLM, which repeats its prompt; pass your own as llm=. Retrieval is real.
"""

import argparse

from corpus import read_passages
from llama_index.core import VectorStoreIndex
from llama_index.core.llms import MockLLM
from llama_index.core.schema import TextNode

from bge_runtime import DEFAULT_OFFLINE_MODEL
from llamaindex_bge import BGEEmbedding, BGERerank

QUESTION = "Who discovered oxygen?"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=DEFAULT_OFFLINE_MODEL, help="embeds and reranks")
    options = parser.parse_args()

    nodes = [TextNode(id_=name, text=text) for name, text in read_passages().items()]
    index = VectorStoreIndex(nodes, embed_model=BGEEmbedding(options.model))
    engine = index.as_query_engine(
        llm=MockLLM(),
        similarity_top_k=20,
        node_postprocessors=[BGERerank(options.model, top_n=3, keep_retrieval_score=True)],
    )
    response = engine.query(QUESTION)
    print(f"question: {QUESTION}")
    print(f"a mock model was given {len(str(response))} characters of prompt")
    for source in response.source_nodes:
        retrieval = source.node.metadata["retrieval_score"]
        print(f"{source.score:.4f} (retrieval {retrieval:.4f})  [{source.node_id}] {source.text[:60]}")
    assert "Scheele" in str(response), "the passage did not reach the prompt"


if __name__ == "__main__":
    main()
