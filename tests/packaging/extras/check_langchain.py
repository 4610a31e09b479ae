"""The LangChain adapter embeds and reranks without LlamaIndex."""

import sys

from langchain_core.documents import Document

from langchain_bge import BGEEmbeddings, BGERerank

model = sys.argv[1]
assert len(BGEEmbeddings(model=model).embed_query("one")) == 32
documents = [Document(page_content=text) for text in ("one", "two", "three")]
best = BGERerank(model=model, top_n=2).compress_documents(documents, "one")
assert len(best) == 2
assert isinstance(best[0].metadata["relevance_score"], float)
assert "llama_index" not in sys.modules
