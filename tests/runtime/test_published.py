"""The authors' published values: whether they are written down right, and, where a hub answers, whether we get them."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

import bge_runtime
from bge_runtime.evaluation.published import PUBLISHED
from bge_runtime.evaluation.verification import labels
from tests.conftest import USER_ENVIRONMENT

ROOT = Path(__file__).parents[2]
ASK_HUB = """
import dataclasses, json
from bge_runtime.cli.doctor import examine_hub
print(json.dumps(dataclasses.asdict(examine_hub())))
"""
NAMES = [f"{value.model}: {value.title}" for value in PUBLISHED]
MODELS = list(dict.fromkeys(value.model for value in PUBLISHED))


def of(name: str) -> list[float]:
    """Return the numbers of one published value."""
    model, _, title = name.partition(": ")
    (value,) = [each for each in PUBLISHED if each.model == f"BAAI/{model}" and each.title == title]
    return list(value.expected)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own, which is not kept from the network, as the user would run it."""
    environment = {**USER_ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("value", PUBLISHED, ids=NAMES)
def test_a_published_value_is_one_of_a_model_of_the_table_and_every_number_has_a_name(value):
    spec = bge_runtime.get_spec(value.model)
    assert spec.id == value.model
    assert (spec.kind == "reranker") == (value.quantity == "score" and value.model != "BAAI/bge-m3")
    assert len(labels(value)) == len(value.expected) == len(set(labels(value)))
    assert all(math.isfinite(number) for number in value.expected)
    json.dumps(value.as_dict())


def test_names_are_unique():
    assert len(set(NAMES)) == len(NAMES)


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def test_the_published_sigmoids_are_those_of_the_published_logits():
    large, half = of("bge-reranker-large: logits"), {"abs": 1e-6, "rel": 1e-3}
    published = [*of("bge-reranker-large: sigmoid"), *of("bge-reranker-large: sigmoids of the panda pairs")]
    assert [sigmoid(logit) for logit in large] == pytest.approx(published, **half)
    logits = of("bge-reranker-v2-m3: logits")
    assert [sigmoid(logit) for logit in logits] == pytest.approx(of("bge-reranker-v2-m3: sigmoids"), **half)


def test_the_published_mixtures_of_m3_are_those_of_its_parts():
    parts = ("dense similarity", "sparse scores", "multi-vector scores")
    dense, sparse, multi = (of(f"bge-m3: {title}") for title in parts)
    two = [(0.4 * d + 0.2 * s) / 0.6 for d, s in zip(dense, sparse, strict=True)]
    three = [0.4 * d + 0.2 * s + 0.4 * m for d, s, m in zip(dense, sparse, multi, strict=True)]
    assert two == pytest.approx(of("bge-m3: scores of dense and sparse"), abs=2e-4)
    assert three == pytest.approx(of("bge-m3: scores of all three"), abs=2e-4)


@pytest.fixture(scope="module")
def hub():
    """Skip unless the hub answers; it has three seconds."""
    asked = run("-c", ASK_HUB)
    assert asked.returncode == 0, asked.stderr
    found = json.loads(asked.stdout)
    if not found["reachable"]:
        pytest.skip(f"no model hub in reach: {found['endpoint']} ({found['detail']})")


@pytest.fixture(scope="module")
def verified(hub):
    """Run `bge doctor --verify` once for each model and return its checks by title."""
    known = {}

    def verify(model):
        spec = bge_runtime.get_spec(model)
        needed, there = 4 * spec.parameters, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if spec.unsupported is not None:
            pytest.skip(f"{model} cannot run: {spec.unsupported}")
        if needed > there:
            pytest.skip(f"{model} needs {needed / 1e9:.0f} GB of memory in float32, this machine has {there / 1e9:.0f}")
        if model not in known:
            done = run("-m", "bge_runtime.cli", "doctor", "--verify", model, "--json")
            assert done.returncode in (0, 1), done.stderr
            known[model] = json.loads(done.stdout)["checks"]
        return known[model]

    return verify


@pytest.mark.hub
@pytest.mark.slow
@pytest.mark.timeout(3600)  # downloads
@pytest.mark.parametrize("value", PUBLISHED, ids=NAMES)
def test_this_installation_gives_what_the_authors_printed(verified, value):
    checks = [check for check in verified(value.model) if check["value"] == value.title]
    assert len(checks) == len(value.expected)
    assert [check for check in checks if not check["ok"]] == []
