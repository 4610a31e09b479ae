"""`bge serve` in a process that logs on standard error, and whose worker of the next batch ends at SIGUSR1."""

import logging
import signal
import sys

from bge_runtime.cli import app
from bge_runtime.engine import worker

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    asked, forward = [], worker._forward
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, lambda *_: asked.append(True))

    def dying(*given):
        if asked:
            asked.clear()
            raise SystemExit("as the test has it")
        return forward(*given)

    worker._forward = dying
    app(["serve", *sys.argv[1:]])
