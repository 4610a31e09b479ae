"""DEFECTS.md names the tests of every defect, and nothing else."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from tests.langchain import test_defects, test_defects_reranking

TABLE = Path(__file__).with_name("DEFECTS.md")


def marked() -> dict[int, set[str]]:
    found: dict[int, set[str]] = defaultdict(set)
    for module in (test_defects, test_defects_reranking):
        for name, value in vars(module).items():
            for mark in getattr(value, "pytestmark", ()):
                if mark.name == "defect":
                    found[mark.args[0]].add(name)
    return dict(found)


def listed() -> dict[int, set[str]]:
    rows = re.findall(r"^\| (\d+) \| ([^|]*) \|", TABLE.read_text(encoding="utf-8"), re.MULTILINE)
    return {int(number): set(re.findall(r"`(test_\w+)`", tests)) for number, tests in rows}


def test_every_defect_has_its_tests_in_the_table() -> None:
    assert listed() == marked()
    assert sorted(listed()) == list(range(1, 24))
