"""What embedding a corpus would take, from a short measurement on this machine."""

from __future__ import annotations

import math
import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bge_runtime import ConfigurationError, Embedder, EncodedTexts, InputError, loaded_models
from bge_runtime.bulk.embedding import blocks, checked_settings
from bge_runtime.bulk.manifest import Format, Output, Role, Settings
from bge_runtime.bulk.parts import Layout, part_writer
from bge_runtime.bulk.sources import Row, Source

__all__ = ["DEVICES", "Estimate", "Plan", "plan_embedding"]

DEVICES = (1, 8, 64)
SAMPLE = 4096  # texts that are read, and the most of one measured call
FIRST_CALL = 8  # texts
PARTS_IN_MEMORY = 3  # one is read, one is computed, one is written
MADE_UP_WORDS = 100
_WORDS = (
    "the heart pumps blood through vessels while lungs take up oxygen from air and rivers carry water to seas where "
    "ships bring grain between cities that grew along old roads"
).split()


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What a number of devices would take.

    Attributes:
        devices: How many work at once.
        hours: From the start to the last part.
        memory_bytes: Main memory of all of them together.
        disk_bytes: Size of all parts.
        moved_bytes: Texts read (twice), parts written, and weights read by each device.
    """

    devices: int
    hours: float
    memory_bytes: int
    disk_bytes: int
    moved_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What embedding a corpus would take.

    Attributes:
        rows: Texts of the corpus.
        model: Model as named by the caller.
        device: What was measured on.
        precision: Number format of the computation.
        texts_per_second: Of one device.
        tokens_per_text: Mean of the sample, cut to what the model reads.
        measured_texts: Texts that were embedded for this.
        measured_seconds: Time that they took.
        estimates: For 1, 8 and 64 devices.
        assumptions: What the figures hold under, in words.
    """

    rows: int
    model: str
    device: str
    precision: str
    texts_per_second: float
    tokens_per_text: float
    measured_texts: int
    measured_seconds: float
    estimates: tuple[Estimate, ...]
    assumptions: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)


def plan_embedding(
    rows: int,
    embedder: Embedder,
    *,
    sample: str | os.PathLike[str] | None = None,
    role: Role = "document",
    text_column: str = "text",
    format: Format = "float32",
    outputs: Sequence[Output] = ("dense",),
    seconds: float = 60.0,
) -> Plan:
    """Embed a sample for some seconds, and tell what a whole corpus would take. Nothing is written.

    Args:
        rows: Texts of the corpus.
        embedder: What would embed it.
        sample: Files as `embed_to_parquet` takes them, the first 4,096 texts of which stand for all; `None` takes
            texts of 100 words that are made up.
        role: `document` or `query`.
        text_column: Which column of the sample holds texts.
        format: Of the dense vectors.
        outputs: Some of `dense`, `sparse` and `multi_vector`.
        seconds: About how long to measure; loading the model comes on top.

    Returns:
        Time, memory, disk and bytes moved for 1, 8 and 64 devices, and what is assumed.

    Raises:
        ConfigurationError: An argument is not allowed.
        InputError: The sample cannot be read, or holds nothing.
    """
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
        raise ConfigurationError(f"rows={rows!r} is not allowed. Pass how many texts the corpus has.")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
        raise ConfigurationError(f"seconds={seconds!r} is not allowed. Pass a number of seconds above 0.")
    source = Source((), text_column, "")
    if sample is not None:
        source = Source.open(Path(sample).expanduser(), text_column=text_column, id_column="")
    settings = checked_settings(embedder, source, role, format, outputs, None)
    texts, reading = _sampled(source)
    measured = _measured(embedder, texts, settings, seconds)
    return _planned(rows, embedder, texts, settings, measured, reading if sample is not None else None)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Measured:
    texts: int
    seconds: float
    loading: float
    last: tuple[list[str], EncodedTexts]


def _sampled(source: Source) -> tuple[list[Row], float]:
    """Return texts, each once, and the seconds that reading a row took."""
    if not source.files:
        return list(_made_up()), 0.0
    begun = time.monotonic()
    read = list(islice(source.rows(), SAMPLE))
    took = time.monotonic() - begun
    if not read:
        raise InputError(f"{source.files[0].name!r} holds no text to measure with. Name a file that does.")
    return list({row.text: row for row in read}.values()), took / len(read)


def _made_up() -> Iterator[Row]:
    random = np.random.default_rng(0)
    for number in range(1, SAMPLE + 1):
        yield Row(f"made-up:{number}", " ".join(random.choice(_WORDS, MADE_UP_WORDS)), number)


