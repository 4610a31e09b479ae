"""`python -m bge_runtime.cli`."""

from bge_runtime.cli.commands import app

app(prog_name="bge")
