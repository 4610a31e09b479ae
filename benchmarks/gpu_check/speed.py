"""Texts and pairs per second of the published shapes, at lengths from short to the longest, and what they are off."""

from __future__ import annotations

import gc
import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu_check.accuracy import bound_of
from benchmarks.gpu_check.card import peak_bytes
from benchmarks.gpu_check.contestants import (
    OURS,
    THEIRS,
    USUAL_BATCH,
    Contestant,
    Opened,
    contestants,
    open_contestant,
)
from benchmarks.gpu_check.memory import watching
from benchmarks.gpu_check.session import Session, in_short
from benchmarks.gpu_check.subjects import LENGTHS, SHAPE_KINDS, Inputs, Kind, distance, mixed, of_length, write_shape
from benchmarks.limit import flops
from benchmarks.model_speed import Shape
from benchmarks.processes import busy_s
from bge_runtime.backends.devices import default_batch_tokens

__all__ = ["TOKENS", "measure_cell", "measure_shape", "speed"]

TOKENS = (16, 128, 512)
ROUNDS = 3
FEWEST, MOST = 8, 16_384  # inputs of a round
LONGEST_ON_CPU = 64
MOST_CELL_S = 20.0
LEAST_S = 3.0


@dataclass
class Line:
    """A contestant with one size of batch, and its seconds per round."""

    contestant: Contestant
    opened: Opened
    batch: int | None
    seconds: list[float] = field(default_factory=list)
    forward: list[float] = field(default_factory=list)
    peak: int | None = None

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.contestant.name + (f", {self.batch} a batch" if self.batch else "")


def speed(session: Session, shapes: Sequence[Shape], *, tokens: Sequence[int] = TOKENS, write_s: float) -> None:
    """Measure every shape; each gets its share of the time that is left.

    Args:
        session: The run.
        shapes: What to measure.
        tokens: Lengths.
        write_s: What writing the largest may take.
    """
    started, own, others = time.perf_counter(), time.process_time(), busy_s()
    for at, shape in enumerate(shapes):
        if not session.has_time(shape.name, write_s + LEAST_S):
            continue
        ends = session.ends
        session.ends = time.monotonic() + session.left_s / (len(shapes) - at)
        folder = session.place / shape.name
        try:
            session.note(f"{shape.name}: writing weights")
            measure_shape(session, shape, write_shape(folder, shape), tokens)
        except Exception as error:  # noqa: BLE001 - a full disk, say; smaller shapes may still be measured
            session.fail(f"{shape.name} is measured", error)
        finally:
            session.ends = ends
            shutil.rmtree(folder, ignore_errors=True)
    foreign = max(0.0, busy_s() - others - (time.process_time() - own)) / (time.perf_counter() - started)
    session.results["foreign_cpu_share"] = round(foreign, 3)


def measure_shape(session: Session, shape: Shape, folder: Path, tokens: Sequence[int]) -> None:
    """Open everyone, see how far their results are from float32, and time them at each length."""
    kind = SHAPE_KINDS[shape.name]
    opened = _open_all(session, shape, folder, kind)
    try:
        if opened:
            _compare(session, shape, folder, kind, opened)
        for at, length in enumerate(tokens if opened else ()):
            if session.has_time(f"{shape.name}, {length} tokens", LEAST_S):
                share = min(MOST_CELL_S, session.left_s / (len(tokens) - at))
                session.results["speed"] += measure_cell(session, shape, kind, length, opened, share)
    finally:
        for each in opened.values():
            each.close()
        opened.clear()
        _give_back(session.device)


def _give_back(device: str) -> None:
    import torch

    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()


def _open_all(session: Session, shape: Shape, folder: Path, kind: Kind) -> dict[Contestant, Opened]:
    opened = {}
    for contestant in contestants(session.device):
        what = f"{shape.name}, {contestant.name}"
        if not session.has_time(what, LEAST_S):
            continue
        session.note(f"{what}: opening")
        try:
            opened[contestant] = open_contestant(contestant, folder, kind, session.device)
        except Exception as error:  # noqa: BLE001 - a library may not take this model, or these versions
            _note_failure(session, what, contestant, error)
    return opened


