"""From the measurements of rounds to figures: medians of ratios within a round, their range, the machine's share."""

from __future__ import annotations

import os
import platform
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contestants import CONTESTANTS, LIMIT, Contestant
from benchmarks.limit import SHAPES, flops
from benchmarks.workloads import WORKLOADS

__all__ = ["compare", "figures", "machine"]

# Values of a measurement of which the median is kept; `seconds` is what ratios are made of.
_MEDIANS = ("seconds", "queries_per_s", "p50_s", "p99_s", "idle_p50_s", "idle_p99_s", "tokens_per_s", "peak_bytes")
_KEPT = ("steps", "model_bytes", "gflops", "libraries")


def compare(rows: Path, reference: Path, kind: str) -> dict[str, float]:
    """Return the largest difference of two results and, for vectors, the lowest cosine."""
    if not (rows.is_file() and reference.is_file()):
        return {}
    mine, other = np.load(rows).astype(np.float64), np.load(reference).astype(np.float64)
    if mine.shape != other.shape:
        return {}
    found = {"difference": float(np.abs(mine - other).max())}
    if kind == "embed":
        norms = np.linalg.norm(mine, axis=-1) * np.linalg.norm(other, axis=-1)
        found["cosine"] = float(((mine * other).sum(-1) / norms).min())
    return found


def figures(workload: str, rounds: Sequence[dict[str, Any]], reasons: dict[str, str]) -> list[dict[str, Any]]:
    """Return one figure per contestant.

    Args:
        workload: Its name.
        rounds: One per round: contestant -> values.
        reasons: Why a contestant did not run.
    """
    found = []
    for contestant in CONTESTANTS:
        mine = [each[contestant.name] for each in rounds if contestant.name in each]
        about = {"name": contestant.name, "surface": contestant.surface}
        if mine:
            values = _values(workload, contestant, rounds, mine)
            found.append({**about, "rounds": len(mine), **values})
        elif contestant.name in reasons:
            found.append({**about, "reason": reasons[contestant.name]})
    return found


def _values(
    workload: str, contestant: Contestant, rounds: Sequence[dict[str, Any]], mine: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    for each in mine:
        if "tokens" in each:
            each["tokens_per_s"] = each["tokens"] / each["seconds"]
    values: dict[str, Any] = {
        name: round(statistics.median(each[name] for each in mine), 6) for name in _MEDIANS if name in mine[0]
    }
    values |= {name: mine[-1][name] for name in _KEPT if name in mine[-1]}
    values |= {name: max(each[name] for each in mine) for name in ("difference",) if name in mine[0]}
    values |= {name: min(each[name] for each in mine) for name in ("cosine",) if name in mine[0]}
    values |= _spread("ratio", _ratios(contestant, rounds))
    for name, pruned in (("limit_share", False), ("limit_share_pruned", True)):
        values |= _spread(name, _shares(workload, contestant, rounds, pruned))
    return values


def _ratios(contestant: Contestant, rounds: Sequence[dict[str, Any]]) -> list[float]:
    """Return how many times as fast as the incumbent of the same round."""
    both = [each for each in rounds if contestant.name in each and contestant.incumbent in each]
    return [each[contestant.incumbent]["seconds"] / each[contestant.name]["seconds"] for each in both]


def _shares(workload: str, contestant: Contestant, rounds: Sequence[dict[str, Any]], pruned: bool) -> list[float]:
    """Return the rate reached on real tokens, over the machine's best at this precision in the same round."""
    precision = contestant.precision or "float32"
    width = SHAPES.get(WORKLOADS[workload].kind, 0)
    shares = []
    for each in rounds:
        mine, limit = each.get(contestant.name), each.get(LIMIT)
        if mine is None or limit is None or "tokens" not in mine or precision not in limit["gflops"]:
            continue
        done = flops(width, mine["tokens"], mine["squares"], pruned=pruned)
        shares.append(done / mine["seconds"] / (1e9 * limit["gflops"][precision]))
    return shares


def _spread(name: str, values: Sequence[float]) -> dict[str, Any]:
    if not values:
        return {}
    return {
        name: round(statistics.median(values), 4),
        f"{name}_range": [round(min(values), 4), round(max(values), 4)],
    }


def machine() -> dict[str, Any]:
    """Describe this machine."""
    cpu = Path("/proc/cpuinfo")
    text = cpu.read_text(encoding="utf-8") if cpu.exists() else ""
    name = re.search(r"model name\s*:\s*(.+)", text)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)", text, flags=re.MULTILINE)
    wanted = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_bf16", "amx_int8")
    present = set(flags[1].split()) if flags else set()
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    return {
        "processor": name[1] if name else platform.processor() or platform.machine(),
        "flags": [flag for flag in wanted if flag in present],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(pages / 1e9, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
    }
