"""A run on a Ray cluster, by default of its own, one of whose workers may be killed, as `test_ray.py` has it.

python -m tests.bulk.ray_runs SOURCE OUT FORMAT [ADDRESS [kill-a-worker]]
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from bge_runtime import Embedder
from bge_runtime.bulk import embed_to_parquet
from tests.bulk.corpora import MODEL, parts_of

PART_ROWS = 3


def workers():
    """Processes that compute parts and descend from this one."""
    parents, names = {}, {}
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                parents[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
                names[int(process.name)] = (process / "cmdline").read_bytes()
            except OSError:  # it has ended meanwhile
                continue
    ours = {os.getpid()}
    while more := {each for each, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return [each for each in ours if names[each].startswith(b"ray::PartWorker")]


def kill_one(out):
    """Kill a worker once a part is in place."""
    while not parts_of(out):
        time.sleep(0.01)
    for worker in workers():
        os.kill(worker, signal.SIGKILL)


def main(source, out, format, address="local", what=""):
    if what:
        threading.Thread(target=kill_one, args=(Path(out),), daemon=True).start()
    result = embed_to_parquet(source, out, Embedder(MODEL), format=format, part_rows=PART_ROWS, ray=address)
    sys.stdout.write(json.dumps(result.as_dict()) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
