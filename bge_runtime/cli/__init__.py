"""The command `bge`."""

from __future__ import annotations

from bge_runtime.cli.commands import app

__all__ = ["app"]
