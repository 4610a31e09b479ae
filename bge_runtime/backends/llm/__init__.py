"""LLM rerankers."""
