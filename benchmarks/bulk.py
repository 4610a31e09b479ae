"""How much of the speed of plain calls `embed_to_parquet` keeps, reading and writing included.

Both embed the same texts with the same weights, in turn, after one run of each that does not count: `encode_documents`
in one call over a list in memory, and `embed_to_parquet` from a file of JSON lines to parts on the disk. Exit status 1
when the median over rounds of the ratio is below 0.9.

    python benchmarks/bulk.py [--model MODEL] [--texts 5000] [--part-rows N] [--format float32] [--rounds 3]
        [--device DEVICE] [--precision PRECISION]

Results go to benchmarks/results/bulk.json, or where --results says.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from published import MODEL, RESULTS, machine

from bge_runtime import Embedder, __version__
from bge_runtime.bulk import embed_to_parquet

LEAST = 0.9
LENGTHS = (4, 24)  # words
SYLLABLES = ("ba", "no", "ri", "te", "lu", "ka", "so", "mi", "den", "tor", "val", "pe")


def short_texts(count: int) -> list[str]:
    """Return different texts of 4 to 23 made-up words."""
    dice = np.random.default_rng(0)
    words = ["".join(dice.choice(SYLLABLES, dice.integers(1, 4))) for _ in range(2000)]
    return [f"{number} " + " ".join(dice.choice(words, dice.integers(*LENGTHS))) for number in range(count)]


def plain(embedder: Embedder, texts: list[str]) -> tuple[float, Any]:
    """Return the seconds of one call, and its vectors."""
    begun = time.perf_counter()
    vectors = embedder.encode_documents(texts)
    return time.perf_counter() - begun, vectors


def bulk(embedder: Embedder, file: Path, options: argparse.Namespace) -> tuple[float, Any]:
    """Return the seconds from file to parts, and the vectors in them."""
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        result = embed_to_parquet(
            file, Path(folder) / "out", embedder, format=options.format, part_rows=options.part_rows
        )
        seconds = time.perf_counter() - begun
        columns = [pq.read_table(part).column("vector") for part in sorted(result.folder.glob("*.parquet"))]
        return seconds, np.concatenate([np.stack(column.to_numpy()) for column in columns])


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Run both in turn."""
    texts = short_texts(options.texts)
    ratios, rows = [], []
    with (
        tempfile.TemporaryDirectory() as folder,
        Embedder(options.model, device=options.device, precision=options.precision) as embedder,
    ):
        file = Path(folder) / "texts.jsonl"
        file.write_text("".join(json.dumps({"id": f"t{at}", "text": text}) + "\n" for at, text in enumerate(texts)))
        tokens = sum(embedder.count_tokens(texts))
        difference = 0.0
        for round_ in range(options.rounds + 1):
            (one, expected), (other, found) = plain(embedder, texts), bulk(embedder, file, options)
            if options.format == "float32":
                difference = max(difference, float(np.abs(expected - found).max()))
            if round_:  # the first does not count
                ratios.append(one / other)
                rows.append({"plain": options.texts / one, "bulk": options.texts / other})
        device, precision = embedder.device, embedder.precision
    return {
        "version": __version__,
        "machine": machine(),
        "model": options.model,
        "device": device,
        "precision": precision,
        "texts": options.texts,
        "tokens": tokens,
        "format": options.format,
        "part_rows": options.part_rows,
        "texts_per_second": {
            name: round(statistics.median(row[name] for row in rows), 1) for name in ("plain", "bulk")
        },
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "largest_difference": difference,
    }


def main() -> int:
    """Measure, print and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--texts", type=int, default=5000)
    parser.add_argument("--part-rows", type=int, default=None, help="default: that of embed_to_parquet")
    parser.add_argument("--format", default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default=None)
    parser.add_argument("--precision", default=None)
    parser.add_argument("--results", type=Path, default=RESULTS / "bulk.json")
    options = parser.parse_args()
    found = measured(options)
    print(json.dumps(found, indent=2))
    options.results.parent.mkdir(parents=True, exist_ok=True)
    options.results.write_text(json.dumps(found, indent=2) + "\n")
    return 0 if found["ratio"] >= LEAST else 1


if __name__ == "__main__":
    sys.exit(main())
