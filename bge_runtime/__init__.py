"""Run BGE (BAAI General Embedding) models in process: one shared copy of each set of weights, one queue.

The names below are imported on first use, so that `import bge_runtime` costs milliseconds and no torch.
"""

from __future__ import annotations

from importlib import import_module
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
    ModelChangedError,
    ModelNotFoundError,
    OutOfMemoryError,
    ServerUnreachableError,
    UnknownArgumentError,
    UnsafeWeightsError,
    UnsupportedModelError,
)

if TYPE_CHECKING:
    __version__: str
    from bge_runtime.backends.devices import DeviceChoice, choose_device
    from bge_runtime.backends.execution import Execution, choose_execution
    from bge_runtime.embedding.embedder import Embedder
    from bge_runtime.embedding.heads import EncodedTexts
    from bge_runtime.embedding.index_identity import OnMismatch, bind_index, index_record
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
    from bge_runtime.inputs.tokenizing import TokenSequence
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
    from bge_runtime.reranking.calibrator import ScoreCalibrator, ScoreThreshold, score_facts
    from bge_runtime.reranking.ranking import Ranked, Ranking, order_scores
    from bge_runtime.reranking.reranker import Reranker
    from bge_runtime.reranking.token_index import TokenHit, TokenIndex
    from bge_runtime.vectors.cache import CacheStats, VectorCache
    from bge_runtime.vectors.quantization import quantization_ranges, quantize_embeddings, rescore, search_quantized
    from bge_runtime.vectors.query_map import QueryMap
    from bge_runtime.vectors.similarity import lexical_score

# Which module defines which names.
_NAMES = {
    "backends.devices": "DeviceChoice choose_device",
    "backends.execution": "Execution choose_execution",
    "embedding.embedder": "Embedder",
    "embedding.heads": "EncodedTexts",
    "embedding.index_identity": "OnMismatch bind_index index_record",
    "embedding.vision": "VisionEmbedder",
    "engine.hooks": "BatchEvent ErrorEvent Hook LoadEvent ModelEvent OutOfMemoryEvent UnloadEvent",
    "inputs.checks": "check_text check_texts",
    "inputs.tokenizing": "TokenSequence",
    "loading.loaded": "LoadedModelInfo",
    "loading.store": "add_hook loaded_models remove_hook stats unload_models",
    "models.hub": "download locate",
    "models.registry": "get_spec list_models register_model",
    "models.spec": "DEFAULT_EMBEDDER DEFAULT_OFFLINE_MODEL DEFAULT_RERANKER DEFAULT_SPARSE_EMBEDDER ModelSpec",
    "reranking.calibrator": "ScoreCalibrator ScoreThreshold score_facts",
    "reranking.ranking": "Ranked Ranking order_scores",
    "reranking.reranker": "Reranker",
    "reranking.token_index": "TokenHit TokenIndex",
    "vectors.cache": "CacheStats VectorCache",
    "vectors.quantization": "quantization_ranges quantize_embeddings rescore search_quantized",
    "vectors.query_map": "QueryMap",
    "vectors.similarity": "lexical_score",
}
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}

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
    "ModelChangedError",
    "ModelEvent",
    "ModelNotFoundError",
    "ModelSpec",
    "OnMismatch",
    "OutOfMemoryError",
    "OutOfMemoryEvent",
    "QueryMap",
    "Ranked",
    "Ranking",
    "Reranker",
    "ScoreCalibrator",
    "ScoreThreshold",
    "ServerUnreachableError",
    "TokenHit",
    "TokenIndex",
    "TokenSequence",
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
    "index_record",
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
    "score_facts",
    "search_quantized",
    "stats",
    "unload_models",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use."""
    if name == "__version__":
        value = _version()
    elif name in _HOME:
        value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # The next look finds it without coming here.
    globals()[name] = value
    return value


def _version() -> str:
    # Here, since reading what is installed takes as long as everything else of `import bge_runtime`.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("bge-integrations")
    except PackageNotFoundError:  # a source tree that is not installed
        return "0+unknown"


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
