"""A run that ends at any step goes on, computes each finished part once, and ends where the uninterrupted one ends."""

from __future__ import annotations

import random
import signal
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.bulk.corpora import ids_of, parts_of, sentences, vectors_of, write_lines
from tests.bulk.killed_runs import PART_ROWS, ending, run

ROWS = 11
ALLOWED = {"float32": 1e-6, "int8": 1}  # a number on the border of two levels may fall to either


class Killed(BaseException):
    """Stands for the end of the process."""


def end():
    raise Killed


@pytest.fixture
def corpus(tmp_path):
    return write_lines(tmp_path / "corpus.jsonl", sentences(ROWS), id=[f"id{number}" for number in range(ROWS)])


def check_same(folder, whole, format):
    assert ids_of(folder) == ids_of(whole)
    one, other = (vectors_of(each).astype(float) for each in (folder, whole))
    assert np.abs(one - other).max() <= ALLOWED[format]


@pytest.mark.parametrize("format", ["float32", "int8"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # what the step cut short
def test_ended_before_any_of_its_steps_a_run_goes_on(tmp_path, corpus, embedder, format, monkeypatch):
    monkeypatch.setattr("bge_runtime.vectors.quantization.ENOUGH_FOR_RANGES", 2)
    with ending(0, end) as steps:
        run(corpus, tmp_path / "whole", format, embedder)
    assert steps.taken > 30
    for at in range(1, steps.taken + 1, 1 if format == "float32" else 3):
        out = tmp_path / f"cut{at}"
        try:
            with ending(at, end):
                run(corpus, out, format, embedder)
        except Killed:
            pass
        else:  # how often it tells of its progress is a matter of time
            assert at > steps.taken - 5
            continue
        finished = parts_of(out)
        kept = {file.name: file.stat().st_mtime_ns for file in finished}
        assert all(pq.read_table(file).num_rows in (PART_ROWS, ROWS % PART_ROWS) for file in finished)
        result = run(corpus, out, format, embedder)
        assert result.computed == ROWS - sum(pq.read_metadata(out / name).num_rows for name in kept)
        assert result.recomputed <= min(result.computed, 2 * PART_ROWS)
        assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept
        check_same(out, tmp_path / "whole", format)
        assert [path.name for path in out.iterdir() if path.name.startswith(".")] == [".lock"]
        assert not run(corpus, out, format, embedder).changed


def test_texts_whose_part_was_lost_are_told(tmp_path, corpus, embedder):
    calls = []

    def encode(self, texts, **options):
        calls.append(texts)
        if len(calls) == 2:
            raise Killed
        return original(self, texts, **options)

    original = type(embedder).encode_all
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(embedder), "encode_all", encode)
        with pytest.raises(Killed):
            run(corpus, tmp_path / "out", "float32", embedder)
    result = run(corpus, tmp_path / "out", "float32", embedder)
    assert (result.computed, result.recomputed) == (7, 4)


def started(source, out, format, step):
    command = [sys.executable, "-m", "tests.bulk.killed_runs", str(source), str(out), format, str(step)]
    return subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)


@pytest.mark.slow
@pytest.mark.timeout(600)  # five processes, each of which imports torch
@pytest.mark.usefixtures("hub_cache")
@pytest.mark.parametrize("format", ["float32", "int8"])
def test_killed_at_seeded_steps_it_ends_as_if_it_had_not_been(tmp_path, corpus, format):
    assert started(corpus, tmp_path / "whole", format, 0).returncode == 0
    for step in random.Random(format).sample(range(8, 16), 3):  # of some 35, and fewer after each
        killed = started(corpus, tmp_path / "cut", format, step)
        assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
        assert all(pq.read_table(file).num_rows for file in parts_of(tmp_path / "cut"))
    resumed = started(corpus, tmp_path / "cut", format, 0)
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    check_same(tmp_path / "cut", tmp_path / "whole", format)
