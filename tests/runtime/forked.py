"""A program whose threads hold the locks of everything that is shared, while it forks; each child must answer.

    python -m tests.runtime.forked python|foreign

A foreign fork is one that Python does not see, as uWSGI's. Prints the places whose child did not answer.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import bge_runtime
from bge_runtime.embedding.heads import EXPECTED
from bge_runtime.loading.store import STORE
from bge_runtime.locks import cached_property
from bge_runtime.vectors import cache_file

FORKS: dict[str, Callable[[], int]] = {"python": os.fork, "foreign": lambda: ctypes.PyDLL(None).fork()}
ANSWER_S = 10
TEXTS = ["a", "b"]
VECTORS = [np.ones(4, np.float32)] * 2


class Silent(bge_runtime.Hook):
    """Is told and says nothing."""


class Slow:
    """Its first object computes a value for ever."""

    def __init__(self, computing: threading.Event | None = None) -> None:
        self.computing = computing

    @cached_property
    def value(self) -> int:
        if self.computing is not None:
            self.computing.set()
            threading.Event().wait()
        return 7


def hold(lock: Any) -> None:
    """Take a lock on a thread that never gives it back."""
    taken = threading.Event()

    def stay() -> None:
        with lock:
            taken.set()
            threading.Event().wait()

    threading.Thread(target=stay, daemon=True).start()
    taken.wait()


def answers(use: Callable[[], object], fork: Callable[[], int]) -> bool:
    child = fork()
    if child == 0:
        signal.alarm(ANSWER_S)
        use()
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def uses_of(cache: bge_runtime.VectorCache) -> dict[str, Callable[[], object]]:
    return {
        "get": lambda: cache.get("identity", TEXTS),
        "put": lambda: cache.put("identity", TEXTS, VECTORS),
        "stats": lambda: cache.stats,
        "clear": cache.clear,
        "close": cache.close,
    }


def places(folder: Path) -> dict[str, Callable[[], object]]:
    """Hold every lock, and return what would wait for one."""
    memory, file = bge_runtime.VectorCache(), bge_runtime.VectorCache(folder / "cache.sqlite")
    for cache in (memory, file):
        cache.put("identity", TEXTS, VECTORS)
        hold(cache._lock)
        hold(cache._entries._lock)
    index = bge_runtime.TokenIndex("BAAI/bge-small-en-v1.5")
    hold(index._lock)
    for lock in (EXPECTED._lock, STORE._lock, STORE._loading, STORE.counters._lock, STORE.hooks._lock):
        hold(lock)
    computing = threading.Event()
    threading.Thread(target=lambda: Slow(computing).value, daemon=True).start()
    computing.wait()
    return {
        **{f"memory {name}": use for name, use in uses_of(memory).items()},
        **{f"file {name}": use for name, use in uses_of(file).items()},
        "token index": lambda: index.remove([]),
        "expected sparse vectors": lambda: "model" in EXPECTED,
        "cached property": lambda: Slow().value,
        "stats": bge_runtime.stats,
        "loaded models": bge_runtime.loaded_models,
        "unloading": bge_runtime.unload_models,
        "hooks": lambda: bge_runtime.add_hook(Silent()),
        "nothing": lambda: None,
    }


if __name__ == "__main__":
    cache_file.LONGEST_HOLD_S = 0.05
    with tempfile.TemporaryDirectory() as name:
        for place, use in places(Path(name)).items():
            if not answers(use, FORKS[sys.argv[1]]):
                sys.stdout.write(f"{place}\n")
        sys.stdout.flush()
        os._exit(0)
