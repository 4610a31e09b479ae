"""Measure texts per second for the shape of every published BERT and XLM-R model.

    python -m benchmarks.model_speed [--shapes small-en large ...] [--rounds 3] [--count 32] [--fresh]
    python tests/docs/model_table.py --write

Weights are random: speed depends on the shape alone. Texts have exactly 128 tokens and run through the packed backend
in float32 and int8, in turn, other texts in each round. Results go to benchmarks/results/model_speed.json and .png
after each shape, so that an interrupted run goes on where it stopped; those of another machine are dropped. The
second command takes them into docs/models.md.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from benchmarks.checkpoints import write_modules, write_tokenizer
from benchmarks.figures import machine
from benchmarks.processes import ROOT, busy_s
from benchmarks.workloads import VOCABULARY

__all__ = ["SHAPES", "Shape", "main", "measure", "record", "write"]

RESULTS = ROOT / "benchmarks" / "results" / "model_speed.json"
TOKENS = 128
LONGEST = 512
PRECISIONS = ("float32", "int8")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What decides how fast a model is.

    Attributes:
        name: What the results call it.
        family: Architecture.
        layers: Number of layers.
        width: Length of a token's state; the inner layer is four times as wide.
        heads: Number of attention heads.
        vocabulary: Number of tokens that the embedding table holds.
        models: Ids of the models that have this shape; rerankers have a head more, on one row.
    """

    name: str
    family: Literal["bert", "xlm-roberta"]
    layers: int
    width: int
    heads: int
    vocabulary: int
    models: tuple[str, ...]


def _baai(*names: str) -> tuple[str, ...]:
    return tuple(f"BAAI/{name}" for name in names)


BASE = _baai("bge-base-en-v1.5", "bge-base-en", "bge-base-zh-v1.5", "bge-base-zh", "llm-embedder")
LARGE = _baai("bge-large-en-v1.5", "bge-large-en", "bge-large-zh-v1.5", "bge-large-zh", "bge-large-zh-noinstruct")
M3 = _baai("bge-m3", "bge-m3-unsupervised", "bge-reranker-large", "bge-reranker-v2-m3")
SHAPES = (
    Shape(
        name="minilm",
        family="bert",
        layers=6,
        width=384,
        heads=12,
        vocabulary=30_522,
        models=("sentence-transformers/all-MiniLM-L6-v2",),
    ),
    Shape(
        name="small-zh",
        family="bert",
        layers=4,
        width=512,
        heads=8,
        vocabulary=21_128,
        models=_baai("bge-small-zh-v1.5", "bge-small-zh"),
    ),
    Shape(
        name="small-en",
        family="bert",
        layers=12,
        width=384,
        heads=12,
        vocabulary=30_522,
        models=_baai("bge-small-en-v1.5", "bge-small-en"),
    ),
    Shape(name="base", family="bert", layers=12, width=768, heads=12, vocabulary=30_522, models=BASE),
    Shape(
        name="reranker-base",
        family="xlm-roberta",
        layers=12,
        width=768,
        heads=12,
        vocabulary=250_002,
        models=_baai("bge-reranker-base"),
    ),
    Shape(name="large", family="bert", layers=24, width=1024, heads=16, vocabulary=30_522, models=LARGE),
    Shape(name="m3", family="xlm-roberta", layers=24, width=1024, heads=16, vocabulary=250_002, models=M3),
)


