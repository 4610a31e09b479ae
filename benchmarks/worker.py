"""A process that runs one library: JSON requests on standard input, one JSON answer each on standard output.

It holds one model at a time and sleeps between requests. The driver starts it; see driver.py.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from benchmarks import tasks
from benchmarks.contestants import LIBRARIES, OURS
from benchmarks.peers import EMBEDDERS, RERANKERS, Embedding, Scoring
from benchmarks.workloads import WORKLOADS

__all__ = ["Worker", "main"]


class Worker:
    """Answers requests; keeps the model of the last one open, for each surface that asked."""

    def __init__(self, library: str, backend: str, precision: str, checkpoints: Path) -> None:
        """Note what to open; nothing is opened yet."""
        self._library = library
        self._mode = (backend, precision)
        self._checkpoints = checkpoints
        self._kind = ""
        self._open: dict[str, Embedding | Scoring] = {}  # by surface

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Run a request: `workload`, `surface`, `count`, `turn`, and `rows`, the file for the results."""
        workload, surface = request["workload"], request["surface"]
        if surface == "limit":
            from benchmarks import limit

            return limit.measure(WORKLOADS[workload].kind)
        if workload == "growth":
            from benchmarks.ours import stream_blocks

            stream, size = stream_blocks(self._checkpoints / "embed", *self._mode)
            return tasks.growth(stream, size, request["count"])
        model = self._model(WORKLOADS[workload].kind, surface)
        values, rows = tasks.run(workload, model, request["count"], request["turn"])
        if request.get("rows"):
            np.save(request["rows"], np.asarray(rows, dtype=np.float32))
        return values

    def _model(self, kind: str, surface: str) -> Embedding | Scoring:
        if kind != self._kind:
            self._close()
            self._kind = kind
        if surface not in self._open:
            self._open[surface] = self._load(kind, surface)
        return self._open[surface]

    def _close(self) -> None:
        for model in self._open.values():
            if isinstance(model, Embedding):
                model.close()
        self._open.clear()
        if self._library == OURS:
            from bge_runtime import unload_models

            unload_models()

    def _load(self, kind: str, surface: str) -> Embedding | Scoring:
        folder = self._checkpoints / kind
        if self._library == OURS:
            from benchmarks import ours

            load = ours.open_embedder if kind == "embed" else ours.open_reranker
            return load(folder, surface, *self._mode)
        openers: dict[str, Any] = EMBEDDERS if kind == "embed" else RERANKERS
        return openers[self._library](folder)


def versions(library: str) -> str:
    """Return the versions of what the library stands on, on one line."""
    return ", ".join(_versions(library))


def _versions(library: str) -> Iterator[str]:
    for package in LIBRARIES[library]:
        try:
            yield f"{package} {version(package)}"
        except PackageNotFoundError:
            yield f"{package} not installed"


def _private_stdout() -> TextIO:
    """Keep standard output for answers: what libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def main() -> None:
    """Answer until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--library", required=True, choices=LIBRARIES)
    parser.add_argument("--backend", default="")
    parser.add_argument("--precision", default="")
    parser.add_argument("--checkpoints", type=Path, required=True)
    arguments = parser.parse_args()
    answers = _private_stdout()
    worker = Worker(arguments.library, arguments.backend, arguments.precision, arguments.checkpoints)
    print(json.dumps({"versions": versions(arguments.library)}), file=answers, flush=True)
    for line in sys.stdin:
        try:
            answer = worker.answer(json.loads(line))
        except Exception as error:  # noqa: BLE001 - the reason goes into the results, whatever a library raises
            traceback.print_exc()
            answer = {"reason": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
