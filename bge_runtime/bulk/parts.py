"""One part of the result: vectors as columns, in a Parquet file that appears whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bge_runtime import ConfigurationError, EncodedTexts, quantize_embeddings
from bge_runtime.bulk.manifest import Format, Manifest, Output, PartRecord
from bge_runtime.evaluation.journal import settle_entry

__all__ = ["FORMATS", "OUTPUTS", "Layout", "PartFile", "begun_parts", "finished_part", "part_writer"]

FORMATS: tuple[Format, ...] = ("float32", "float16", "int8", "binary")
OUTPUTS: tuple[Output, ...] = ("dense", "sparse", "multi_vector")
NOTE = b"bge"
WRITING = ".writing"


@dataclass(frozen=True, slots=True)
class Layout:
    """Which columns a part has, and of which types.

    Attributes:
        outputs: Some of `OUTPUTS`.
        format: One of `FORMATS`, of the dense vectors.
        dimension: Length of a vector.
    """

    outputs: tuple[Output, ...]
    format: Format
    dimension: int

    @property
    def schema(self) -> pa.Schema:
        """`id`, and `vector`, `sparse` and `multi_vector` where they are asked for."""
        types = {"dense": ("vector", self._vector), "sparse": ("sparse", _SPARSE)}
        types["multi_vector"] = ("multi_vector", pa.list_(pa.list_(self._token, self.dimension)))
        chosen = [pa.field(*types[output], nullable=False) for output in OUTPUTS if output in self.outputs]
        return pa.schema([pa.field("id", pa.string(), nullable=False), *chosen])

    def table(self, ids: Sequence[str], encoded: EncodedTexts, ranges: NDArray[np.float32] | None) -> pa.Table:
        """Return the rows of some texts.

        Args:
            ids: One for each.
            encoded: Their vectors.
            ranges: Of `int8`.

        Raises:
            ConfigurationError: A number is too large for float16.
        """
        columns = [pa.array(ids, pa.string())]
        if encoded.dense is not None:
            columns.append(self._dense(encoded.dense, ranges))
        if encoded.sparse is not None:
            columns.append(_sparse(encoded.sparse))
        if encoded.multi_vector is not None:
            columns.append(self._tokens(encoded.multi_vector))
        return pa.Table.from_arrays(columns, schema=self.schema)

    @property
    def _vector(self) -> pa.DataType:
        if self.format == "binary":
            return pa.list_(pa.uint8(), -(-self.dimension // 8))
        types = {"float32": pa.float32(), "float16": pa.float16(), "int8": pa.int8()}
        return pa.list_(types[self.format], self.dimension)

    @property
    def _token(self) -> pa.DataType:
        return pa.float16() if self.format == "float16" else pa.float32()

    def _dense(self, vectors: NDArray[np.float32], ranges: NDArray[np.float32] | None) -> pa.Array:
        values: NDArray[Any] = vectors
        if self.format == "float16":
            values = _halved(vectors)
        elif self.format == "int8":
            values = quantize_embeddings(vectors, "int8", ranges=ranges)
        elif self.format == "binary":
            values = quantize_embeddings(vectors, "ubinary")
        return _fixed(values, self._vector)

    def _tokens(self, texts: Sequence[NDArray[np.float32]]) -> pa.Array:
        offsets = np.cumsum([0, *map(len, texts)], dtype=np.int32)
        rows = np.concatenate([np.empty((0, self.dimension), np.float32), *texts])
        values = _halved(rows) if self.format == "float16" else rows
        return pa.ListArray.from_arrays(pa.array(offsets), _fixed(values, pa.list_(self._token, self.dimension)))


_SPARSE = pa.list_(pa.struct([pa.field("token", pa.int32()), pa.field("weight", pa.float32())]))


def _sparse(texts: Sequence[dict[int, float]]) -> pa.Array:
    offsets = np.cumsum([0, *map(len, texts)], dtype=np.int32)
    tokens = np.fromiter((token for text in texts for token in text), np.int32, offsets[-1])
    weights = np.fromiter((weight for text in texts for weight in text.values()), np.float32, offsets[-1])
    pairs = pa.StructArray.from_arrays([pa.array(tokens), pa.array(weights)], fields=list(_SPARSE.value_type))
    return pa.ListArray.from_arrays(pa.array(offsets), pairs)


def _halved(vectors: NDArray[np.float32]) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        values = vectors.astype(np.float16)
    if not np.isfinite(values).all():
        raise ConfigurationError("format='float16' cannot hold these vectors, whose numbers pass 65504. Use 'float32'.")
    return values


def _fixed(rows: NDArray[Any], kind: pa.DataType) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(rows).ravel()), type=kind)


def part_writer(place: Any, schema: pa.Schema) -> pq.ParquetWriter:
    """Return what writes a part to a path or a stream."""
    # Floats hardly get smaller by being packed, and nobody asks for the smallest of them. Parquet has no number of one
    # byte: it takes four, unless they are places in a dictionary of the 256 that there are.
    small = "vector" in schema.names and schema.field("vector").type.value_type.bit_width == 8
    return pq.ParquetWriter(
        place,
        schema,
        compression={"id": "zstd"},
        use_dictionary=["vector.list.element"] if small else False,
        write_statistics=["id"],
    )


class PartFile:
    """A part while it is written, under a hidden name that does not end in `.parquet`."""

    def __init__(self, folder: Path, manifest: Manifest, part: int) -> None:
        """Leave a mark that the part is begun: the file, still empty.

        Raises:
            OSError: It cannot be made.
        """
        self.part = part
        self._file = folder / manifest.file_of(part)
        # The process in its name: one that is still ending does not write into another's file.
        self._made = folder / f".{self._file.stem}.{os.getpid()}{WRITING}"
        self._made.touch()
        self._key = manifest.key
        self._writer: pq.ParquetWriter | None = None
        self._rows = 0

    def add(self, table: pa.Table) -> None:
        """Append rows.

        Raises:
            OSError: The disk refuses.
        """
        if self._writer is None:
            self._writer = part_writer(self._made, table.schema)
        self._writer.write_table(table)
        self._rows += table.num_rows

    def finish(self, truncated: int) -> PartRecord:
        """Have the part under its name, safely on the disk.

        Raises:
            OSError: The disk refuses.
        """
        assert self._writer is not None
        note = {"key": self._key, "part": self.part, "truncated": truncated}
        self._writer.add_key_value_metadata({NOTE: json.dumps(note).encode()})
        self._writer.close()
        settle_entry(self._made)
        self._made.replace(self._file)
        settle_entry(self._file.parent)
        return PartRecord(rows=self._rows, bytes=self._file.stat().st_size, truncated=truncated)

    def abandon(self) -> None:
        """Empty it: what is left is the mark that the part was begun."""
        with suppress(OSError, pa.ArrowException):
            if self._writer is not None:
                self._writer.close()
            os.truncate(self._made, 0)


def finished_part(folder: Path, manifest: Manifest, part: int) -> PartRecord | None:
    """Return what is noted in the file of a part; `None` where it is not there, or another run's."""
    file = folder / manifest.file_of(part)
    try:
        with pq.ParquetFile(file) as table:
            rows, note = table.metadata.num_rows, json.loads(table.metadata.metadata[NOTE])
        if (note["key"], note["part"], rows) != (manifest.key, part, manifest.rows_of(part)):
            return None
        return PartRecord(rows=rows, bytes=file.stat().st_size, truncated=note["truncated"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def begun_parts(folder: Path) -> dict[Path, int]:
    """Return the files of parts that were begun and never finished, with their numbers."""
    return {path: int(path.name.split(".")[1].removeprefix("part-")) for path in folder.glob(f".part-*{WRITING}")}
