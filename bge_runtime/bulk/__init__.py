"""Whole corpora to Parquet: embedded part by part, continued after a kill, and planned before they are begun.

The names below are imported on first use: they need pyarrow, of the extra `bulk`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bge_runtime import ConfigurationError

if TYPE_CHECKING:
    from bge_runtime.bulk.embedding import BulkResult, embed_to_parquet
    from bge_runtime.bulk.manifest import Manifest, read_manifest
    from bge_runtime.bulk.planning import Estimate, Plan, plan_embedding

# Which module defines which names.
_NAMES = {
    "embedding": "BulkResult embed_to_parquet",
    "manifest": "Manifest read_manifest",
    "planning": "Estimate Plan plan_embedding",
}
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = [
    "BulkResult",
    "Estimate",
    "Manifest",
    "Plan",
    "embed_to_parquet",
    "plan_embedding",
    "read_manifest",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "pyarrow":
            raise
        raise ConfigurationError(f'{name} needs {error.name}: pip install "bge-integrations[bulk]"') from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
