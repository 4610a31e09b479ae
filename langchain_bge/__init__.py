"""BGE models for LangChain."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from langchain_bge.binding import bind_index
    from langchain_bge.calibration import relevance_score_fn
    from langchain_bge.cross_encoder import BGECrossEncoder
    from langchain_bge.embeddings import BGEEmbeddings
    from langchain_bge.rerank import BGERerank
    from langchain_bge.retriever import BGERetriever
    from langchain_bge.sparse import BGESparseEmbeddings
    from langchain_bge.splitting import BGETokenSplitter
    from langchain_bge.token_retriever import BGETokenRetriever

try:
    __version__ = version("bge-integrations")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0+unknown"

# Each name is imported on first use: embedding alone needs a third of what reranking imports from langchain_core.
_HOME = {
    "BGECrossEncoder": "cross_encoder",
    "BGEEmbeddings": "embeddings",
    "BGERerank": "rerank",
    "BGERetriever": "retriever",
    "BGESparseEmbeddings": "sparse",
    "BGETokenRetriever": "token_retriever",
    "BGETokenSplitter": "splitting",
    "bind_index": "binding",
    "relevance_score_fn": "calibration",
}

__all__ = [
    "BGECrossEncoder",
    "BGEEmbeddings",
    "BGERerank",
    "BGERetriever",
    "BGESparseEmbeddings",
    "BGETokenRetriever",
    "BGETokenSplitter",
    "__version__",
    "bind_index",
    "relevance_score_fn",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
