"""What all commands print, and the options that several share."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from bge_runtime.cli.evaluation import Answer

__all__ = [
    "AsJson",
    "Corpus",
    "Qrels",
    "VectorsDir",
    "VisibleFormatter",
    "on_terminal",
    "one_line",
    "print_answer",
    "print_json",
    "print_table",
    "say",
]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Corpus = Annotated[Path | None, typer.Option(help="Documents: JSON lines, or a folder; for data that has none.")]
Qrels = Annotated[Path | None, typer.Option(help="TREC's judgements, for TREC queries.")]
VectorsDir = Annotated[Path | None, typer.Option(help="Where vectors are kept; BGE_CACHE_DIR, else ~/.cache/bge.")]


class VisibleFormatter(logging.Formatter):
    """Logs with control characters escaped."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        return visible(super().formatMessage(record))


def on_terminal() -> bool:
    """Whether somebody watches: a progress bar in a file is noise."""
    return sys.stderr.isatty()


def say(line: str, *, err: bool = False) -> None:
    """Print one line."""
    typer.echo(visible(line), err=err)


def visible(text: str) -> str:
    """Return text with control characters escaped: a file's name must neither steer the terminal nor fake a line."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text
    )


def print_json(value: object) -> None:
    """Print a value as JSON."""
    text = json.dumps(value, ensure_ascii=False, indent=2)
    # JSON itself escapes the first 32 characters only, and they are not all that steer a terminal.
    typer.echo("".join(each if each.isprintable() or each == "\n" else json.dumps(each)[1:-1] for each in text))


def print_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows below their titles."""
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    for row in (titles, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        say("  ".join(cells).rstrip())


def print_answer(result: Answer, as_json: bool) -> None:
    """Print what a command found, as tables and lines or as JSON."""
    if as_json:
        print_json(result.values)
        return
    for table in result.tables:
        print_table(*table)
    for line in result.lines:
        say(line)


def one_line(text: str) -> str:
    """Return text on one line; control characters in a document must not steer the terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in " ".join(text.split()))