def _measured(embedder: Embedder, texts: Sequence[Row], settings: Settings, seconds: float) -> _Measured:
    """Embed calls of more and more texts, each text once in a call, until the time is over."""
    if embedder.vector_cache is not None:  # a remembered vector takes no time
        embedder = Embedder(**{**embedder.options(), "vector_cache": None})
    begun = time.monotonic()
    embedder.warm_up()
    loading = time.monotonic() - begun
    _encoded(embedder, texts[:FIRST_CALL], settings)  # does not count
    size, at, done, spent = FIRST_CALL, 0, 0, 0.0
    last: tuple[list[str], EncodedTexts] | None = None
    while last is None or spent + spent / done * FIRST_CALL < seconds:
        part = texts[at : at + size]
        begun = time.monotonic()
        last = _encoded(embedder, part, settings)
        spent += time.monotonic() - begun
        done += len(part)
        at = at + size if at + size < len(texts) else 0
        # Larger calls are what a run makes; the last one must not last beyond the time.
        size = max(FIRST_CALL, min(2 * size, SAMPLE, int((seconds - spent) * done / spent)))
    return _Measured(texts=done, seconds=spent, loading=loading, last=last)


def _encoded(embedder: Embedder, rows: Sequence[Row], settings: Settings) -> tuple[list[str], EncodedTexts]:
    return deque(blocks(embedder, rows, settings), maxlen=1)[0]


def _planned(
    rows: int,
    embedder: Embedder,
    texts: Sequence[Row],
    settings: Settings,
    measured: _Measured,
    reading: float | None,
) -> Plan:
    rate = measured.texts / measured.seconds
    text_bytes = float(np.mean([len(row.text.encode("utf-8", "replace")) for row in texts]))
    row_bytes = _row_bytes(settings, *measured.last)
    weights = max((each.bytes for each in loaded_models() if each.name == embedder.model), default=0)
    part = min(rows, settings.part_rows) * (text_bytes + row_bytes)
    memory = _resident(weights) + PARTS_IN_MEMORY * part
    tokens = np.minimum(embedder.count_tokens([row.text for row in texts[:256]]), embedder.max_length)
    return Plan(
        rows=rows,
        model=embedder.model,
        device=embedder.device,
        precision=embedder.precision,
        texts_per_second=rate,
        tokens_per_text=float(tokens.mean()),
        measured_texts=measured.texts,
        measured_seconds=measured.seconds,
        estimates=tuple(
            Estimate(
                devices=devices,
                hours=(measured.loading + rows * (reading or 0.0) + rows / rate / devices) / 3600,
                memory_bytes=round(memory * devices),
                disk_bytes=round(rows * row_bytes),
                moved_bytes=round(rows * (2 * text_bytes + row_bytes) + weights * devices),
            )
            for devices in DEVICES
        ),
        assumptions=_assumptions(embedder, measured, reading, len(texts)),
    )


def _row_bytes(settings: Settings, ids: list[str], encoded: EncodedTexts) -> float:
    """Return how much a row takes in a file."""
    ranges = None
    if settings.format == "int8" and encoded.dense is not None:
        ranges = np.stack((encoded.dense.min(axis=0), encoded.dense.max(axis=0)))  # any give the same size
    table = Layout(settings.outputs, settings.format, settings.dimension).table(ids, encoded, ranges)
    # By what the second half adds, without what a file has once: a part has many more rows, and one dictionary.
    half = len(ids) // 2
    return (_file_bytes(table) - _file_bytes(table.slice(0, half))) / (len(ids) - half)


def _file_bytes(table: pa.Table) -> int:
    buffer = pa.BufferOutputStream()
    with part_writer(buffer, table.schema) as writer:
        writer.write_table(table)
    return int(buffer.getvalue().size)


def _resident(weights: int) -> int:
    """Return the most memory that this process had, in bytes; what is not known is taken as twice the weights."""
    if sys.platform == "win32":
        return 2 * weights
    from resource import RUSAGE_SELF, getrusage

    most = getrusage(RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _assumptions(embedder: Embedder, measured: _Measured, reading: float | None, texts: int) -> tuple[str, ...]:
    sample = (
        f"all texts are like the {texts} of the sample"
        if reading is not None
        else f"texts of {MADE_UP_WORDS} words, which were made up; a sample of your own as INPUT tells more"
    )
    read = (
        f"the input is read and checked first, by one process, {reading * 1e6:.1f} microseconds a row"
        if reading is not None
        else "the time of reading and checking the input is left out"
    )
    cores = f" with its {os.cpu_count()} cores" if embedder.device == "cpu" else ""
    return (
        sample,
        f"every device is like this one ({embedder.device}{cores}), has work all the time, and waits for no other: "
        "each computes parts of its own",
        f"each loads the model once, in {measured.loading:.1f} s",
        read,
        "memory is main memory: the most that this process had, and three parts; a GPU's own memory is not told",
        "bytes moved are the texts read twice, the parts written once, and the weights read by each device",
    )
