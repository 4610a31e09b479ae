"""The packaged model embeds with real meaning, and reranks, without any hub."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

from bge_runtime import DEFAULT_OFFLINE_MODEL, Embedder, Reranker

embedder = Embedder(DEFAULT_OFFLINE_MODEL)
texts = ["The cat sits on the mat.", "Stock prices fell sharply on Monday."]
similarity = embedder.encode_queries(["A kitten rests on a rug."]) @ embedder.encode_documents(texts).T
assert similarity[0, 0] > similarity[0, 1] + 0.2, similarity

best = Reranker(embedder).rank("Where is the kitten?", texts, top_n=1)
assert best[0].index == 0
