"""What is timed from outside: a fresh process until its first embedding, and imports."""

from __future__ import annotations

from pathlib import Path

from benchmarks.contestants import OURS, Contestant

__all__ = ["import_code", "start_code"]

_STARTS = {
    "langchain-huggingface": "from langchain_huggingface import HuggingFaceEmbeddings\n"
    "HuggingFaceEmbeddings(model_name={folder}).embed_query({query})",
    "llama-index": "from llama_index.embeddings.huggingface import HuggingFaceEmbedding\n"
    "HuggingFaceEmbedding(model_name={folder}).get_query_embedding({query})",
    "sentence-transformers": "from sentence_transformers import SentenceTransformer\n"
    "SentenceTransformer({folder}).encode({query})",
    "FlagEmbedding": "from FlagEmbedding import FlagModel\n"
    "FlagModel({folder}, use_fp16=False, devices='cpu').encode_queries({query})",
    "langchain": "from langchain_bge import BGEEmbeddings\n"
    "BGEEmbeddings(model={folder}, device='cpu', {mode}).embed_query({query})",
    "llamaindex": "from llamaindex_bge import BGEEmbedding\n"
    "BGEEmbedding({folder}, device='cpu', {mode}).get_query_embedding({query})",
    "plain": "from bge_runtime import Embedder\nEmbedder({folder}, device='cpu', {mode}).encode_queries([{query}])",
}
# These need more than a line to open a local checkpoint: what the workers do is what is timed.
_OPENED = "from pathlib import Path\nfrom benchmarks import peers\npeers.{opener}(Path({folder})).query({query})"
_IMPORTS = {
    "langchain-huggingface": "langchain_huggingface",
    "llama-index": "llama_index.embeddings.huggingface",
    "sentence-transformers": "sentence_transformers",
    "fastembed": "fastembed",
    "langchain": "langchain_bge",
    "llamaindex": "llamaindex_bge",
    "plain": "bge_runtime",
}
_IMPORT = "import time\nstarted = time.perf_counter()\nimport {module}\nprint(time.perf_counter() - started)"


def start_code(contestant: Contestant, checkpoint: Path) -> str:
    """Return a script that embeds one query and prints a line."""
    key = contestant.surface if contestant.library == OURS else contestant.library
    code = _STARTS.get(key, _OPENED).format(
        folder=repr(str(checkpoint)),
        query=repr("where rivers carry water"),
        mode=f"backend={contestant.backend!r}, precision={contestant.precision!r}",
        opener=contestant.library,
    )
    return f"{code}\nprint('embedded', flush=True)"


def import_code(contestant: Contestant) -> str:
    """Return a script that imports the package and prints the seconds that it took."""
    key = contestant.surface if contestant.library == OURS else contestant.library
    return _IMPORT.format(module=_IMPORTS[key])
