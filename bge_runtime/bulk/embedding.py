"""A corpus to a folder of Parquet parts, each of which is computed once."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from importlib.util import find_spec as find_module
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from bge_runtime import (
    BatchEvent,
    BGEError,
    ConfigurationError,
    Embedder,
    EncodedTexts,
    Hook,
    InputError,
    add_hook,
    quantization_ranges,
    remove_hook,
)
from bge_runtime.bulk.checking import IDS, examined
from bge_runtime.bulk.manifest import MANIFEST, Format, Manifest, Output, PartRecord, Role, Settings, read_manifest
from bge_runtime.bulk.parts import FORMATS, OUTPUTS, Layout, PartFile, begun_parts, finished_part
from bge_runtime.bulk.sources import Row, Source
from bge_runtime.evaluation.journal import locked

__all__ = ["BulkResult", "blocks", "checked_settings", "embed_to_parquet"]

LOCK = ".lock"
# What a kill costs at most, and what two parts hold in memory: 150 MB of 384 dimensions.
PART_ROWS = 50_000
# A text has one vector of 4 bytes per dimension, or hundreds of them.
PART_ROWS_OF_TOKENS = 2_000
# Texts of one call, where there is more than one vector of each: their rows are many objects.
SPARSE_AT_ONCE = 4096
TOKENS_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class BulkResult:
    """What a run did.

    Attributes:
        folder: Where the parts are.
        rows: Texts of the input, and rows of all parts together.
        parts: How many files.
        computed: Texts that this run embedded.
        recomputed: Those of them that an earlier run had begun and lost, as it ended before their part was in place.
        truncated: Texts of the whole input that were cut to what the model reads; one that stands twice in a part
            counts once.
        seconds: Of this run, with reading and checking the input.
        texts_per_second: Texts embedded, read and written per second, from when the weights were in memory; 0 where
            nothing was computed.
        changed: Whether there was anything to do.
    """

    folder: Path
    rows: int
    parts: int
    computed: int
    recomputed: int
    truncated: int
    seconds: float
    texts_per_second: float
    changed: bool

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {**{name: getattr(self, name) for name in self.__dataclass_fields__}, "folder": str(self.folder)}


def embed_to_parquet(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    embedder: Embedder,
    *,
    role: Role = "document",
    text_column: str = "text",
    id_column: str | None = None,
    format: Format = "float32",
    outputs: Sequence[Output] = ("dense",),
    part_rows: int | None = None,
    ray: str | None = None,
    show_progress: bool = False,
) -> BulkResult:
    """Embed every text of files into Parquet files, and go on where an earlier run ended.

    The input is read twice, as a stream: once before anything is computed, so that a wrong row is told at once, and
    once to embed it. A part appears under its name when it is whole and safely on the disk. Call it again with the
    same arguments after a kill or an error: finished parts are not computed again. A run that is finished computes
    nothing.

    Args:
        source: A Parquet, `.jsonl`, `.csv` or `.txt` file (one text per line), a folder of these, or a folder of
            documents as `bge search` reads it, of which each section is a text.
        out: Folder of the parts; new, empty, or that of an earlier run.
        embedder: What embeds; its settings (instruction, length, dimension) are part of what a run is continued by.
        role: `document` or `query`: whose instruction the texts get.
        text_column: Which column holds the texts.
        id_column: Which holds the ids, strings or whole numbers; `None` takes `id` where there is one. Without it,
            and where the name is empty, ids are `FILENAME:ROW`, with rows from 1.
        format: Of the dense vectors: `float32`, `float16`, `int8` in ranges taken from the first part and kept in the
            manifest, or `binary`, one bit per dimension, eight to a byte (`ubinary` of `quantize_embeddings`).
        outputs: Some of `dense`, `sparse` and `multi_vector`, as far as the model has them. Token vectors are float16
            where `format` is, else float32.
        part_rows: Rows of each part but the last; `None` is 50,000, with `multi_vector` 2,000.
        ray: Address of a Ray cluster that computes the parts: `auto`, `local`, `ray://HOST:PORT`. There is a worker for
            each GPU, or for each machine where there is none; all see input and folder under the same paths. `None`
            computes them here.
        show_progress: Whether to show a progress bar on standard error.

    Returns:
        What was done. Parts have the columns `id` (string) and, as asked for, `vector` (a list of fixed size),
        `sparse` (a list of token and weight) and `multi_vector` (a list of lists of fixed size), in input order.

    Raises:
        InputError: A row has no text or an id that stands twice, or the input is not the one the run began with.
        IndexIdentityError: The folder was begun with another model.
        ConfigurationError: An argument is not allowed, the folder was begun with other settings or holds something
            else, another process works in it, or the disk refuses.
        BGEError: A text cannot be embedded.
    """
    started = time.monotonic()
    texts = Source.open(_path(source, "source"), text_column=_name(text_column), id_column=id_column)
    settings = checked_settings(embedder, texts, role, format, outputs, part_rows)
    if ray is not None:
        _check_ray(ray)
    folder = _path(out, "out")
    with _written(folder):
        _check_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder, doing="embedding", name=LOCK):
            run = _Run(folder, texts, settings, embedder, show_progress=show_progress)
            return run.finished(started, ray)


def checked_settings(
    embedder: Embedder, source: Source, role: Role, format: Format, outputs: Sequence[Output], part_rows: int | None
) -> Settings:
    """Return what decides what a part holds.

    Raises:
        ConfigurationError: An argument is not allowed, or the model lacks an output.
    """
    if not isinstance(embedder, Embedder):
        raise ConfigurationError(f"embedder={embedder!r} is not allowed. Pass a bge_runtime.Embedder.")
    _choose(role, "role", ("document", "query"))
    _choose(format, "format", FORMATS)
    if isinstance(outputs, str) or not outputs:
        raise ConfigurationError(f"outputs={outputs!r} is not allowed. Pass a list of {', '.join(map(repr, OUTPUTS))}.")
    for output in outputs:
        _choose(output, "outputs", OUTPUTS)
        if output not in embedder.spec.outputs:
            has = ", ".join(map(repr, embedder.spec.outputs))
            raise ConfigurationError(f"{embedder.model!r} has no output {output!r}; it has {has}. Use 'BAAI/bge-m3'.")
    if part_rows is None:
        part_rows = PART_ROWS_OF_TOKENS if "multi_vector" in outputs else PART_ROWS
    if isinstance(part_rows, bool) or not isinstance(part_rows, int) or part_rows < 1:
        raise ConfigurationError(f"part_rows={part_rows!r} is not allowed. Use a whole number from 1 on.")
    further = set(outputs) - {"dense"}
    return Settings(
        model=embedder.model,
        identity=embedder.document_identity if role == "document" else embedder.identity,
        output_identity=embedder.output_identity if further else "",
        role=role,
        text_column=source.text_column,
        id_column=source.id_column,
        outputs=tuple(output for output in OUTPUTS if output in outputs),
        format=format,
        part_rows=part_rows,
        dimension=embedder.dimension,
    )


def _choose(value: object, name: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ConfigurationError(f"{name}={value!r} is not allowed. Use {', '.join(map(repr, allowed))}.")


def _check_ray(address: object) -> None:
    if not isinstance(address, str) or not address:
        raise ConfigurationError(f"ray={address!r} is not allowed. Pass an address, such as 'auto' or 'local'.")
    if find_module("ray") is None:
        raise ConfigurationError('ray= (--ray) needs ray: pip install "bge-integrations[ray]"')


def _path(value: str | os.PathLike[str], name: str) -> Path:
    if not isinstance(value, str | os.PathLike) or not os.fspath(value) or "\0" in os.fsdecode(value):
        raise ConfigurationError(f"{name}={value!r} is not a path. Pass a text or a Path.")
    return Path(os.fsdecode(value)).expanduser()


def _name(column: str) -> str:
    if not isinstance(column, str) or not column:
        raise ConfigurationError(f"text_column={column!r} is not allowed. Pass the name of a column.")
    return column


@contextmanager
def _written(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, BGEError):
            raise
        raise ConfigurationError(
            f"{str(folder)!r} cannot be written ({error.strerror or error}). Make room, or name another folder. "
            "Finished parts stay: the same call goes on with them."
        ) from error


def _check_folder(folder: Path) -> None:
    """Refuse a folder that holds anything but a run."""
    if not folder.exists() or (folder / MANIFEST).exists():
        return
    if not folder.is_dir():
        raise ConfigurationError(f"out={str(folder)!r} is a file. Name a folder that is new or empty.")
    # What a run leaves that was killed before it knew its input, or holds while it reads it.
    ours = (LOCK, IDS, f".{MANIFEST}")
    if odd := sorted(path.name for path in folder.iterdir() if not path.name.startswith(ours)):
        raise ConfigurationError(
            f"out={str(folder)!r} holds {odd[0]!r} and no manifest of a run. Name a folder that is new or empty."
        )


class _Run:
    """One call of `embed_to_parquet`, in a folder that is held."""

    def __init__(
        self, folder: Path, source: Source, settings: Settings, embedder: Embedder, *, show_progress: bool
    ) -> None:
        self._folder = folder
        self._source = source
        # An object of its own, which shares the weights: what it counts is of this run alone.
        self._embedder = deepcopy(embedder)
        self._layout = Layout(settings.outputs, settings.format, settings.dimension)
        self._show_progress = show_progress
        self._manifest = self._taken_up(settings)

    def _taken_up(self, settings: Settings) -> Manifest:
        """Go on with the run that is there, or begin one."""
        found = read_manifest(self._folder)
        if found is None:
            return self._begun(settings)
        settings.check_same(found.settings, self._folder)
        found.check_input(self._source.files)
        # A part may be in place that the manifest was not told of, or one may have been taken away.
        listed = {part: finished_part(self._folder, found, part) for part in range(found.part_count)}
        manifest = replace(found, parts={part: record for part, record in listed.items() if record is not None})
        if manifest.parts != found.parts:
            manifest.write(self._folder)
        return manifest

    def _begun(self, settings: Settings) -> Manifest:
        with self._bar(None, "reading") as bar:
            files = examined(self._source, self._folder, lambda count: None if bar is None else bar.update(count))
        manifest = Manifest(settings=settings, files=files)
        if settings.format == "int8" and manifest.rows_of(0) < 2:
            raise ConfigurationError(
                "format='int8' takes its ranges from the first part, which has a single text. Use 'float32'."
            )
        manifest.write(self._folder)
        return manifest

    def finished(self, started: float, ray: str | None) -> BulkResult:
        """Compute what is missing, here or on a cluster, and return what was done."""
        missing = [part for part in range(self._manifest.part_count) if part not in self._manifest.parts]
        lost = self._swept() & set(missing)
        computing = 0.0
        if missing:
            if ray is None:
                self._embedder.warm_up()
            since = time.monotonic()
            lost |= self._compute(missing) if ray is None else self._compute_on(ray, missing)
            computing = time.monotonic() - since
            self._swept()
            for file in self._source.files:
                file.check_unchanged()
        manifest = self._manifest
        computed = sum(map(manifest.rows_of, missing))
        return BulkResult(
            folder=self._folder,
            rows=manifest.rows,
            parts=manifest.part_count,
            computed=computed,
            recomputed=sum(map(manifest.rows_of, lost)),
            truncated=sum(record.truncated for record in manifest.parts.values()),
            seconds=time.monotonic() - started,
            texts_per_second=computed / computing if computing else 0.0,
            changed=bool(missing),
        )

    def _swept(self) -> set[int]:
        """Take away what was begun and never finished; return of which parts."""
        begun = begun_parts(self._folder)
        for path in begun:
            path.unlink(missing_ok=True)
        return set(begun.values())

    def _compute_on(self, ray: str, missing: Sequence[int]) -> set[int]:
        """Have a cluster compute parts; return those that a worker lost."""
        from bge_runtime.bulk.clusters import Job, compute_on_ray

        job = Job(
            folder=self._folder.resolve(),
            source=self._source.resolved(),
            embedder=self._embedder,
            manifest=replace(self._manifest, parts={}),
            blocks=blocks,
        )
        lost: set[int] = set()
        with self._bar(self._manifest.rows, self._embedder.model) as bar:
            _place(bar, sum(record.rows for record in self._manifest.parts.values()))

            def note(part: int, record: PartRecord) -> None:
                self._note(part, record)
                if bar is not None:
                    bar.update(record.rows)

            compute_on_ray(ray, job, missing, on_ranges=self._fix_ranges, on_part=note, on_lost=lost.add)
        return lost

    def _compute(self, missing: Sequence[int]) -> set[int]:
        """Embed parts: one is read while another is computed and a third is written."""
        reader, writer = (ThreadPoolExecutor(1, thread_name_prefix=f"bge-bulk-{name}") for name in ("read", "write"))
        parts = self._read(missing)
        with reader, writer, self._bar(self._manifest.rows, self._embedder.model) as bar:
            done = sum(record.rows for record in self._manifest.parts.values())
            following = reader.submit(next, parts, None)
            writing: Future[PartRecord] | None = None
            with _counting(bar):
                while (found := following.result()) is not None:
                    following = reader.submit(next, parts, None)
                    part, rows = found
                    _place(bar, done)
                    writing = self._embed(part, rows, writer, writing)
                    done += len(rows)
            if writing is not None:
                writing.result()
            _place(bar, done)
        return set()

    def _read(self, missing: Sequence[int]) -> Iterator[tuple[int, list[Row]]]:
        """Yield parts with their rows; those that follow each other are read in one go."""
        manifest = self._manifest
        counts = [file.rows for file in manifest.files]
        rows: Iterator[Row] = iter(())
        expected = None
        for part in missing:
            if part != expected:
                rows = self._source.rows(manifest.first_row_of(part), counts)
            found = list(islice(rows, manifest.rows_of(part)))
            if len(found) != manifest.rows_of(part):
                raise InputError("The input lost rows while it was read. Bring it back, or begin in another folder.")
            yield part, found
            expected = part + 1

    def _embed(
        self, part: int, rows: Sequence[Row], writer: ThreadPoolExecutor, before: Future[PartRecord] | None
    ) -> Future[PartRecord]:
        """Compute a part; its last step, and that of the part before, may be left to the writer."""
        file = PartFile(self._folder, self._manifest, part)
        truncated = self._embedder.truncated_count
        writing: Future[Any] | None = before
        try:
            for ids, encoded in blocks(self._embedder, rows, self._manifest.settings):
                if self._layout.format == "int8" and self._manifest.ranges is None and encoded.dense is not None:
                    self._fix_ranges(quantization_ranges(encoded.dense))
                if writing is not None:
                    writing.result()
                writing = writer.submit(self._add, file, ids, encoded)
        except BaseException as error:
            writer.submit(file.abandon).result()
            if isinstance(error, BGEError):
                first = self._manifest.first_row_of(part) + 1
                raise type(error)(f"Rows {first} to {first + len(rows) - 1} of the input: {error}") from error
            raise
        return writer.submit(self._put, file, self._embedder.truncated_count - truncated, writing)

    def _fix_ranges(self, ranges: NDArray[np.float32]) -> None:
        """Keep ranges before the first vector that is quantised by them."""
        self._manifest = replace(self._manifest, ranges=ranges)
        self._manifest.write(self._folder)

    def _add(self, file: PartFile, ids: Sequence[str], encoded: EncodedTexts) -> None:
        file.add(self._layout.table(ids, encoded, self._manifest.ranges))

    def _put(self, file: PartFile, truncated: int, added: Future[Any] | None) -> PartRecord:
        if added is not None:
            added.result()
        record = file.finish(truncated)
        self._note(file.part, record)
        return record

    def _note(self, part: int, record: PartRecord) -> None:
        self._manifest = self._manifest.with_part(part, record)
        self._manifest.write(self._folder)

    @contextmanager
    def _bar(self, total: int | None, name: str) -> Iterator[Any]:
        # No bar that is merely disabled: making one takes a lock of the whole process.
        if not self._show_progress:
            yield None
            return
        with tqdm(total=total, desc=name, unit="text") as bar:
            yield bar


def blocks(embedder: Embedder, rows: Sequence[Row], settings: Settings) -> Iterator[tuple[list[str], EncodedTexts]]:
    """Embed rows, in one call where each text gives one vector: yields their ids and what came of them."""
    size = len(rows)
    if "multi_vector" in settings.outputs:
        size = TOKENS_AT_ONCE
    elif "sparse" in settings.outputs:
        size = SPARSE_AT_ONCE
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        texts = [row.text for row in part]
        encoded = embedder.encode_all(texts, role=settings.role, outputs=settings.outputs, show_progress=False)
        yield [row.id for row in part], encoded


class _Counter(Hook):
    """Moves a bar by the batches of a call; where it ends is said when the call has ended."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def on_batch(self, event: BatchEvent) -> None:
        """Count the texts of a forward pass."""
        self._bar.update(min(event.inputs, self._bar.total - self._bar.n))


@contextmanager
def _counting(bar: Any) -> Iterator[None]:
    if bar is None:
        yield
        return
    counter = _Counter(bar)
    add_hook(counter)
    try:
        yield
    finally:
        remove_hook(counter)


def _place(bar: Any, rows: int) -> None:
    """Have a bar say exactly how many rows are done: texts that stand twice are computed once."""
    if bar is not None:
        bar.n = rows
        bar.refresh()
