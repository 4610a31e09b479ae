"""The sections of a run, in their order, and the time that each may take."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from benchmarks.figures import machine
from benchmarks.gpu_check.accuracy import attention, refusals, vectors_and_scores
from benchmarks.gpu_check.card import describe, matrix_rates
from benchmarks.gpu_check.memory import full_memory, replicas
from benchmarks.gpu_check.session import Session, in_short
from benchmarks.gpu_check.speed import speed
from benchmarks.gpu_check.subjects import shapes

__all__ = ["CPU_SECTIONS", "GPU_SECTIONS", "Section", "about", "run_sections", "stopwatch"]

PACKAGES = (
    "bge-integrations",
    "torch",
    "triton",
    "sentence-transformers",
    "transformers",
    "tokenizers",
    "numpy",
    "flash-attn",
    "FlagEmbedding",
    "onnxruntime",
    "openvino",
)
# Behind the last section's end, for what cannot be interrupted: a load, a round.
GRACE_S = 40.0


@dataclass(frozen=True)
class Section:
    """A part of a run.

    Attributes:
        name: What results and messages call it.
        seconds: What it may take; what it leaves is for those behind it.
        run: Does it.
    """

    name: str
    seconds: float
    run: Callable[[Session], Any]


def _speed(session: Session) -> None:
    speed(session, shapes(reduced=False), write_s=25)


def _reduced_speed(session: Session) -> None:
    speed(session, shapes(reduced=True), write_s=3)


# The sums and `GRACE_S` stay below 9 and 4 minutes.
GPU_SECTIONS = (
    Section("refusals", 15, refusals),
    Section("matrix rate", 20, matrix_rates),
    Section("attention", 15, attention),
    Section("memory", 50, full_memory),
    Section("replicas", 20, replicas),
    Section("speed", 265, _speed),
    Section("accuracy", 95, vectors_and_scores),
)
CPU_SECTIONS = (
    Section("refusals", 1, refusals),
    Section("matrix rate", 8, matrix_rates),
    Section("attention", 10, attention),
    Section("memory", 1, full_memory),
    Section("replicas", 10, replicas),
    Section("accuracy", 80, vectors_and_scores),
    Section("speed", 70, _reduced_speed),
)


def about(session: Session) -> dict[str, Any]:
    """Return what is known of a run before it begins: the machine, the versions, the runtime's own choice."""
    from bge_runtime import choose_execution

    chosen = choose_execution(session.device)
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "gpu": session.on_gpu,
        "device": describe(session.device),
        "machine": machine(),
        "versions": dict(_versions()),
        "default": {"backend": chosen.backend, "precision": chosen.precision},
    }


def _versions() -> Iterator[tuple[str, str]]:
    for package in PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            continue


def run_sections(session: Session, sections: Sequence[Section], finish: Callable[[], Any]) -> None:
    """Run the sections in turn; the results are written behind each.

    Args:
        session: The run.
        sections: What to run.
        finish: Called before the process is ended because a section hangs.
    """
    ends = time.monotonic()
    with stopwatch(session, sum(each.seconds for each in sections) + GRACE_S, finish):
        for section in sections:
            ends += section.seconds
            session.section, session.ends = section.name, ends
            entry = {"name": section.name, "state": "cut off", "budget_s": section.seconds}
            session.results["sections"].append(entry)
            started = time.monotonic()
            if session.left_s <= 0:
                entry["state"] = "left out"
                session.leave_out(section.name, "the time was up")
            else:
                session.note(f"at most {session.left_s:.0f} s")
                try:
                    section.run(session)
                    entry["state"] = "done"
                except Exception as error:  # noqa: BLE001 - the sections behind it still run
                    entry |= {"state": "failed", "reason": in_short(error)}
                    session.note(f"FAILED: {in_short(error)}")
            entry["seconds"] = round(time.monotonic() - started, 1)
            session.save()


@contextmanager
def stopwatch(session: Session, seconds: float, finish: Callable[[], Any]) -> Iterator[None]:
    """End the process with status 1 when the context takes longer: a kernel that hangs cannot be interrupted."""

    def stop() -> None:
        print(f"STOPPED after {seconds:.0f} s, in the section {session.section!r}", flush=True)
        session.save()
        finish()
        os._exit(1)

    timer = threading.Timer(seconds, stop)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
