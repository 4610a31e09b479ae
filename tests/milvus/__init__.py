"""Hybrid search on a real Milvus Lite, one file per framework; `make milvus-check` runs them."""
