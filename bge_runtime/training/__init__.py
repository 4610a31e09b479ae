"""Training on your own data: check, mine, tune embedder and reranker, tune the query side alone, mix, pre-train.

The names below are imported on first use: most of them need the packages of the extra `train`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bge_runtime import ConfigurationError

if TYPE_CHECKING:
    from bge_runtime.training.checking import DataReport, check_data
    from bge_runtime.training.choosing import choose_mix, example_losses
    from bge_runtime.training.embedder import train_embedder
    from bge_runtime.training.examples import Example, TrainingData
    from bge_runtime.training.folders import Trained
    from bge_runtime.training.gate import Gate, Measured, general_questions
    from bge_runtime.training.generating import generate_pairs
    from bge_runtime.training.holding_out import Split, hold_out
    from bge_runtime.training.mining import Mined, mine
    from bge_runtime.training.mixing import mix, weights_by_loss
    from bge_runtime.training.query import train_query
    from bge_runtime.training.reranker import train_reranker
    from bge_runtime.training.retromae import Pretrained, train_retromae
    from bge_runtime.training.settings import TrainingSettings

# Which module defines which names.
_NAMES = {
    "checking": "DataReport check_data",
    "choosing": "choose_mix example_losses",
    "embedder": "train_embedder",
    "examples": "Example TrainingData",
    "folders": "Trained",
    "gate": "Gate Measured general_questions",
    "generating": "generate_pairs",
    "holding_out": "Split hold_out",
    "mining": "Mined mine",
    "mixing": "mix weights_by_loss",
    "query": "train_query",
    "reranker": "train_reranker",
    "retromae": "Pretrained train_retromae",
    "settings": "TrainingSettings",
}
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}
PACKAGES = ("accelerate", "datasets", "peft")

__all__ = [
    "DataReport",
    "Example",
    "Gate",
    "Measured",
    "Mined",
    "Pretrained",
    "Split",
    "Trained",
    "TrainingData",
    "TrainingSettings",
    "check_data",
    "choose_mix",
    "example_losses",
    "general_questions",
    "generate_pairs",
    "hold_out",
    "mine",
    "mix",
    "train_embedder",
    "train_query",
    "train_reranker",
    "train_retromae",
    "weights_by_loss",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in PACKAGES:
            raise
        raise ConfigurationError(f'{name} needs {error.name}: pip install "bge-integrations[train]"') from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
