"""The LlamaIndex adapter indexes, retrieves and reranks without LangChain."""

import sys

from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode

from llamaindex_bge import BGEEmbedding, BGERerank

model = sys.argv[1]
nodes = [TextNode(text=text) for text in ("one", "two", "three")]
index = VectorStoreIndex(nodes, embed_model=BGEEmbedding(model_name=model))
found = index.as_retriever(similarity_top_k=3).retrieve("one")
best = BGERerank(model=model, top_n=2).postprocess_nodes(found, query_str="one")
assert len(best) == 2
assert "langchain_core" not in sys.modules
