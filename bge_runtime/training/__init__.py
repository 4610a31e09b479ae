"""Training on your own data: check, mine, tune embedder and reranker, tune the query side alone, mix, pre-train."""
