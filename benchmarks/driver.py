"""Run the speed benchmarks: every library in its own process and environment, in turn, round after round.

    python -m benchmarks.driver [--workloads ingest rerank] [--libraries ...] [--rounds 3] [--scale 0.1] [--resume]

A round runs every contestant once, A B C ..., on the same texts; only one computes at a time. A figure is the median
over rounds of the ratio to the incumbent in the same round. Rounds are appended to .benchmarks/rounds.jsonl as they
end, so that --resume continues an interrupted run; the results go to benchmarks/results/speed.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks import checkpoints, figures
from benchmarks.contestants import LIBRARIES, Contestant, choose
from benchmarks.processes import PLACE, ROOT, Unavailable, WorkerProcess, python_of, time_script
from benchmarks.starts import import_code, start_code
from benchmarks.workloads import CALLERS, WORKLOADS

__all__ = ["Run", "main", "size_of"]

RESULTS = ROOT / "benchmarks" / "results" / "speed.json"
WARM_UP_PART = 8
USUAL_ROUNDS = 3


def size_of(workload: str, scale: float | None) -> int:
    """Return the texts or queries of one round."""
    asked = WORKLOADS[workload]
    if scale is None or asked.kind == "process":
        return asked.usual
    least = CALLERS if workload == "concurrent" else 1
    return max(least, round(asked.full * scale))


@dataclass
class Run:
    """One run: its settings, its processes, and why contestants dropped out."""

    venvs: Path
    checkpoints: Path
    place: Path
    timeout_s: float = 900
    workers: dict[str, WorkerProcess] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def measure(self, workload: str, contestant: Contestant, count: int, turn: int) -> dict[str, Any]:
        """Run one contestant once.

        Raises:
            Unavailable: It cannot.
        """
        if WORKLOADS[workload].kind == "process":
            return self._time_process(workload, contestant)
        request = {
            "workload": workload,
            "surface": contestant.surface,
            "count": count,
            "turn": turn,
            "rows": str(self._rows(contestant)),
        }
        if workload == "growth":  # the most memory ever held is asked of a process that did nothing else
            self.close(contestant.process)
        return self._worker(contestant).ask(request, self.timeout_s)

    def round(
        self, workload: str, contestants: Sequence[Contestant], count: int, turn: int, progress: tqdm[Any]
    ) -> dict[str, Any]:
        """Run every contestant once, and compare results with the incumbent's."""
        shutil.rmtree(self.place / "rows", ignore_errors=True)
        (self.place / "rows").mkdir(parents=True)
        found: dict[str, Any] = {}
        names = {each.name: each for each in contestants}
        for contestant in contestants:
            progress.set_postfix_str(f"{workload}: {contestant.name}")
            if contestant.name not in self.reasons:
                try:
                    found[contestant.name] = self.measure(workload, contestant, count, turn)
                except Unavailable as error:
                    self._drop(workload, contestant, error)
            progress.update()
        for name, values in found.items():
            other = names.get(names[name].incumbent)
            if other is not None and other is not names[name]:
                values |= figures.compare(self._rows(names[name]), self._rows(other), WORKLOADS[workload].kind)
        return found

    def close(self, process: str | None = None) -> None:
        """End one worker, or all."""
        for name in [process] if process else list(self.workers):
            worker = self.workers.pop(name, None)
            if worker is not None:
                worker.close()

    def _worker(self, contestant: Contestant) -> WorkerProcess:
        name = contestant.process
        if name not in self.workers:
            log = self.place / "logs" / f"{name.replace(' ', '-')}.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            self.workers[name] = WorkerProcess(contestant, self.venvs, self.checkpoints, log)
            self.versions[contestant.library] = self.workers[name].versions
        return self.workers[name]

    def _drop(self, workload: str, contestant: Contestant, error: Unavailable) -> None:
        self.reasons[contestant.name] = _without_paths(str(error))
        tqdm.write(f"{workload}: {contestant.name} cannot run: {error}", file=sys.stderr)
        self.close(contestant.process)

    def _rows(self, contestant: Contestant) -> Path:
        return self.place / "rows" / f"{contestant.name.replace(' ', '-').replace(',', '')}.npy"

    def _time_process(self, workload: str, contestant: Contestant) -> dict[str, Any]:
        python = python_of(contestant.library, self.venvs)
        if workload == "import":
            _, printed = time_script(python, import_code(contestant))
            return {"seconds": float(printed)}
        seconds, _ = time_script(python, start_code(contestant, self.checkpoints / "embed"))
        return {"seconds": seconds}


def _without_paths(reason: str) -> str:
    """Drop this machine's folders, and what an import error in a traceback says before its name."""
    for folder, shown in ((str(ROOT), "."), (str(Path.home()), "~")):
        reason = reason.replace(folder, shown)
    return reason


