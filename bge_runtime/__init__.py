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
    from bge_runtime.binding import OnMismatch, bind_index
    from bge_runtime.cache import CacheStats, VectorCache
    from bge_runtime.devices import DeviceChoice, choose_device
    from bge_runtime.embedder import Embedder
    from bge_runtime.execution import Execution, choose_execution
    from bge_runtime.hooks import BatchEvent, ErrorEvent, Hook, LoadEvent, ModelEvent, OutOfMemoryEvent, UnloadEvent
    from bge_runtime.hub import download, locate
    from bge_runtime.inputs import check_text, check_texts
    from bge_runtime.loading import LoadedModelInfo, add_hook, loaded_models, remove_hook, stats, unload_models
    from bge_runtime.outputs import EncodedTexts, lexical_score
    from bge_runtime.ranking import Ranked, Ranking, order_scores
    from bge_runtime.reranker import Reranker
    from bge_runtime.spec import (
        DEFAULT_EMBEDDER,
        DEFAULT_OFFLINE_MODEL,
        DEFAULT_RERANKER,
        DEFAULT_SPARSE_EMBEDDER,
        ModelSpec,
        get_spec,
        list_models,
        register_model,
    )

try:
    __version__ = version("bge-integrations")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0+unknown"

_HOME = {
    "BatchEvent": "hooks",
    "CacheStats": "cache",
    "DEFAULT_EMBEDDER": "spec",
    "DEFAULT_OFFLINE_MODEL": "spec",
    "DEFAULT_RERANKER": "spec",
    "DEFAULT_SPARSE_EMBEDDER": "spec",
    "DeviceChoice": "devices",
    "Embedder": "embedder",
    "EncodedTexts": "outputs",
    "ErrorEvent": "hooks",
    "Execution": "execution",
    "Hook": "hooks",
    "LoadEvent": "hooks",
    "LoadedModelInfo": "loading",
    "ModelEvent": "hooks",
    "ModelSpec": "spec",
    "OnMismatch": "binding",
    "OutOfMemoryEvent": "hooks",
    "Ranked": "ranking",
    "Ranking": "ranking",
    "Reranker": "reranker",
    "UnloadEvent": "hooks",
    "VectorCache": "cache",
    "add_hook": "loading",
    "bind_index": "binding",
    "check_text": "inputs",
    "check_texts": "inputs",
    "choose_device": "devices",
    "choose_execution": "execution",
    "download": "hub",
    "get_spec": "spec",
    "lexical_score": "outputs",
    "list_models": "spec",
    "loaded_models": "loading",
    "locate": "hub",
    "order_scores": "ranking",
    "register_model": "spec",
    "remove_hook": "loading",
    "stats": "loading",
    "unload_models": "loading",
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
    "UnknownArgumentError",
    "UnloadEvent",
    "UnsafeWeightsError",
    "UnsupportedModelError",
    "VectorCache",
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
    "register_model",
    "remove_hook",
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
