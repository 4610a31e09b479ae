"""Forks at any moment: the child answers, whatever the parent's threads were doing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

# SQLite has locks of its own for each file that a process has open, new connections included.
BUSY = """
import os, signal, sys, threading, time
import numpy as np
import bge_runtime

texts = [str(number) for number in range(2000)]
cache = bge_runtime.VectorCache(sys.argv[1])
cache.put("identity", texts, [np.ones(64, np.float32)] * len(texts))

def traffic():
    while True:
        cache.get("identity", texts)

for _ in range(3):
    threading.Thread(target=traffic, daemon=True).start()
for _ in range(20):
    time.sleep(0.01)
    child = os.fork()
    if child == 0:
        signal.alarm(10)
        sys.exit(0 if cache.get("identity", ["7"])[0] is not None else 3)
    status = os.waitpid(child, 0)[1]
    assert status == 0, status
os._exit(0)
"""

ENVIRONMENT = """
import os
import bge_runtime
import bge_runtime.loading.store

before = dict(os.environ)
child = os.fork()
if child == 0:
    os._exit(0 if dict(os.environ) == before else 3)
assert os.waitpid(child, 0)[1] == 0
"""


def run(*arguments, **environment):
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("fork", ["python", "foreign"])
def test_a_child_answers_whatever_locks_the_parents_threads_hold(fork):
    assert run("-m", "tests.runtime.forked", fork) == ""


def test_a_child_reads_the_cache_file_that_the_parents_threads_are_reading(tmp_path):
    assert run("-c", BUSY, str(tmp_path / "cache.sqlite")) == ""


@pytest.mark.parametrize("value", ["true", "false", None])
def test_a_child_has_the_environment_of_its_parent(value):
    assert run("-c", ENVIRONMENT, **({} if value is None else {"TOKENIZERS_PARALLELISM": value})) == ""
