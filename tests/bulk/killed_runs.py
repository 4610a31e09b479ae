"""Runs that end at any of their steps: by a signal, as `test_killed.py` has it, or by an exception.

python -m tests.bulk.killed_runs SOURCE OUT FORMAT STEP
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pyarrow.parquet as pq

from bge_runtime import Embedder
from bge_runtime.bulk import checking, embed_to_parquet, manifest, parts
from tests.bulk.corpora import MODEL

PART_ROWS = 4


class Steps:
    """Counts what a run does to the disk and what it computes, and ends it before one of these."""

    def __init__(self, at, end):
        self.at, self.end, self.taken = at, end, 0

    def __call__(self, function):
        def counted(*args, **options):
            if sys._getframe(1).f_code.co_name == "__del__":
                # A writer that an earlier run left open is closed when Python looks for cycles: no step of this run.
                return function(*args, **options)
            self.taken += 1
            if self.taken == self.at:
                self.end()
            return function(*args, **options)

        return counted


@contextmanager
def ending(at, end):
    """Have every run end before its step `at` (0: never); gives the steps that were taken."""
    steps = Steps(at, end)
    places = [
        (checking, "examined"),
        (manifest, "settle_entry"),
        (parts, "settle_entry"),
        (Path, "replace"),
        (Path, "touch"),
        (os, "fsync"),
        (pq.ParquetWriter, "write_table"),
        (pq.ParquetWriter, "close"),
        (Embedder, "encode_all"),
    ]
    patches = [mock.patch.object(place, name, steps(getattr(place, name))) for place, name in places]
    for patch in patches:
        patch.start()
    try:
        yield steps
    finally:
        for patch in patches:
            patch.stop()


def run(source, out, format, embedder):
    return embed_to_parquet(source, out, embedder, format=format, part_rows=PART_ROWS)


def main(source, out, format, at):
    with ending(at, lambda: os.kill(os.getpid(), signal.SIGKILL)):
        run(Path(source), Path(out), format, Embedder(MODEL))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
