"""Trains until a step at which the process is killed, as `test_killed.py` runs it.

python -m tests.training.killed_trainings OUT KIND STEP
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from bge_runtime.training import runs, train_embedder, train_reranker
from tests.training.toys import quick, toy_data, toy_guard


def main(out: str, kind: str, at: int) -> None:
    step = runs._Bar.on_step_end

    def killed(self, args, state, control, **named):
        if state.global_step == at:
            os.kill(os.getpid(), signal.SIGKILL)
        step(self, args, state, control, **named)

    runs._Bar.on_step_end = killed
    settings = quick(max_steps=9, evaluations=3, dropout=None, negatives=2, lora_rank=4 if kind == "lora" else None)
    options = {"settings": settings, "guard": toy_guard(), "force": True}
    if kind == "reranker":
        train_reranker(
            toy_data(negatives=2),
            Path(out),
            model="BAAI/bge-reranker-base",
            embedder="BAAI/bge-small-en-v1.5",
            **options,
        )
    else:
        train_embedder(toy_data(negatives=2), Path(out), model="BAAI/bge-small-en-v1.5", **options)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
