"""`bge embed` of many short texts, killed again and again, ends with the rows of a run that nobody disturbed.

    python benchmarks/bulk_killed.py [--texts 100000] [--parts 20] [--seed 0] [--only plain ray memory rate]

`plain`: a process is killed (SIGKILL) at three seeded points and started again each time. `ray`: the same on a Ray
cluster of two machines with one core each, both of them here, so that there are two workers; at seeded points a
worker is killed, then a machine with all of its processes, then the driver, which is started again. `memory`: the
driver's peak at a tenth of the texts and at all of them. `rate`: one worker on Ray against a run without Ray, by the
time from the first finished part to the last. Exit status 1 when rows differ, more is computed twice than parts were
under way, the driver's memory grows by more than 10%, or one worker reaches less than 0.9 of the rate.

Results go to benchmarks/results/bulk_killed.json, or where --results says; the parts of --only are replaced there.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from published import MODEL, RESULTS, machine
from tqdm import tqdm

from bge_runtime import Embedder, __version__
from bge_runtime.bulk import embed_to_parquet

KILLS = 3
ROUNDS = 3
LEAST_RATE = 0.9
MOST_GROWTH = 1.1
ALLOWED = 1e-5
WORDS = "pump valve filter water tank pipe motor oil gauge seal rotor brake wheel lamp wire fuse cable panel".split()


def write_texts(file: Path, count: int) -> Path:
    """Write different texts of four to eight words, as JSON lines with ids."""
    dice = random.Random(0)
    with file.open("w", encoding="utf-8") as lines:
        for number in range(count):
            text = " ".join(dice.choices(WORDS, k=dice.randint(3, 7)))
            lines.write(json.dumps({"id": f"t{number}", "text": f"{number} {text}"}) + "\n")
    return file


def parts_of(folder: Path) -> list[Path]:
    """Return the finished parts, in order."""
    return sorted(folder.glob("*.parquet"))


def rows_of(folder: Path) -> tuple[list[str], Any]:
    """Return all ids and vectors, in the order of the parts."""
    table = pq.read_table(parts_of(folder), columns=["id", "vector"])
    return table["id"].to_pylist(), np.concatenate([chunk.flatten().to_numpy() for chunk in table["vector"].chunks])


def begun(source: Path, out: Path, part_rows: int, ray: str | None = None) -> subprocess.Popen[str]:
    """Start a run in a process of its own."""
    command = [sys.executable, __file__, "--child", str(source), str(out), str(part_rows), *([ray] if ray else [])]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Wait for a run, and return what it told."""
    out, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"a run ended with {process.returncode}")
    told: dict[str, Any] = json.loads(out.splitlines()[-1])
    return told


def child(source: str, out: str, part_rows: str, ray: str | None = None) -> None:
    """Run, and tell the result and this process's peak of memory."""
    result = embed_to_parquet(source, out, Embedder(MODEL), part_rows=int(part_rows), ray=ray)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    told = {name: value for name, value in result.as_dict().items() if name != "folder"}  # which is gone soon
    print(json.dumps({**told, "peak_mb": peak}), flush=True)


def wait_for(process: subprocess.Popen[str], out: Path, count: int, progress: tqdm[Any]) -> bool:
    """Wait until so many parts are finished; False if the process ended before."""
    while process.poll() is None:
        found = len(parts_of(out))
        progress.update(found - progress.n)
        if found >= count:
            time.sleep(random.Random(count).uniform(0, 1))  # somewhere within a part
            return True
        time.sleep(0.02)
    return False


