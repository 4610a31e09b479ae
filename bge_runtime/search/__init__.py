"""Search a folder of documents: read, split, embed what changed, retrieve, rerank."""

from __future__ import annotations

from bge_runtime.search.engine import Hit, SearchResult, search_folder

__all__ = ["Hit", "SearchResult", "search_folder"]