def write(folder: Path, shape: Shape) -> Path:
    """Write a seeded checkpoint of this shape into a folder and return it."""
    import torch
    import transformers

    torch.manual_seed(0)
    stem = "Bert" if shape.family == "bert" else "XLMRoberta"
    special = {} if shape.family == "bert" else {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    config = getattr(transformers, f"{stem}Config")(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.width,
        max_position_embeddings=LONGEST + (2 if special else 0),
        **special,
    )
    getattr(transformers, f"{stem}Model")(config).eval().save_pretrained(folder)
    write_tokenizer(folder)
    write_modules(folder, shape.width)
    return folder


def measure(folder: Path, *, rounds: int, count: int) -> dict[str, Any]:
    """Return the medians over rounds of texts per second by precision, and why a precision does not run."""
    from bge_runtime import BGEError, Embedder

    seconds: dict[str, list[float]] = {}
    reasons = {}
    with ExitStack() as opened:
        embedders = {}
        for precision in PRECISIONS:
            try:
                embedder = Embedder(folder, device="cpu", backend="packed", precision=precision)
                opened.enter_context(embedder).encode_documents(_texts(count, -1))
            except BGEError as error:
                reasons[precision] = " ".join(str(error).split())
                continue
            embedders[precision] = embedder
        started, own, others = time.perf_counter(), time.process_time(), busy_s()
        for turn in range(rounds):
            texts = _texts(count, turn)
            for precision, embedder in embedders.items():
                before = time.perf_counter()
                embedder.encode_documents(texts)
                seconds.setdefault(precision, []).append(time.perf_counter() - before)
        foreign = max(0.0, busy_s() - others - (time.process_time() - own)) / (time.perf_counter() - started)
    return {
        "texts_per_s": {name: round(count / statistics.median(each), 2) for name, each in seconds.items()},
        "range": {
            name: [round(count / time_s, 2) for time_s in (max(each), min(each))] for name, each in seconds.items()
        },
        "reasons": reasons,
        "foreign_cpu_share": round(foreign, 3),
    }


def _texts(count: int, turn: int) -> list[str]:
    """Return distinct texts of 128 tokens, the two special ones included."""
    dice = random.Random(f"model speed {turn}")
    return [" ".join(dice.choices(VOCABULARY, k=TOKENS - 2)) for _ in range(count)]


def known(path: Path) -> dict[str, Any]:
    """Return the shapes in the results, none when another machine made them."""
    stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return dict(stored["shapes"]) if stored.get("machine") == machine() else {}


def record(path: Path, shape: Shape, entry: dict[str, Any]) -> None:
    """Put a shape into the results."""
    shapes = {**known(path), shape.name: {"models": shape.models, **entry}}
    ordered = {each.name: shapes[each.name] for each in SHAPES if each.name in shapes}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps({"machine": machine(), "tokens": TOKENS, "shapes": ordered}, indent=1) + "\n", encoding="utf-8"
    )


def draw(path: Path) -> None:
    """Draw the results beside their file: bars by shape and precision."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shapes = known(path)
    figure, axes = pyplot.subplots(figsize=(8, 0.7 * len(shapes) + 1), layout="constrained")
    for at, precision in enumerate(PRECISIONS):
        places = [number + 0.4 * at for number in range(len(shapes))]
        values = [each["texts_per_s"].get(precision, 0.0) for each in shapes.values()]
        bars = axes.barh(places, values, height=0.38, label=precision)
        axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
    axes.set_yticks([number + 0.2 for number in range(len(shapes))], list(shapes))
    axes.set_xscale("log")
    axes.margins(x=0.1)
    axes.set_xlabel(f"texts of {TOKENS} tokens per second")
    axes.invert_yaxis()
    axes.legend()
    figure.savefig(path.with_suffix(".png"), dpi=120)
    pyplot.close(figure)


def main(given: Sequence[str] | None = None) -> None:
    """Measure the shapes that the results lack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    by_name = {shape.name: shape for shape in SHAPES}
    parser.add_argument("--shapes", nargs="+", choices=by_name, default=list(by_name))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=32, help="texts in a round")
    parser.add_argument("--fresh", action="store_true", help="measure again what is in the results")
    parser.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_args(given)
    done = {} if asked.fresh else known(asked.results)
    for name in tqdm([name for name in asked.shapes if name not in done], unit="shape"):
        with tempfile.TemporaryDirectory() as place:
            figures = measure(write(Path(place), by_name[name]), rounds=asked.rounds, count=asked.count)
        about = {
            "rounds": asked.rounds,
            "count": asked.count,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        record(asked.results, by_name[name], {**figures, **about})
        shown = ", ".join(f"{precision} {value}" for precision, value in figures["texts_per_s"].items())
        tqdm.write(f"{name}: {shown} texts/s (other processes computed {figures['foreign_cpu_share']:.0%} of a core)")
    draw(asked.results)
    print(f"results: {asked.results}; the tables of the documentation: python tests/docs/model_table.py --write")


if __name__ == "__main__":
    main()
