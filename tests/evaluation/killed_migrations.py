"""Migrates every store of a folder in processes that kill themselves at the second batch.

python -m tests.evaluation.killed_migrations SOURCES TARGETS MODEL BATCH_SIZE
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import bge_runtime
from bge_runtime import BatchEvent, Embedder, Hook
from bge_runtime.evaluation.migration import migrate

KILLED_AT = 2


class Killer(Hook):
    def __init__(self) -> None:
        self.batches = 0

    def on_batch(self, event: BatchEvent) -> None:
        self.batches += 1
        if self.batches == KILLED_AT:
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    sources, targets, model, batch_size = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    ends = {}
    Embedder(model).encode_documents(["What every child would import."])
    bge_runtime.unload_models()
    for source in sorted(sources.iterdir()):
        child = os.fork()
        if child == 0:
            bge_runtime.add_hook(Killer())
            migrate(source, targets / source.name, Embedder(model), batch_size=batch_size)
            os._exit(0)
        ends[source.name] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    sys.stdout.write(json.dumps(ends))


if __name__ == "__main__":
    main()
