"""Forked and spawned processes; each script runs in a process of its own, so that a hang is a failure."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 60

FORK = """
import os, sys, threading
import numpy as np
import bge_runtime

texts = ["the dog slept in the garden " * repeat for repeat in (1, 5, 40)] * 4
embedder, reranker = bge_runtime.Embedder({options}), bge_runtime.Reranker({options})
vectors, scores = embedder.encode_documents(texts), reranker.score("dog", texts)
stop = threading.Event()

def traffic():
    while not stop.is_set():
        embedder.encode_documents(texts)

threads = [threading.Thread(target=traffic, daemon=True) for _ in range(2)]
for thread in threads:
    thread.start()
child = os.fork()
if child == 0:
    right = np.allclose(embedder.encode_documents(texts), vectors, atol=1e-5)
    right &= np.allclose(reranker.score("dog", texts), scores, atol=1e-5)
    right &= np.allclose(bge_runtime.Embedder({options}).encode_documents(texts), vectors, atol=1e-5)
    right &= len(bge_runtime.loaded_models()) == 2
    os._exit(0 if right else 3)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
stop.set()
for thread in threads:
    thread.join()
assert np.allclose(embedder.encode_documents(texts), vectors, atol=1e-5)
sys.exit(status)
"""

SPAWN = """
import multiprocessing
import numpy as np
import bge_runtime

def embed(embedder, texts):
    return embedder.encode_queries(texts), [row.index for row in bge_runtime.Reranker().rank("dog", texts)]

if __name__ == "__main__":
    texts = ["panda", "the dog slept in the garden", "Paris"]
    embedder = bge_runtime.Embedder(query_instruction="search: ")
    expected = embed(embedder, texts)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(embed, (embedder, texts))
    assert np.allclose(found[0], expected[0], atol=1e-6)
    assert found[1] == expected[1]
"""

EXIT = """
import threading
import bge_runtime

embedder = bge_runtime.Embedder()
embedder.encode_queries(["panda"])
threading.Thread(target=lambda: embedder.encode_documents(["dog " * 400] * 50), daemon=True).start()
"""


def run_script(tmp_path, source, **environment):
    """Run a script on the hub cache of the tests; a script that hangs is ended with all its children."""
    script = tmp_path / "script.py"
    script.write_text(source)
    process = subprocess.Popen(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"the script hangs after: {process.communicate()[0][-2000:]}")
    assert process.returncode == 0, output[-2000:]
    return output


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize(
    ("options", "environment"),
    [
        ("", {}),
        ("backend='torch'", {}),
        ("", {"TOKENIZERS_PARALLELISM": "true"}),
        ("devices=['cpu', 'cpu'], keep_alive_s=60", {}),
    ],
    ids=["packed", "torch", "parallel tokenizing", "replicas"],
)
def test_a_forked_child_computes_the_same_vectors_while_the_parent_is_busy(hub_cache, tmp_path, options, environment):
    run_script(tmp_path, FORK.replace("{options}", options), **environment)


@pytest.mark.slow
def test_a_spawned_child_gets_the_configuration_and_loads_for_itself(hub_cache, tmp_path):
    run_script(tmp_path, SPAWN)


def test_the_interpreter_exits_while_work_is_pending(hub_cache, tmp_path):
    assert run_script(tmp_path, EXIT) == ""
