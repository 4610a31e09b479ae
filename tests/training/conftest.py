"""What several tests of training share."""

from __future__ import annotations

import pytest

from bge_runtime.training import Trained, train_embedder
from tests.training.toys import quick, toy_data, toy_guard


@pytest.fixture(autouse=True)
def _seeded_models(hub_cache) -> None:
    """Each test can stand alone: the models that it names are there."""


@pytest.fixture(scope="session")
def tuned(hub_cache, tmp_path_factory) -> Trained:
    """A seeded bge-small-en-v1.5 that was trained for a few steps."""
    return train_embedder(
        toy_data(negatives=2),
        tmp_path_factory.mktemp("tuned") / "model",
        model="BAAI/bge-small-en-v1.5",
        settings=quick(),
        guard=toy_guard(),
        force=True,
    )
