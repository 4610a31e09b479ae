"""A program whose main thread is interrupted at one step after the other, as by the exception of a signal handler.

    python -m tests.runtime.interrupted STRIDE

Prints the steps after which a call was not answered, or a copy of the weights had not one worker. A process of its own,
as an interrupt may leave a thread of Python's that never comes up.
"""

from __future__ import annotations

import asyncio
import dis
import linecache
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import numpy as np

import bge_runtime
from bge_runtime.inputs.tokenizing import Tokenizing, TokenSequence
from bge_runtime.loading import store
from tests.runtime.fake_tokenizer import FakeTokenizer

# What a call goes through on its caller's thread: ours, and what of Python's own is written in Python.
TRACED = ("bge_runtime/engine/", "loading/store.py", "loading/runner.py", "/locks.py", "/threading.py", "futures/")
ENTERING = ("LOAD_FAST", "LOAD_GLOBAL", "LOAD_DEREF", "LOAD_NAME")
DEVICES = ["cpu", "cpu"]
ANSWER_S = 10
OPERATIONS = ("first call", "reload", "async", "close", "unload")


class Interrupt(KeyboardInterrupt):
    """What the handler of a signal raises."""


class Model:
    """A loaded model that waits for its gate and computes nothing."""

    pads, parameters, bytes = False, 1, 4
    gate = threading.Event()

    def __init__(self) -> None:
        self.tokenizing = Tokenizing(FakeTokenizer())

    def forward(self, batch: list[TokenSequence], output: Any) -> list[np.ndarray]:
        assert self.gate.wait(ANSWER_S)
        return [np.ones(384, np.float32) for _ in batch]


def interrupted(operation: Callable[[], object], at: int) -> str | None:
    """Run an operation up to a step and raise there; return where that was, `None` if it ended before."""
    left, place = at, None

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left, place
        code = frame.f_code
        if not any(part in code.co_filename for part in TRACED):
            return None
        if event == "line" and leaves_block(frame):
            return trace
        left -= place is None
        if left < 0 and place is None:
            place = f"{code.co_filename.rpartition('/')[2]}:{frame.f_lineno} {event} {code.co_qualname}"
            raise Interrupt
        return trace

    sys.settrace(trace)
    try:
        operation()
    except (Interrupt, RuntimeError):  # Python's own conditions make another error of some
        pass
    finally:
        sys.settrace(None)
    return place


def leaves_block(frame: FrameType) -> bool:
    """Whether what comes next is the end of a `with` block, where Python looks for no signal before it is left."""
    source = linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip()
    return source.startswith("with ") and not dis.opname[frame.f_code.co_code[frame.f_lasti]].startswith(ENTERING)


def embedder() -> bge_runtime.Embedder:
    return bge_runtime.Embedder(bge_runtime.DEFAULT_OFFLINE_MODEL, devices=DEVICES, backend="torch", keep_alive_s=60)


def workers() -> list[threading.Thread]:
    name = f"bge-{bge_runtime.DEFAULT_OFFLINE_MODEL}"
    return [each for each in threading.enumerate() if each.name.startswith(name) and each.is_alive()]


def answered(thread: threading.Thread) -> bool:
    thread.join(ANSWER_S)
    return not thread.is_alive()


def call(subject: bge_runtime.Embedder) -> threading.Thread:
    """Start a call on another thread; what it raises, the model being unloaded, is an answer too."""

    def encode() -> None:
        try:
            subject.encode_documents(["b"])
        except bge_runtime.EngineStoppedError:
            pass

    thread = threading.Thread(target=encode, daemon=True)
    thread.start()
    return thread


def until(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + ANSWER_S
    while not condition() and time.monotonic() < end:
        time.sleep(0.001)
    return condition()


def divided(calls: int) -> tuple[int, int]:
    return min(calls, len(DEVICES)), max(calls - len(DEVICES), 0)


def wrong_after(operation: str, at: int) -> tuple[str | None, str]:
    """Return where the operation was interrupted and what is wrong afterwards: nothing, hopefully."""
    bge_runtime.unload_models()
    Model.gate.set()
    subject, others = embedder(), []
    if operation not in ("first call", "async"):
        subject.encode_documents(["a", "b", "c"])
    if operation == "reload":
        (model,) = store.STORE._models.values()
        model.engine.keep_alive_s = 0
        assert until(lambda: not model.engine.in_memory)
        model.engine.keep_alive_s = 60
    if operation in ("close", "unload"):
        Model.gate.clear()
        (model,) = store.STORE._models.values()
        shared = model.engine._shared
        for count in range(4):  # none, one with each worker, and one in the queue
            others += [call(subject)] if count else []
            assert until(lambda count=count: (shared.busy, len(shared.queue)) == divided(count))
        threading.Timer(0.002, Model.gate.set).start()
    steps: dict[str, Callable[[], object]] = {
        "close": subject.close,
        "unload": bge_runtime.unload_models,
        "async": lambda: asyncio.run(subject.aencode_documents(["a", "b"])),
    }
    place = interrupted(steps.get(operation, lambda: subject.encode_documents(["a", "b"])), at)
    if not all(answered(each) for each in others):
        return place, "a call that was pending hangs"
    if not answered(call(subject)):
        return place, "the next call hangs"
    (model,) = (each for each in store.STORE._models.values() if not each.engine.closed)
    expected = {replica.worker for replica in model.engine.replicas}
    if not until(lambda: set(workers()) == expected and len(expected) == len(DEVICES)):
        return place, f"workers: {workers()}"
    return place, ""


def interrupt_everywhere(operation: str, stride: int) -> None:
    wrong_after(operation, 0)  # what is imported and computed once is no step
    at = 0
    while True:
        place, wrong = wrong_after(operation, at)
        if place is None:
            break
        if wrong:
            sys.stdout.write(f"{operation} {at}: {place}: {wrong}\n")
        at += stride
    assert at > stride, "nothing was interrupted"


if __name__ == "__main__":
    store.read_backend = lambda *_: Model()
    store.release_memory = lambda _: None
    for each in OPERATIONS:
        interrupt_everywhere(each, int(sys.argv[1]))
