"""BGE models for LangChain."""

from importlib.metadata import PackageNotFoundError, version

from langchain_bge.cross_encoder import BGECrossEncoder
from langchain_bge.embeddings import BGEEmbeddings
from langchain_bge.rerank import BGERerank

__all__ = ["BGECrossEncoder", "BGEEmbeddings", "BGERerank", "__version__"]

try:
    __version__ = version("bge-integrations")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0+unknown"
