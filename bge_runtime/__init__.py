"""Run BGE (BAAI General Embedding) models in process: one shared copy of each set of weights, one queue.

The names below are imported on first use, so that `import bge_runtime` costs milliseconds and no torch.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from bge_runtime.errors import (
    BackendError,
    BGEError,
    ConfigurationError,
    EngineStoppedError,
    HubUnreachableError,
    IndexIdentityError,
    InputError,
    InputTooLongError,
    ModelNotFoundError,
    OutOfMemoryError,
    UnknownArgumentError,
    UnsafeWeightsError,
    UnsupportedModelError,
)

if TYPE_CHECKING:
    from bge_runtime.backends.devices import DeviceChoice, choose_device
    from bge_runtime.backends.execution import Execution, choose_execution
    from bge_runtime.embedding.embedder import Embedder
    from bge_runtime.embedding.heads import EncodedTexts
    from bge_runtime.embedding.index_identity import OnMismatch, bind_index
    from bge_runtime.embedding.vision import VisionEmbedder
    from bge_runtime.engine.hooks import (
        BatchEvent,
        ErrorEvent,
        Hook,
        LoadEvent,
        ModelEvent,
        OutOfMemoryEvent,
        UnloadEvent,
    )
    from bge_runtime.inputs.checks import check_text, check_texts
    from bge_runtime.loading.loaded import LoadedModelInfo
    from bge_runtime.loading.store import add_hook, loaded_models, remove_hook, stats, unload_models
    from bge_runtime.models.hub import download, locate
    from bge_runtime.models.registry import get_spec, list_models, register_model
    from bge_runtime.models.spec import (
        DEFAULT_EMBEDDER,
        DEFAULT_OFFLINE_MODEL,
        DEFAULT_RERANKER,
        DEFAULT_SPARSE_EMBEDDER,
        ModelSpec,
    )
    from bge_runtime.reranking.ranking import Ranked, Ranking, order_scores
    from bge_runtime.reranking.reranker import Reranker
    from bge_runtime.reranking.token_index import TokenHit, TokenIndex
    from bge_runtime.vectors.cache import CacheStats, VectorCache
    from bge_runtime.vectors.quantization import quantization_ranges, quantize_embeddings, rescore, search_quantized
    from bge_runtime.vectors.similarity import lexical_score

try:
    __version__ = version("bge-integrations")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0+unknown"

_HOME = {
    "BatchEvent": "engine.hooks",
    "CacheStats": "vectors.cache",
    "DEFAULT_EMBEDDER": "models.spec",
    "DEFAULT_OFFLINE_MODEL": "models.spec",
    "DEFAULT_RERANKER": "models.spec",
    "DEFAULT_SPARSE_EMBEDDER": "models.spec",
    "DeviceChoice": "backends.devices",
    "Embedder": "embedding.embedder",
    "EncodedTexts": "embedding.heads",
    "ErrorEvent": "engine.hooks",
    "Execution": "backends.execution",
    "Hook": "engine.hooks",
    "LoadEvent": "engine.hooks",
    "LoadedModelInfo": "loading.loaded",
    "ModelEvent": "engine.hooks",
    "ModelSpec": "models.spec",
    "OnMismatch": "embedding.index_identity",
    "OutOfMemoryEvent": "engine.hooks",
    "Ranked": "reranking.ranking",
    "Ranking": "reranking.ranking",
    "Reranker": "reranking.reranker",
    "TokenHit": "reranking.token_index",
    "TokenIndex": "reranking.token_index",
    "UnloadEvent": "engine.hooks",
    "VectorCache": "vectors.cache",
    "VisionEmbedder": "embedding.vision",
    "add_hook": "loading.store",
    "bind_index": "embedding.index_identity",
    "check_text": "inputs.checks",
    "check_texts": "inputs.checks",
    "choose_device": "backends.devices",
    "choose_execution": "backends.execution",
    "download": "models.hub",
    "get_spec": "models.registry",
    "lexical_score": "vectors.similarity",
    "list_models": "models.registry",
    "loaded_models": "loading.store",
    "locate": "models.hub",
    "order_scores": "reranking.ranking",
    "quantization_ranges": "vectors.quantization",
    "quantize_embeddings": "vectors.quantization",
    "register_model": "models.registry",
    "remove_hook": "loading.store",
    "rescore": "vectors.quantization",
    "search_quantized": "vectors.quantization",
    "stats": "loading.store",
    "unload_models": "loading.store",
}

__all__ = [
    "DEFAULT_EMBEDDER",
    "DEFAULT_OFFLINE_MODEL",
    "DEFAULT_RERANKER",
    "DEFAULT_SPARSE_EMBEDDER",
    "BGEError",
    "BackendError",
    "BatchEvent",
    "CacheStats",
    "ConfigurationError",
    "DeviceChoice",
    "Embedder",
    "EncodedTexts",
    "EngineStoppedError",
    "ErrorEvent",
    "Execution",
    "Hook",
    "HubUnreachableError",
    "IndexIdentityError",
    "InputError",
    "InputTooLongError",
    "LoadEvent",
    "LoadedModelInfo",
    "ModelEvent",
    "ModelNotFoundError",
    "ModelSpec",
    "OnMismatch",
    "OutOfMemoryError",
    "OutOfMemoryEvent",
    "Ranked",
    "Ranking",
    "Reranker",
    "TokenHit",
    "TokenIndex",
    "UnknownArgumentError",
    "UnloadEvent",
    "UnsafeWeightsError",
    "UnsupportedModelError",
    "VectorCache",
    "VisionEmbedder",
    "add_hook",
    "bind_index",
    "check_text",
    "check_texts",
    "choose_device",
    "choose_execution",
    "download",
    "get_spec",
    "lexical_score",
    "list_models",
    "loaded_models",
    "locate",
    "order_scores",
    "quantization_ranges",
    "quantize_embeddings",
    "register_model",
    "remove_hook",
    "rescore",
    "search_quantized",
    "stats",
    "unload_models",
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
