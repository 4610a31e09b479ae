"""What `bge bench` measures: the user's own texts, on this machine, against plain sentence-transformers."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import bge_runtime
from bge_runtime import BGEError, ConfigurationError, Embedder, InputError, Reranker
from bge_runtime.search.documents import find_files, read_sections

__all__ = ["MODES", "Comparison", "Row", "compare", "read_queries", "read_texts"]

# The first one that runs is what errors are measured against.
MODES = (
    ("packed", "float32"),
    ("torch", "float32"),
    ("packed", "bfloat16"),
    ("packed", "int8"),
    ("openvino", "float32"),
    ("openvino", "bfloat16"),
    ("openvino", "int8"),
    ("onnx", "float32"),
    ("onnx", "int8"),
)
GPU_MODES = (("torch", "float32"), ("torch", "float16"), ("torch", "bfloat16"))
INCUMBENT = "sentence-transformers"
QUERY_WORDS = 8
WARM_UP_TEXTS = 8

Rows = NDArray[np.float32]
Way = Callable[[Sequence[Any]], Rows]


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One way of running, or the reason why it does not run.

    Attributes:
        name: `sentence-transformers`, or backend and precision.
        seconds: Median over rounds.
        texts_per_s: Texts (rerankers: pairs) per second.
        tokens_per_s: Tokens per second, padding not counted.
        ratio: Median over rounds of sentence-transformers' seconds over its own, in the same round.
        ratio_range: Lowest and highest of them.
        cosine_min: Lowest cosine to the vectors of the runtime's own float32; `None` for rerankers.
        cosine_mean: Mean of them.
        difference: Largest difference to the runtime's own float32, of scores or of vector entries.
        reason: Why it does not run.
    """

    name: str
    seconds: float | None = None
    texts_per_s: float | None = None
    tokens_per_s: float | None = None
    ratio: float | None = None
    ratio_range: tuple[float, float] | None = None
    cosine_min: float | None = None
    cosine_mean: float | None = None
    difference: float | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """A whole comparison.

    Attributes:
        model: As named by the caller.
        kind: `embedder` or `reranker`.
        device: Where everything ran.
        texts: Number of texts, or of pairs.
        tokens: Of all texts together.
        rounds: How often each way ran.
        rows: sentence-transformers first.
    """

    model: str
    kind: str
    device: str
    texts: int
    tokens: int
    rounds: int
    rows: tuple[Row, ...]