def run_workload(
    run: Run, workload: str, contestants: Sequence[Contestant], rounds: int, count: int, *, log: Path, resume: bool
) -> list[dict[str, Any]]:
    """Warm up, then run the rounds that are missing; returns all of them."""
    key = {"workload": workload, "count": count, "contestants": [each.name for each in contestants]}
    done = [each for each in _logged(log) if resume and key == {name: each.get(name) for name in key}][:rounds]
    run.reasons = dict(done[-1]["reasons"]) if done else {}
    with tqdm(total=(rounds - len(done)) * len(contestants), desc=workload, unit="run") as progress:
        if len(done) < rounds and workload != "growth":
            warm_up = count if WORKLOADS[workload].kind == "process" else _warm_up_size(workload, count)
            run.round(workload, contestants, warm_up, -1, tqdm(disable=True))
        for turn in range(len(done), rounds):
            taking_part = [each for each in contestants if each.rounds is None or turn < each.rounds]
            entry = {**key, "turn": turn, "at": datetime.now(UTC).isoformat(timespec="seconds")}
            entry["measurements"] = run.round(workload, taking_part, count, turn, progress)
            entry["reasons"] = run.reasons
            with log.open("a", encoding="utf-8") as file:
                file.write(f"\n{json.dumps(entry)}\n")  # the line before may have been cut off
            done.append(entry)
    return done


def _warm_up_size(workload: str, count: int) -> int:
    least = {"concurrent": CALLERS, "lone": 3, "busy": 3}.get(workload, 1)
    return max(least, count // WARM_UP_PART)


def _logged(log: Path) -> list[dict[str, Any]]:
    """Return the rounds of an earlier run; a last line that was cut off is left out."""
    found = []
    for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def record(path: Path, workload: str, entry: dict[str, Any]) -> None:
    """Put a workload into the results; those of another machine are dropped."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    here = figures.machine()
    kept = known.get("workloads", {}) if known.get("machine") == here else {}
    kept[workload] = entry
    ordered = {name: kept[name] for name in WORKLOADS if name in kept}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": here, "workloads": ordered}, indent=1) + "\n", encoding="utf-8")


def minutes(workload: str, contestants: Sequence[Contestant], count: int, rounds: int) -> float:
    """Guess how long a workload takes on two cores."""
    asked = WORKLOADS[workload]
    everyone = choose(workload, list(LIBRARIES))
    share = len(contestants) / max(1, len(everyone))
    return asked.minutes * share * count / asked.usual * rounds / min(USUAL_ROUNDS, asked.rounds or USUAL_ROUNDS)


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--libraries", nargs="+", choices=LIBRARIES, default=list(LIBRARIES))
    parser.add_argument("--rounds", type=int, default=USUAL_ROUNDS)
    parser.add_argument("--scale", type=float, help="part of the whole workload per round: 1 is 2,000 passages")
    parser.add_argument("--resume", action="store_true", help="go on with the rounds of an interrupted run")
    parser.add_argument("--venvs", type=Path, default=PLACE / "venvs")
    parser.add_argument("--place", type=Path, default=PLACE, help="checkpoints, logs and rounds")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> None:
    """Run what is asked for."""
    asked = _arguments(given)
    plan = []
    for workload in asked.workloads:
        rounds = min(asked.rounds, WORKLOADS[workload].rounds or asked.rounds)
        plan.append((workload, choose(workload, asked.libraries), rounds, size_of(workload, asked.scale)))
    print(
        f"about {sum(minutes(name, who, count, rounds) for name, who, rounds, count in plan):.0f} minutes on two cores"
    )
    asked.place.mkdir(parents=True, exist_ok=True)
    log = asked.place / "rounds.jsonl"
    if not asked.resume:
        log.unlink(missing_ok=True)
    run = Run(
        venvs=asked.venvs.absolute(),
        checkpoints=checkpoints.write(asked.place.absolute() / "checkpoints"),
        place=asked.place.absolute(),
    )
    try:
        for at, (workload, contestants, rounds, count) in enumerate(plan):
            if not contestants:
                continue
            started = time.perf_counter()
            done = run_workload(run, workload, contestants, rounds, count, log=log, resume=asked.resume)
            taken = time.perf_counter() - started
            record(asked.out, workload, _entry(run, workload, contestants, done, count, taken))
            later = {each.process for _, others, _, _ in plan[at + 1 :] for each in others}
            for process in set(run.workers) - later:
                run.close(process)
    finally:
        run.close()
    print(f"results: {asked.out}; the tables of the documentation: python -m benchmarks.report")


def _entry(
    run: Run, workload: str, contestants: Sequence[Contestant], done: Sequence[dict[str, Any]], count: int, taken: float
) -> dict[str, Any]:
    measured = [each["measurements"] for each in done]
    libraries = {each.library for each in contestants}
    return {
        "command": " ".join(["python -m benchmarks.driver", *sys.argv[1:]]),
        "at": done[-1]["at"],
        "count": count,
        "rounds": len(done),
        "minutes": round(taken / 60, 1),
        "foreign_cpu_share": _foreign_share(values for each in measured for values in each.values()),
        "versions": {name: text for name, text in run.versions.items() if name in libraries},
        "figures": figures.figures(workload, measured, run.reasons),
    }


def _foreign_share(measured: Iterable[dict[str, Any]]) -> float | None:
    """Return what other processes computed, in parts of one core; above a few percent the figures are noise."""
    watched = [each for each in measured if "foreign_cpu_s" in each]
    if not watched:
        return None
    return round(sum(each["foreign_cpu_s"] for each in watched) / sum(each["wall_s"] for each in watched), 3)


if __name__ == "__main__":
    main()
