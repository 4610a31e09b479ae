"""Every environment is held by a lock that fits its requirements: `make lock` was not forgotten."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from tests.packaging.project import ROOT, extras, project, setup_extras

LOCKS = ROOT / "locks"
PEERS = ROOT / "benchmarks" / "requirements"
FRAMEWORKS = ["langchain", "llamaindex"]
# Lock -> the extras of this project in it (None: the project is not), a dependency group, a file of requirements.
SOURCES: dict[str, tuple[Sequence[str] | None, str, Path | None]] = {
    "extras": ([name for name in extras() if name != "all"], "dev", None),
    "setup": (setup_extras(), "dev", None),
    "serve": (["serve"], "locked", None),
    "ray": (["ray"], "locked", None),
    "migration": (FRAMEWORKS, "dev", ROOT / "tests" / "migration" / "requirements.txt"),
    "reference": (None, "locked", ROOT / "tests" / "reference" / "requirements.txt"),
    "clients": (
        ["langchain", "llamaindex", "serve", "telemetry"],
        "locked",
        ROOT / "tests" / "clients" / "requirements.txt",
    ),
    "milvus-langchain": (["langchain"], "locked", ROOT / "tests" / "milvus" / "langchain.txt"),
    "milvus-llamaindex": (["llamaindex"], "locked", ROOT / "tests" / "milvus" / "llamaindex.txt"),
    **{f"benchmarks/{file.stem}": (None, "locked", file) for file in sorted(PEERS.glob("*.txt"))},
}


def group(name: str) -> list[str]:
    """Return the requirements of a dependency group, those of the groups that it includes too."""
    groups: dict[str, list[Any]] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))[
        "dependency-groups"
    ]
    return [
        line
        for entry in groups[name]
        for line in ([entry] if isinstance(entry, str) else group(entry["include-group"]))
    ]


def requirements(lock: str) -> list[Requirement]:
    """Return what a lock has to fulfil, but for torch."""
    asked, tools, file = SOURCES[lock]
    lines = group(tools)
    if file is not None:
        text = re.sub(r"#.*", "", file.read_text(encoding="utf-8"))
        itself = re.search(r"^-e \.\[(.+)\]\n", text, flags=re.MULTILINE)
        if itself is not None:
            asked, text = itself[1].split(","), text.replace(itself[0], "")
        lines += text.split()
    if asked is not None:
        lines += project()["dependencies"]
        lines += [line for name in asked for line in project()["optional-dependencies"][name]]
    return [each for each in map(Requirement, lines) if each.name != "torch"]


def pins(lock: str) -> list[tuple[str, str, bool]]:
    """Return name, version and whether this interpreter takes it, for every line of a lock."""
    text = (LOCKS / f"{lock}.txt").read_text(encoding="utf-8")
    found = [Requirement(line.removesuffix(" \\")) for line in text.splitlines() if line[:1].isalnum()]
    return [
        (each.name, str(each.specifier).removeprefix("=="), each.marker is None or each.marker.evaluate())
        for each in found
    ]


def normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def test_there_is_a_lock_for_every_environment_and_none_besides() -> None:
    files = {path.relative_to(LOCKS).with_suffix("").as_posix() for path in LOCKS.rglob("*.txt")}
    assert files == {*SOURCES, "without-torch"}


@pytest.mark.parametrize("lock", SOURCES)
def test_a_lock_fulfils_the_requirements_it_was_made_from(lock: str) -> None:
    held = {name: version for name, version, taken in pins(lock) if taken}
    wrong = [
        f"{each} (held: {held.get(normal(each.name))})"
        for each in requirements(lock)
        if normal(each.name) not in held or not each.specifier.contains(held[normal(each.name)], prereleases=True)
    ]
    assert wrong == [], "renew the locks with `make lock`"


@pytest.mark.parametrize("lock", SOURCES)
def test_a_lock_holds_a_hash_for_everything_and_leaves_torch_to_the_makefile(lock: str) -> None:
    text = (LOCKS / f"{lock}.txt").read_text(encoding="utf-8")
    entries = text.replace("\\\n", "").splitlines()
    assert [entry for entry in entries if entry.strip() and "--hash=sha256:" not in entry] == []
    assert "torch" not in {name for name, _, _ in pins(lock)}
