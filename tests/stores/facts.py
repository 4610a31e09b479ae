"""What all stores are filled with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import bge_runtime

__all__ = ["FACTS", "MINILM", "OTHER", "QUERY", "answers_of_a_new_process"]

MINILM = bge_runtime.DEFAULT_OFFLINE_MODEL
OTHER = "BAAI/bge-small-en-v1.5"
QUERY = "Which organ moves blood?"
FACTS = {
    "heart": ("The heart pumps blood through the body.", "body"),
    "lungs": ("The lungs take in oxygen.", "body"),
    "paris": ("Paris is the capital of France.", "cities"),
    "berlin": ("Berlin is the capital of Germany.", "cities"),
    "blood": ("Blood carries oxygen to every cell.", "body"),
}


def answers_of_a_new_process(module: str, folder: Path, model: str) -> dict[str, Any]:
    """Run a module over the stores of a folder, and return what it prints."""
    command = [sys.executable, "-m", module, str(folder), model]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert ended.returncode == 0, ended.stderr
    answers: dict[str, Any] = json.loads(ended.stdout)
    return answers
