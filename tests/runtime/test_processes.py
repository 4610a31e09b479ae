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
import asyncio, ctypes, os, sys, threading, time
import numpy as np
import bge_runtime

texts = ["the dog slept in the garden " * repeat for repeat in (1, 5, 40)] * 4
embedder, reranker = bge_runtime.Embedder({options}), bge_runtime.Reranker({options})
vectors, scores = embedder.encode_documents(texts), reranker.score("dog", texts)
asyncio.run(embedder.aencode_documents(texts))  # the parent has threads for event loops too
stop = threading.Event()

def traffic():
    while not stop.is_set():
        embedder.encode_documents(texts)

threads = [threading.Thread(target=traffic, daemon=True) for _ in range({threads})]
for thread in threads:
    thread.start()
time.sleep({pause})
child = {fork}()
if child == 0:
    right = np.allclose(embedder.encode_documents(texts), vectors, atol=1e-5)
    right &= np.allclose(asyncio.run(embedder.aencode_documents(texts)), vectors, atol=1e-5)
    right &= bge_runtime.stats()["texts"] == 2 * len(texts)
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

# What daemon threads do while the process ends.
ENDINGS = {
    "one call": "embedder.encode_documents(['dog ' * 400] * 50)",
    "calls": "while True: embedder.encode_documents([f'dog {time.time()} {number}' for number in range(9)])",
    "first calls": "while True: bge_runtime.Embedder(backend='torch').encode_queries(['dog'])",
    "closing": "while True: other = bge_runtime.Reranker(); other.score('dog', ['cat']); other.close()",
    "idle weights": "while True: embedder.encode_queries(['dog']); time.sleep(0.01)",
    "event loops": "asyncio.run(forever())",
}
EXIT = """
import asyncio, threading, time
import bge_runtime

embedder = bge_runtime.Embedder({options})
embedder.encode_queries(["panda"])

async def forever():
    while True:
        await asyncio.gather(*(embedder.aencode_documents([f"dog {time.time()}"]) for _ in range(5)))

def work():
    {work}

for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.3)
"""

LATE = """
import asyncio, atexit

def late():
    for call in (
        lambda: embedder.encode_queries(["dog"]),
        lambda: asyncio.run(embedder.aencode_queries(["dog"])),
        lambda: bge_runtime.Embedder(backend="torch").encode_queries(["dog"]),
    ):
        try:
            call()
        except bge_runtime.EngineStoppedError as error:
            assert "process is ending" in str(error)
            print("refused")
    embedder.close()
    print("closed")

atexit.register(late)  # before the import, and so called after our own
import bge_runtime
embedder = bge_runtime.Embedder()
embedder.encode_queries(["panda"])
atexit.register(lambda: print(embedder.encode_queries(["dog"]).shape))
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
    ("options", "environment", "fork"),
    [
        ("", {}, "os.fork"),
        ("backend='torch'", {}, "os.fork"),
        ("", {"TOKENIZERS_PARALLELISM": "true"}, "os.fork"),
        ("devices=['cpu', 'cpu'], keep_alive_s=60", {}, "os.fork"),
        ("", {"TOKENIZERS_PARALLELISM": "true"}, "ctypes.PyDLL(None).fork"),
    ],
    ids=["packed", "torch", "parallel tokenizing", "replicas", "a fork that Python does not see"],
)
def test_a_forked_child_computes_the_same_vectors_while_the_parent_is_busy(
    hub_cache, tmp_path, options, environment, fork
):
    # A child of the other kind of fork inherits the interpreter's lock as it is, with whoever waited for it, our own
    # threads included, which the call before has woken.
    threads, pause = ("2", "0") if fork == "os.fork" else ("0", "0.5")
    script = FORK.replace("{options}", options).replace("{fork}", fork)
    script = script.replace("{threads}", threads).replace("{pause}", pause)
    run_script(tmp_path, script, **environment)


@pytest.mark.slow
def test_a_spawned_child_gets_the_configuration_and_loads_for_itself(hub_cache, tmp_path):
    run_script(tmp_path, SPAWN)


@pytest.mark.parametrize("work", ["calls", *(pytest.param(each, marks=pytest.mark.slow) for each in ENDINGS)])
def test_the_interpreter_exits_in_silence_whatever_its_daemon_threads_do(hub_cache, tmp_path, work):
    options = "keep_alive_s=0.005" if work == "idle weights" else ""
    assert run_script(tmp_path, EXIT.replace("{options}", options).replace("{work}", ENDINGS[work])) == ""


@pytest.mark.slow
def test_an_exit_handler_uses_models_until_they_have_stopped_and_then_gets_an_error(hub_cache, tmp_path):
    assert run_script(tmp_path, LATE).split("\n") == ["(1, 384)", "refused", "refused", "refused", "closed", ""]
