"""One set of weights in memory."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bge_runtime.engine.engine import Engine

if TYPE_CHECKING:
    from bge_runtime.inputs.tokenizing import Tokenizing
from bge_runtime.errors import public

__all__ = ["LoadedModel", "LoadedModelInfo"]


@public
@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedModelInfo:
    """One set of weights in memory.

    Attributes:
        name: Model as first asked for.
        folder: Folder that it was read from.
        task: `embed` or `score`.
        device: Device name; the names of all replicas' devices, separated by commas.
        precision: Number format of the weights.
        backend: Way of executing.
        parameters: Number of weights of one replica.
        bytes: Size of the weights in memory, of all replicas.
        adapter: Adapter that is part of the weights, as first asked for; `None` for none.
    """

    name: str
    folder: str
    task: str
    device: str
    precision: str
    backend: str
    parameters: int
    bytes: int
    adapter: str | None = None


@dataclass(eq=False)
class LoadedModel:
    """Weights with their engine, and who holds them, each with its `keep_alive_s`."""

    info: LoadedModelInfo
    tokenizing: Tokenizing
    engine: Engine
    batch_tokens: int
    holders: weakref.WeakKeyDictionary[object, float | None]

    def note_keep_alive(self) -> None:
        """Keep idle weights for as long as the most patient holder wants."""
        seconds = list(self.holders.values())
        longest = None if None in seconds or not seconds else max(each or 0 for each in seconds)
        if longest != self.engine.keep_alive_s:
            self.engine.keep_alive_s = longest
