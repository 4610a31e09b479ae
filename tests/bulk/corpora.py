"""Inputs for the tests of bulk embedding, and how their results are read."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

MODEL = "BAAI/bge-small-en-v1.5"


def sentences(count):
    """Different texts of different lengths."""
    return [f"sentence {number} tells of {'blood and ' * (number % 5)}oxygen" for number in range(count)]


def write_lines(file, texts, **columns):
    """Write JSON lines with `text` and further columns."""
    rows = [dict(zip(("text", *columns), values, strict=True)) for values in zip(texts, *columns.values(), strict=True)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def write_parquet(file, group=7, **columns):
    """Write a table with small row groups."""
    pq.write_table(pa.table(columns), file, row_group_size=group)
    return file


def parts_of(folder):
    """The files that a reader finds, in order."""
    return sorted(folder.glob("*.parquet"))


def read(folder):
    """All parts as one table; fails on a part that is not whole."""
    return pa.concat_tables([pq.read_table(file) for file in parts_of(folder)])


def ids_of(folder):
    return read(folder).column("id").to_pylist()


def vectors_of(folder):
    """The vectors as an array."""
    column = read(folder).column("vector").combine_chunks()
    return np.asarray(column.flatten()).reshape(len(column), -1)
