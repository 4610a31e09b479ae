"""Fixtures of the command line's tests: a runner, a cache of their own, the packaged model kept loaded."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from bge_runtime import DEFAULT_OFFLINE_MODEL, Embedder
from bge_runtime.cli.commands import app


@pytest.fixture(scope="module")
def embedder(minilm: Path) -> Iterator[Embedder]:
    """The default model; held here, so that the commands of a module load it once."""
    with Embedder(DEFAULT_OFFLINE_MODEL) as embedder:
        yield embedder.warm_up()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder for indexes."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("BGE_CACHE_DIR", str(folder))
    return folder


@pytest.fixture
def bge() -> Callable[..., Result]:
    """Run `bge` with arguments."""

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="bge")

    return run


@pytest.fixture
def search(bge: Callable[..., Result], embedder: Embedder) -> Callable[..., dict[str, Any]]:
    """Run `bge search --json`, which must succeed; returns the values, with the notices under `stderr`."""

    def run(folder: Path, question: str = "Which organ moves blood?", *options: object) -> dict[str, Any]:
        result = bge("search", folder, question, "--json", *options)
        assert result.exit_code == 0, result.output
        return {**json.loads(result.stdout), "stderr": result.stderr}

    return run


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A folder with three documents."""
    folder = tmp_path / "library"
    (folder / "science").mkdir(parents=True)
    (folder / "science" / "body.md").write_text(
        "# The body\n\n## Heart\n\nThe heart pumps blood through the vessels.\n\n"
        "## Lungs\n\nLungs take up oxygen from the air.\n",
        encoding="utf-8",
    )
    (folder / "cities.txt").write_text("Paris is the capital of France.\n", encoding="utf-8")
    (folder / "food.html").write_text(
        "<html><head><title>Food</title><style>p {color: red}</style></head><body><h1>Bread</h1>"
        "<p>Bread is baked from <b>flour</b> and water.</p><script>alert('x')</script></body></html>",
        encoding="utf-8",
    )
    return folder
