"""An ingestion that is killed three times and restarted computes almost nothing twice, and ends with the same index.

A child process ingests a whole collection through `BGEEmbeddings` with a cache file; it is killed (SIGKILL) at three
seeded points and started again each time. Exit status 1 when a restart computes what was stored, more than one
portion per kill is repeated, or the final vectors differ from those of an uninterrupted run.

    python benchmarks/resume.py --data FOLDER [--collection scifact] [--seed 0]
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from published import MODEL, RESULTS, machine, read_collection
from tqdm import tqdm

import bge_runtime
from bge_runtime import BatchEvent, Hook, VectorCache

KILLS = 3
LATEST_S = 4.0  # after a point was passed
PORTION = 8 * 2048 * 4  # characters computed between two writes with the default batch_tokens of a CPU


class Journal(Hook):
    """Writes the size of every batch to a file that survives the process."""

    def __init__(self, file: Path) -> None:
        """Append to `file`."""
        self._file = file.open("a", encoding="utf-8")

    def on_batch(self, event: BatchEvent) -> None:
        """Write before the vectors are delivered."""
        self._file.write(f"{event.inputs}\n")
        self._file.flush()


def ingest(texts: list[str], cache: VectorCache, journal: Path, out: Path) -> None:
    """Embed everything and save the vectors."""
    from langchain_bge import BGEEmbeddings

    bge_runtime.add_hook(Journal(journal))
    vectors = BGEEmbeddings(model=MODEL, vector_cache=cache, truncation="silent").embed_documents(texts)
    np.save(out, np.asarray(vectors, dtype=np.float32))


def computed(journal: Path) -> int:
    """Return how many texts the journal says were computed."""
    return sum(map(int, journal.read_text().split())) if journal.is_file() else 0


def child(options: argparse.Namespace, folder: Path) -> subprocess.Popen[bytes]:
    """Start an ingestion in a process of its own."""
    command = [sys.executable, __file__, "--data", str(options.data), "--collection", options.collection]
    return subprocess.Popen([*command, "--work", str(folder)])


def interrupted(options: argparse.Namespace, folder: Path, total: int) -> list[dict[str, int]]:
    """Kill the ingestion at seeded points, then let it end; return what each start found and computed."""
    cache = VectorCache(folder / "vectors.sqlite")
    dice = random.Random(options.seed)
    points = sorted(round(total * dice.uniform(0.1, 0.9)) for _ in range(KILLS))
    starts = []
    with tqdm(total=total, desc="ingestion, killed three times", unit="text") as progress:
        for point in [*points, None]:
            stored, before = cache.stats.entries, computed(folder / "journal")
            process = child(options, folder)
            while process.poll() is None:
                time.sleep(0.05)
                progress.update(cache.stats.entries - progress.n)
                if point is not None and cache.stats.entries >= max(point, stored + 1):
                    time.sleep(dice.uniform(0, LATEST_S))  # somewhere between two writes
                    process.kill()
                    break
            code = process.wait()
            starts.append(
                {
                    "stored_before": stored,
                    "stored_after": cache.stats.entries,
                    "computed": computed(folder / "journal") - before,
                    "exit": code,
                }
            )
    cache.close()
    return starts


def most_texts(texts: list[str], characters: int) -> int:
    """Return how many consecutive texts a portion can hold at most."""
    most = start = size = 0
    for end, text in enumerate(texts, 1):
        size += len(text)
        while size - len(texts[start]) >= characters:
            size -= len(texts[start])
            start += 1
        most = max(most, end - start)
    return most


def main(arguments: list[str] | None = None) -> int:
    """Run and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the collection")
    parser.add_argument("--collection", default="scifact")
    parser.add_argument("--seed", type=int, default=0, help="of the points at which the process is killed")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)  # what the child is told
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the results")
    options = parser.parse_args(arguments)
    texts = list(read_collection(options.data, options.collection).documents.values())
    if options.work:
        cache = VectorCache(options.work / "vectors.sqlite")
        ingest(texts, cache, options.work / "journal", options.work / "index.npy")
        return 0
    total = len(set(texts))
    with tempfile.TemporaryDirectory() as name:
        broken, whole = Path(name) / "broken", Path(name) / "whole"
        broken.mkdir()
        whole.mkdir()
        starts = interrupted(options, broken, total)
        if child(options, whole).wait():
            return 1
        difference = float(np.abs(np.load(broken / "index.npy") - np.load(whole / "index.npy")).max())
    repeated = sum(each["computed"] for each in starts) - total
    lost = [each["computed"] - (each["stored_after"] - each["stored_before"]) for each in starts]
    for number, each in enumerate(starts, 1):
        print(f"start {number}: {each['stored_before']} stored, {each['computed']} computed, exit {each['exit']}")
    print(f"{repeated} of {total} texts computed twice; per kill {lost[:KILLS]}; largest difference {difference:.1e}")
    found = []
    if [each["exit"] for each in starts] != [-9] * KILLS + [0]:
        found.append("the ingestion was not killed three times")
    if starts[-1]["computed"] != total - starts[-1]["stored_before"]:
        found.append("the last start did not compute exactly what was missing")
    if max(lost) > most_texts(texts, PORTION):
        found.append(f"a kill cost more than the {most_texts(texts, PORTION)} texts of one portion")
    if difference > 1e-5:
        found.append("the final index differs")
    options.results.mkdir(parents=True, exist_ok=True)
    entry = {"starts": starts, "texts": total, "repeated": repeated, "difference": difference, "machine": machine()}
    (options.results / "resume.json").write_text(json.dumps(entry, indent=2) + "\n")
    for line in found:
        print(f"OFF: {line}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
