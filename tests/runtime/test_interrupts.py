"""Signals: whatever their handlers raise, and wherever, the next call is answered."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("stride", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_a_call_that_is_interrupted_anywhere_leaves_a_model_that_answers_with_one_worker_per_copy(stride):
    """Calls, reloads, closing and unloading; interrupted at every seventh step, or at every one."""
    command = [sys.executable, "-m", "tests.runtime.interrupted", str(stride)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr[-2000:]