def descendants() -> dict[int, bytes]:
    """Return the processes that descend from this one, with their command lines."""
    parents, commands = {}, {}
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                parents[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
                commands[int(process.name)] = (process / "cmdline").read_bytes()
            except OSError:  # it has ended meanwhile
                continue
    ours = {os.getpid()}
    while more := {each for each, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return {each: commands[each] for each in ours if each in commands}


@contextmanager
def cluster(*cores: int) -> Iterator[Any]:
    """Have a Ray cluster of some machines, all of them here."""
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": cores[0], "include_dashboard": False})
    try:
        for count in cores[1:]:
            found.add_node(num_cpus=count)
        found.wait_for_nodes()
        yield found
    finally:
        found.shutdown()


def compared(whole: Path, out: Path) -> dict[str, Any]:
    """Return how the rows of a disturbed run differ from those of an undisturbed one."""
    (ids, vectors), (other_ids, others) = rows_of(whole), rows_of(out)
    same = ids == other_ids and vectors.shape == others.shape
    return {"same_rows": same, "largest_difference": float(np.abs(vectors - others).max()) if same else None}


def killed(source: Path, work: Path, options: argparse.Namespace, part_rows: int) -> dict[str, Any]:
    """Kill a run without Ray at seeded points."""
    out, starts = work / "killed", []
    points = sorted(random.Random(options.seed).sample(range(1, options.parts - 1), KILLS))
    with tqdm(total=options.parts, desc="killed three times", unit="part") as progress:
        for point in points:
            process = begun(source, out, part_rows)
            if not wait_for(process, out, point, progress):
                raise SystemExit("the run ended before it was killed")
            process.send_signal(signal.SIGKILL)
            process.communicate()
            starts.append({"killed_at": point, "finished": len(parts_of(out))})
        last = ended(begun(source, out, part_rows))
    return {"starts": starts, "last": last, **compared(work / "whole", out)}


def killed_on_ray(source: Path, work: Path, options: argparse.Namespace, part_rows: int) -> dict[str, Any]:
    """Kill a worker, a machine and the driver at seeded points."""
    out = work / "on-ray"
    points = sorted(random.Random(options.seed).sample(range(2, options.parts - 3), KILLS))
    told: dict[str, Any] = {"killed_at": dict(zip(("worker", "machine", "driver"), points, strict=True))}
    with tqdm(total=options.parts, desc="killed on Ray", unit="part") as progress:
        with cluster(1, 1) as machines:
            process = begun(source, out, part_rows, machines.address)
            for what, point in told["killed_at"].items():
                if not wait_for(process, out, point, progress):
                    raise SystemExit(f"the run ended before its {what} was killed")
                workers = [each for each, line in descendants().items() if line.startswith(b"ray::PartWorker")]
                told.setdefault("workers", []).append(len(workers))
                if what == "worker":
                    os.kill(max(workers), signal.SIGKILL)
                elif what == "machine":
                    machines.remove_node(max(machines.worker_nodes, key=id), allow_graceful=False)
                else:
                    process.send_signal(signal.SIGKILL)
                    process.communicate()
            told["finished"] = len(parts_of(out))
            machines.add_node(num_cpus=1)
            machines.wait_for_nodes()
            process = begun(source, out, part_rows, machines.address)
            wait_for(process, out, options.parts, progress)
            told["last"] = ended(process)
    return {**told, **compared(work / "whole", out)}


def rate_of(folder: Path) -> float:
    """Return rows a second from the first finished part to the last."""
    ends = sorted((part.stat().st_mtime, pq.read_metadata(part).num_rows) for part in parts_of(folder))
    return sum(rows for _, rows in ends[1:]) / (ends[-1][0] - ends[0][0])


def rates(work: Path, count: int) -> dict[str, Any]:
    """Run with one worker on Ray and without Ray, in turn."""
    source, found = write_texts(work / "rate.jsonl", count), []
    cores = len(os.sched_getaffinity(0))
    for number in range(ROUNDS):
        row = {}
        for name in ("plain", "ray"):
            out = work / f"rate-{name}-{number}"
            if name == "plain":
                ended(begun(source, out, count // 10))
            else:
                with cluster(cores) as machines:
                    ended(begun(source, out, count // 10, machines.address))
            row[name] = round(rate_of(out), 1)
        found.append(row)
        print(json.dumps(row), flush=True)
    return {"texts": count, "rounds": found, "ratio": statistics.median(row["ray"] / row["plain"] for row in found)}


def memory(source: Path, work: Path, count: int, part_rows: int) -> dict[str, Any]:
    """Return the driver's peak at a tenth of the texts and at all of them."""
    few = write_texts(work / "few.jsonl", count // 10)
    with cluster(1, 1) as machines:
        small = ended(begun(few, work / "memory-few", part_rows, machines.address))
        large = ended(begun(source, work / "memory-all", part_rows, machines.address))
    return {"rows": [small["rows"], large["rows"]], "peak_mb": [small["peak_mb"], large["peak_mb"]]}


def faults(found: dict[str, Any], part_rows: int) -> Iterator[str]:
    """Say what is not as it should be."""
    for name, workers in (("plain", 1), ("ray", 2)):
        if told := found.get(name):
            if not told["same_rows"] or told["largest_difference"] > ALLOWED:
                yield f"{name}: the rows differ"
            if told["last"]["recomputed"] > workers * part_rows:
                yield f"{name}: {told['last']['recomputed']} texts computed twice"
    if (told := found.get("memory")) and told["peak_mb"][1] > MOST_GROWTH * told["peak_mb"][0]:
        yield "the driver's memory grows with the rows"
    if (told := found.get("rate")) and told["ratio"] < LEAST_RATE:
        yield f"one worker on Ray reaches {told['ratio']:.2f} of the rate"


def main() -> int:
    """Run, compare, and keep the figures."""
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=100_000)
    parser.add_argument("--parts", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the points at which something is killed")
    choices = ("plain", "ray", "memory", "rate")
    parser.add_argument("--only", nargs="+", choices=choices, default=choices)
    parser.add_argument("--results", type=Path, default=RESULTS / "bulk_killed.json")
    options = parser.parse_args()
    part_rows = options.texts // options.parts
    found: dict[str, Any] = json.loads(options.results.read_text()) if options.results.is_file() else {}
    found |= {"version": __version__, "machine": machine(), "model": MODEL, "texts": options.texts}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        source = write_texts(work / "texts.jsonl", options.texts)
        if {"plain", "ray"} & set(options.only):
            found["whole"] = ended(begun(source, work / "whole", part_rows))
        for only in options.only:
            if only == "plain":
                found[only] = killed(source, work, options, part_rows)
            elif only == "ray":
                found[only] = killed_on_ray(source, work, options, part_rows)
            elif only == "memory":
                found[only] = memory(source, work, options.texts, part_rows)
            else:
                found[only] = rates(work, max(options.texts // 10, 10))
            print(json.dumps({only: found[only]}, indent=1), flush=True)
    options.results.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    off = list(faults(found, part_rows))
    for line in off:
        print(f"OFF: {line}", file=sys.stderr)
    return 1 if off else 0


if __name__ == "__main__":
    sys.exit(main())
