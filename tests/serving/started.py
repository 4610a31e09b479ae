"""`bge serve` in a process that logs on standard error."""

import logging

from bge_runtime.cli import app

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    app(["serve", *__import__("sys").argv[1:]])
