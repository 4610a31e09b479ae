"""The walk-through of CONTRIBUTING, followed literally in a copy of the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkpoints.files import checkpoint_files
from tests.checkpoints.hub_cache import BY_NAME, place_in_hub_cache
from tests.docs.pages import ROOT, code_blocks

PLACE = "_MORE_ENCODERS = (\n"
COPIED = ("bge_runtime", "docs", "tests", "pyproject.toml")


@pytest.fixture
def copy_of_the_repository(tmp_path: Path) -> Path:
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tmp_path / name)
    return tmp_path


def follow(command: str, folder: Path, cache: Path) -> str:
    """Run one command line of the walk-through and return what it prints."""
    settings = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
        "HF_HUB_CACHE": str(cache),
    }
    result = subprocess.run(command, shell=True, cwd=folder, env=settings, capture_output=True, text=True)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def test_adding_a_model_as_described_works(
    copy_of_the_repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, cache = copy_of_the_repository, tmp_path_factory.mktemp("hub")
    page = ROOT / "CONTRIBUTING.md"
    (row,) = [block.text for block in code_blocks(page, "python")]
    commands = [line for block in code_blocks(page, "bash") for line in block.text.splitlines()]
    place_in_hub_cache(cache, "example/bge-example-en", checkpoint_files(BY_NAME["BAAI/bge-small-en-v1.5"]))
    table = folder / "bge_runtime" / "models" / "table.py"
    before = table.read_text(encoding="utf-8")
    assert before.count(PLACE) == 1

    table.write_text(before.replace(PLACE, PLACE + row), encoding="utf-8")
    printed = [follow(command, folder, cache) for command in commands]

    assert len(printed) == 4
    assert "id='example/bge-example-en'" in printed[2]
    assert printed[3].strip() == "(1, 384)"
    assert "`example/bge-example-en`" in (folder / "docs" / "models.md").read_text(encoding="utf-8")


def test_the_row_stands_in_the_page_as_the_table_is_written() -> None:
    (row,) = [block.text for block in code_blocks(ROOT / "CONTRIBUTING.md", "python")]
    assert row.startswith("    ModelSpec(\n")
    assert row.endswith("    ),\n")