def read_texts(data: Path, limit: int | None = None) -> list[str]:
    """Return distinct texts, evenly picked when there are more than `limit`.

    Args:
        data: A `.jsonl` file with objects that have `text`, any other file with one text per line, or a folder of
            documents, whose sections are taken.
        limit: Most texts; `None` takes all.

    Raises:
        ConfigurationError: The path does not exist or holds nothing readable.
        InputError: It holds no text.
    """
    if not data.exists():
        raise ConfigurationError(f"--data {str(data)!r} does not exist. Name a file or a folder with texts.")
    texts = _folder_texts(data) if data.is_dir() else _file_texts(data)
    found = list(dict.fromkeys(text for text in map(str.strip, texts) if text))
    if not found:
        raise InputError(f"{str(data)!r} holds no text. One text per line, JSON lines with 'text', or a folder.")
    if limit is None or len(found) <= limit:
        return found
    return [found[at * len(found) // limit] for at in range(limit)]


def read_queries(queries: Path | None, texts: Sequence[str]) -> list[str]:
    """Return the queries of a file; without one, the first words of the first text stand for a query."""
    return read_texts(queries) if queries is not None else [" ".join(texts[0].split()[:QUERY_WORDS])]


def compare(
    model: str,
    texts: Sequence[str],
    *,
    queries: Sequence[str] = (),
    rounds: int = 3,
    modes: Sequence[tuple[str, str]] | None = None,
    show_progress: bool = False,
) -> Comparison:
    """Run sentence-transformers and the runtime's own ways in turn, after one run of each that does not count.

    Args:
        model: Name or folder of an embedder or a reranker.
        texts: Documents.
        queries: For rerankers: each is paired with every text.
        rounds: How often each runs.
        modes: Pairs of backend and precision; `None` takes all that go with the device.
        show_progress: Whether to show a progress bar on standard error.

    Raises:
        BGEError: The model cannot be found or run at all.
    """
    device = bge_runtime.choose_device().device
    kind = "reranker" if Reranker(model).method == "cross_encoder" else "embedder"
    items: Sequence[Any] = [(query, text) for query in queries for text in texts] if kind == "reranker" else texts
    chosen = modes or (MODES if device == "cpu" else GPU_MODES)
    names = [f"{backend} {precision}" for backend, precision in chosen]
    with ExitStack() as opened:
        # No bar that is merely disabled: making one takes a lock of the whole process.
        progress = opened.enter_context(tqdm(total=len(chosen), unit="run")) if show_progress else None
        race = _Race(items, {INCUMBENT: _plain(model, kind, device)})
        for name, (backend, precision) in zip(names, chosen, strict=True):
            _show(progress, name)
            try:
                options = {"backend": backend, "precision": precision, "device": device, "truncation": "silent"}
                race.enter(name, _ours(model, kind, options, opened))
            except (BGEError, ImportError) as error:
                race.reasons[name] = " ".join(str(error).split())
            _count(progress)
        if progress is not None:
            progress.reset(rounds * len(race.ways))
        race.run(rounds, progress)
    rows = tuple(race.row(name, kind) for name in [INCUMBENT, *names])
    return Comparison(
        model=model, kind=kind, device=device, texts=len(items), tokens=race.tokens, rounds=rounds, rows=rows
    )


def _show(progress: tqdm[Any] | None, name: str) -> None:
    if progress is not None:
        progress.set_postfix_str(name)


def _count(progress: tqdm[Any] | None) -> None:
    if progress is not None:
        progress.update()


class _Race:
    """Ways of computing the same items, run in turn."""

    def __init__(self, items: Sequence[Any], ways: dict[str, Way]) -> None:
        self.items = items
        self.ways = ways
        self.reasons: dict[str, str] = {}
        self.tokens = 0
        self._seconds: dict[str, list[float]] = {}
        self._results: dict[str, Rows] = {}

    def enter(self, name: str, way: Way) -> None:
        """Add one of ours, with the run that does not count; it also tells how many tokens there are."""
        before = bge_runtime.stats()["tokens"]
        self._results[name] = way(self.items)
        self.tokens = self.tokens or int(bge_runtime.stats()["tokens"] - before)
        self.ways[name] = way

    def run(self, rounds: int, progress: tqdm[Any] | None) -> None:
        """Run all in turn."""
        self.ways[INCUMBENT](self.items[:WARM_UP_TEXTS])
        for _ in range(rounds):
            for name, way in self.ways.items():
                _show(progress, name)
                started = time.perf_counter()
                self._results[name] = way(self.items)
                self._seconds.setdefault(name, []).append(time.perf_counter() - started)
                _count(progress)

    def row(self, name: str, kind: str) -> Row:
        """Return the figures of one way."""
        if name in self.reasons:
            return Row(name=name, reason=self.reasons[name])
        seconds = statistics.median(self._seconds[name])
        ratios = [theirs / mine for theirs, mine in zip(self._seconds[INCUMBENT], self._seconds[name], strict=True)]
        rows = self._results[name]
        own = next((result for other, result in self._results.items() if other.endswith(" float32")), None)
        cosines = _cosines(rows, own) if kind == "embedder" and own is not None else None
        return Row(
            name=name,
            seconds=seconds,
            texts_per_s=len(rows) / seconds,
            tokens_per_s=self.tokens / seconds if self.tokens else None,
            ratio=statistics.median(ratios),
            ratio_range=(min(ratios), max(ratios)),
            cosine_min=float(cosines.min()) if cosines is not None else None,
            cosine_mean=float(cosines.mean()) if cosines is not None else None,
            difference=float(np.abs(rows - own).max()) if own is not None else None,
        )


def _plain(model: str, kind: str, device: str) -> Way:
    """sentence-transformers as its users call it."""
    from sentence_transformers import CrossEncoder, SentenceTransformer

    folder = str(model if Path(model).is_dir() else bge_runtime.locate(model) or bge_runtime.download(model))
    if kind == "reranker":
        cross = CrossEncoder(folder, device=device)
        return lambda items: np.asarray(cross.predict(list(items)), dtype=np.float32)
    encoder = SentenceTransformer(folder, device=device)
    return lambda items: np.asarray(encoder.encode(list(items)), dtype=np.float32)


def _ours(model: str, kind: str, options: dict[str, Any], opened: ExitStack) -> Way:
    if kind == "reranker":
        return opened.enter_context(Reranker(model, normalize=True, **options)).score_pairs
    return opened.enter_context(Embedder(model, **options)).encode_documents


def _cosines(rows: Rows, others: Rows) -> NDArray[np.float64]:
    left, right = rows.astype(np.float64), others.astype(np.float64)
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return np.asarray((left * right).sum(axis=1) / np.maximum(lengths, 1e-12))


def _folder_texts(folder: Path) -> Iterator[str]:
    for file in find_files(folder):
        try:
            yield from (section.text for section in read_sections(file.kind, file.read()))
        except InputError:
            continue  # one broken document does not spoil a measurement


def _file_texts(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
        if file.suffix != ".jsonl":
            return lines
        return [str(json.loads(line)["text"]) for line in lines if line.strip()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{str(file)!r} cannot be read ({type(error).__name__}: {error}). Use UTF-8 text with one text per line, "
            "or JSON lines whose objects have 'text'."
        ) from error