def _compare(session: Session, shape: Shape, folder: Path, kind: Kind, opened: dict[Contestant, Opened]) -> None:
    """Compare everyone with sentence-transformers in float32 on the CPU."""
    inputs = mixed(shape.family, kind, longest=max(LENGTHS) if session.on_gpu else LONGEST_ON_CPU)
    session.note(f"{shape.name}: float32 on the CPU")
    plain = open_contestant(Contestant(library=THEIRS, precision="float32"), folder, kind, "cpu")
    expected = plain.compute(inputs, 1)
    output = "vectors" if kind == "embed" else "scores"
    for contestant, each in opened.items():
        about = {"shape": shape.name, "library": contestant.library, "backend": contestant.backend}
        about |= {"precision": contestant.precision, "output": output, "layers": shape.layers}
        bound = bound_of(output, contestant.precision)
        what = f"{shape.name}, {output}: {contestant.name}"
        try:
            apart = distance(output, list(each.compute(inputs, None)), list(expected))
        except Exception as error:  # noqa: BLE001 - whatever it raises is a finding, if it is ours
            _note_failure(session, what, contestant, error, **about)
            continue
        if contestant.library == OURS:
            session.check(what, apart, most=bound, **about)
        elif np.isfinite(apart):  # others' errors are told, not judged
            session.results.setdefault("others", []).append({**about, "value": float(f"{apart:.9g}")})


def measure_cell(
    session: Session, shape: Shape, kind: Kind, tokens: int, opened: dict[Contestant, Opened], seconds: float
) -> list[dict[str, Any]]:
    """Time everyone in turn on the same inputs, round after round, in about so many seconds.

    Returns:
        One entry per contestant and size of batch.
    """
    ends = time.monotonic() + seconds
    full = default_batch_tokens(session.device) // tokens
    lines = [
        Line(contestant, each, batch)
        for contestant, each in opened.items()
        for batch in ([None] if each.chooses else dict.fromkeys([USUAL_BATCH, max(USUAL_BATCH, full)]))
    ]
    # A full batch, where that is soon computed: a GPU's time for a few says little of its time for many.
    probe = of_length(shape.family, kind, tokens, max(FEWEST, min(full, MOST)) if session.on_gpu else FEWEST)
    per_input = 0.0
    for line in list(lines):
        with _failing(session, shape, tokens, line, lines):
            line.opened.compute(probe[:FEWEST], line.batch)
            started = time.perf_counter()
            line.opened.compute(probe, line.batch)
            per_input += (time.perf_counter() - started) / len(probe)
    if not lines:
        return []
    count = int(np.clip((ends - time.monotonic()) / ROUNDS / per_input, len(probe), max(len(probe), MOST)))
    session.note(f"{shape.name}: {count} inputs of {tokens} tokens, {ROUNDS} rounds, {len(lines)} ways")
    inputs = of_length(shape.family, kind, tokens, count)
    for _ in range(ROUNDS):
        for line in list(lines):
            with _failing(session, shape, tokens, line, lines):
                _time(session.device, line, inputs)
    return [_entry(session, shape, kind, tokens, count, line) for line in lines]


@contextmanager
def _failing(session: Session, shape: Shape, tokens: int, line: Line, lines: list[Line]) -> Iterator[None]:
    """Note what goes wrong in the context, such as memory that is full, and take the line out."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - whatever a library raises
        lines.remove(line)
        _note_failure(session, f"{shape.name}, {tokens} tokens, {line.name}", line.contestant, error)


def _note_failure(session: Session, what: str, contestant: Contestant, error: Exception, **about: Any) -> None:
    """Note that a contestant does not run: a failed check if it is ours, and not for want of memory."""
    from bge_runtime import OutOfMemoryError

    if contestant.library == OURS and not isinstance(error, OutOfMemoryError):
        session.fail(what, error, **about)
    else:
        session.leave_out(what, in_short(error))


def _time(device: str, line: Line, inputs: Inputs) -> None:
    with watching() as seen:
        started = time.perf_counter()
        _, peak = peak_bytes(device, lambda: line.opened.compute(inputs, line.batch))
        line.seconds.append(time.perf_counter() - started)
    line.forward.append(sum(event.seconds for event in seen.batches))
    if peak is not None:
        line.peak = max(line.peak or 0, peak + line.opened.bytes)


def _entry(session: Session, shape: Shape, kind: Kind, tokens: int, count: int, line: Line) -> dict[str, Any]:
    middle = statistics.median(line.seconds)
    contestant = line.contestant
    entry: dict[str, Any] = {
        "shape": shape.name,
        "kind": kind,
        "layers": shape.layers,
        "width": shape.width,
        "tokens": tokens,
        "library": contestant.library,
        "backend": contestant.backend,
        "precision": contestant.precision,
        "batch_size": line.batch,
        "count": count,
        "rounds": len(line.seconds),
        "per_s": _rounded(count / middle),
        "range": [_rounded(count / each) for each in (max(line.seconds), min(line.seconds))],
        "weights_bytes": line.opened.bytes,
    }
    rate = session.results.get("matrix", {}).get("tflops", {}).get(contestant.precision)
    if rate is not None:
        done = flops(shape.width, tokens * count, tokens**2 * count, layers=shape.layers)
        entry["share"] = _rounded(done / middle / (rate * 1e12))
    if any(line.forward):
        entry["forward_part"] = _rounded(statistics.median(line.forward) / middle)
    if line.peak is not None:
        entry["peak_bytes"] = line.peak
    return entry


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
