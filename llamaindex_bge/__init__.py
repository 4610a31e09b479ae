"""BGE models for LlamaIndex."""

from importlib.metadata import PackageNotFoundError, version

from llama_index.core.embeddings.loading import RECOGNIZED_EMBEDDINGS

from llamaindex_bge.binding import bind_index
from llamaindex_bge.embeddings import BGEEmbedding
from llamaindex_bge.multi_modal import BGEMultiModalEmbedding
from llamaindex_bge.postprocessor import BGERerank
from llamaindex_bge.similarity import BGESimilarityPostprocessor
from llamaindex_bge.sparse import BGESparseEmbedding
from llamaindex_bge.splitting import BGETokenSplitter
from llamaindex_bge.token_retriever import BGETokenRetriever

__all__ = [
    "BGEEmbedding",
    "BGEMultiModalEmbedding",
    "BGERerank",
    "BGESimilarityPostprocessor",
    "BGESparseEmbedding",
    "BGETokenRetriever",
    "BGETokenSplitter",
    "__version__",
    "bind_index",
]

try:
    __version__ = version("bge-integrations")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0+unknown"

# load_embed_model() knows no other way to a class; with this, saved configurations load.
RECOGNIZED_EMBEDDINGS[BGEEmbedding.class_name()] = BGEEmbedding
RECOGNIZED_EMBEDDINGS[BGEMultiModalEmbedding.class_name()] = BGEMultiModalEmbedding
