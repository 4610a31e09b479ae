"""Every code block of the documentation runs, on the seeded checkpoints where it names a hub model."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

import bge_runtime
from bge_runtime.cli.commands import app
from bge_runtime.models import registry
from tests.docs.pages import PAGES, ROOT, code_blocks, page_name, shell_lines
from tests.packaging.project import extras, make_targets

# CONTRIBUTING's blocks are steps to be followed in order: test_contributing.py follows them.
RUNNABLE = [page for page in PAGES if page.name != "CONTRIBUTING.md" and code_blocks(page, "python")]
COMMANDS = [(page_name(page), line) for page in PAGES for line in shell_lines(page)]
LANGUAGES = {"python", "bash", "text"}


@pytest.fixture
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo what a block changes for the whole process: the model table, LlamaIndex's settings, loaded models."""
    from llama_index.core import Settings

    bge_runtime.list_models()
    monkeypatch.setattr(registry, "_MODELS", dict(registry._MODELS))
    monkeypatch.setattr(Settings, "_embed_model", None)
    bge_runtime.unload_models()
    yield
    bge_runtime.unload_models()


def run_blocks(page: Path) -> None:
    """Run the Python blocks of a page in order, in one namespace, with line numbers of the page."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in code_blocks(page, "python"):
        code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
        exec(code, names)


@pytest.mark.parametrize("page", RUNNABLE, ids=page_name)
@pytest.mark.usefixtures("hub_cache", "as_before")
@pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning")
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
def test_python_blocks_run(page: Path) -> None:
    run_blocks(page)


@pytest.mark.usefixtures("hub_cache", "as_before")
def test_the_readme_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    page = ROOT / "README.md"
    offline = [block for block in code_blocks(page, "python") if "DEFAULT_OFFLINE_MODEL" in block.text]
    for block, expected in zip(offline, code_blocks(page, "text"), strict=True):
        exec(compile(block.text, str(page), "exec"), {})
        assert capsys.readouterr().out == expected.text


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_block_names_its_language(page: Path) -> None:
    assert {block.language for block in code_blocks(page)} <= LANGUAGES


def words(line: str) -> list[str]:
    """Split a command line and drop the environment variables in front of it."""
    return [word for word in shlex.split(line) if not re.fullmatch(r"[A-Z_]+=\S*", word)]


@pytest.mark.parametrize(("where", "line"), COMMANDS)
def test_a_command_names_what_exists(where: str, line: str) -> None:
    program, *arguments = words(line)
    check = {"make": check_make, "pip": check_pip, "bge": check_bge, "python": check_python}
    assert program in check, f"{where}: no check for {line!r}"
    check[program](arguments)


def check_make(arguments: list[str]) -> None:
    assert arguments[0] in make_targets()


def check_pip(arguments: list[str]) -> None:
    assert arguments[0] == "install"
    named = re.findall(r"(?:bge-integrations|\.)\[([\w,-]+)\]", " ".join(arguments))
    assert {extra for names in named for extra in names.split(",")} <= set(extras())


def check_bge(arguments: list[str]) -> None:
    """The command and each of its options exist; nothing is run."""
    group: Any = get_command(app)
    name, *rest = arguments
    assert name in group.commands
    group.commands[name].make_context(name, rest)


def check_python(arguments: list[str]) -> None:
    if arguments[0] == "-m":
        files = [word for word in arguments[2:] if word.endswith(".py")]
        assert all((ROOT / file).is_file() for file in files)
    elif arguments[0] == "-c":
        compile(arguments[1], "-c", "exec")
    else:
        assert (ROOT / arguments[0]).is_file()


@pytest.mark.parametrize("command", ["bge models", "bge models --json"])
def test_commands_that_need_nothing_succeed(command: str) -> None:
    result = CliRunner().invoke(app, words(command)[1:])
    assert result.exit_code == 0, result.output
