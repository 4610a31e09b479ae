"""A LlamaIndex chat engine that looks passages up for every message, in two stages.

The language model is LlamaIndex's MockLLM, which repeats what it is told; pass your own as llm=. Retrieval is real.
"""

import argparse

from corpus import read_passages
from llama_index.core import VectorStoreIndex
from llama_index.core.llms import MockLLM
from llama_index.core.schema import TextNode

from bge_runtime import DEFAULT_OFFLINE_MODEL
from llamaindex_bge import BGEEmbedding, BGERerank

MESSAGES = ("Who discovered oxygen?", "And why are fossils of comb jellies so rare?")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=DEFAULT_OFFLINE_MODEL, help="embeds and reranks")
    options = parser.parse_args()

    nodes = [TextNode(id_=name, text=text) for name, text in read_passages().items()]
    index = VectorStoreIndex(nodes, embed_model=BGEEmbedding(options.model))
    engine = index.as_chat_engine(
        chat_mode="context",
        llm=MockLLM(),
        similarity_top_k=20,
        node_postprocessors=[BGERerank(options.model, top_n=2)],
    )
    for message in MESSAGES:
        response = engine.chat(message)
        print(f"user: {message}")
        for source in response.source_nodes:
            print(f"  {source.score:.4f}  [{source.node_id}] {source.text[:60]}")
    print(f"messages in the conversation: {len(engine.chat_history)}, the answers a mock model's")


if __name__ == "__main__":
    main()
