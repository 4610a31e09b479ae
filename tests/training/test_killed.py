"""A training that is killed at any step goes on, and ends where the uninterrupted one ends."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file


def train(out, kind, step):
    command = [sys.executable, "-m", "tests.training.killed_trainings", str(out), kind, str(step)]
    return subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)


@pytest.mark.slow
@pytest.mark.timeout(600)  # five processes, each of which imports torch
@pytest.mark.usefixtures("hub_cache")
@pytest.mark.parametrize("kind", ["embedder", "reranker", "lora"])
def test_killed_at_three_steps_it_ends_as_if_it_had_not_been(tmp_path, kind):
    whole = train(tmp_path / "whole", kind, 0)
    assert whole.returncode == 0, whole.stderr[-2000:]
    for step in sorted(random.Random(kind).sample(range(1, 10), 3)):
        assert train(tmp_path / "cut", kind, step).returncode == -signal.SIGKILL
    resumed = train(tmp_path / "cut", kind, 0)
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    first, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert first.keys() == other.keys()
    assert max(np.abs(first[name] - other[name]).max() for name in first) < 1e-5
    told = [json.loads((tmp_path / name / "training.json").read_text())["history"] for name in ("whole", "cut")]
    assert [step for step, _ in told[1]["losses"]] == list(range(1, 10))
    for name, allowed in (("losses", 1e-5), ("scores", 1e-3)):
        values = [[value for _, value in each[name]] for each in told]
        assert values[0] == pytest.approx(values[1], abs=allowed)
