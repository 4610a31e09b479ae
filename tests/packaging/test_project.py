"""Packaging: versions, extras, typing markers, and commands that stay in step with each other."""

from __future__ import annotations

import importlib.metadata
import os
import re
from pathlib import Path

import pytest

import bge_runtime
from tests.packaging.project import ROOT, extras, make_targets, project

CHECKS = ROOT / "tests" / "packaging" / "extras"
PACKAGES = ("bge_runtime", "langchain_bge", "llamaindex_bge")


def test_one_version_everywhere() -> None:
    version = project()["version"]
    newest = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert newest is not None
    assert newest[1] == version
    assert bge_runtime.__version__ == version == importlib.metadata.version("bge-integrations")


def test_every_extra_is_tried_by_a_script() -> None:
    scripts = {path.stem.removeprefix("check_") for path in CHECKS.glob("check_*.py")}
    # "none" is the plain installation; "all" must satisfy every script.
    assert scripts == {*extras(), "none"} - {"all"}


def test_all_is_the_sum_of_the_extras() -> None:
    (requirement,) = project()["optional-dependencies"]["all"]
    named = re.fullmatch(r"bge-integrations\[(.+)\]", requirement)
    assert named is not None
    assert set(named[1].split(",")) == set(extras()) - {"all"}


def test_the_readme_names_every_extra() -> None:
    table = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Extras")[2].partition("\n## ")[0]
    assert set(re.findall(r"`([a-z]+)`", table)) == set(extras())


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_is_typed_and_in_the_wheel(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()
    assert f'"{package}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("targets.wheel]")[2]


def test_make_has_the_documented_targets() -> None:
    assert make_targets() == {
        "help",
        "setup",
        "lock",
        "demo",
        "test",
        "test-latest",
        "test-lowest",
        "test-slow",
        "check",
        "docs",
        "extras",
        "migration-check",
        "reference-check",
        "milvus-check",
        "clients-check",
        "browser-check",
        "published",
        "bench",
        "tables",
        "gpu-check",
    }


def test_the_gate_runs_the_targets_of_the_makefile() -> None:
    script = ROOT / ".ci" / "run"
    text = script.read_text(encoding="utf-8")
    assert os.access(script, os.X_OK)
    assert "set -euo pipefail" in text
    called = re.findall(r"^make ([\w-]+)$", text, flags=re.MULTILINE)
    # What they install changes from day to day, and the gate must not: they are run by hand.
    by_hand = {"test-latest", "test-lowest"}
    assert {"check", "test", "test-slow", "extras"} <= set(called) <= make_targets() - by_hand


def test_passages_of_others_carry_their_licence() -> None:
    for file in (ROOT / "examples").rglob("*.jsonl"):
        source = Path(file).parent / "SOURCE.md"
        assert "CC BY-SA 4.0" in source.read_text(encoding="utf-8")
