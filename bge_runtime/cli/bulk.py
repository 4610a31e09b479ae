"""`bge embed`: texts of files to Parquet, and the plan of such a run."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import bge_runtime
from bge_runtime import DEFAULT_OFFLINE_MODEL, ConfigurationError
from bge_runtime.cli.output import AsJson, on_terminal, print_json, print_table, say

if TYPE_CHECKING:
    from bge_runtime.bulk import BulkResult, Plan

__all__ = ["embed"]


class Role(StrEnum):
    """Whose instruction the texts get."""

    DOCUMENT = "document"
    QUERY = "query"


class Format(StrEnum):
    """How the numbers of a dense vector are written."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT8 = "int8"
    BINARY = "binary"


class Output(StrEnum):
    """What a text becomes."""

    DENSE = "dense"
    SPARSE = "sparse"
    MULTI_VECTOR = "multi_vector"


def embed(
    source: Annotated[
        Path | None,
        typer.Argument(
            metavar="INPUT",
            help="Parquet, .jsonl, .csv or .txt (one text per line), or a folder of them or of documents.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the parts; an earlier run in it is continued.")] = None,
    model: Annotated[str, typer.Option(help="Embedding model.")] = DEFAULT_OFFLINE_MODEL,
    role: Annotated[Role, typer.Option(help="Whose instruction the texts get.")] = Role.DOCUMENT,
    text_column: Annotated[str, typer.Option(help="Column of the texts.")] = "text",
    id_column: Annotated[
        str | None, typer.Option(help="Column of the ids; `id` where there is one, else FILENAME:ROW, as '' asks for.")
    ] = None,
    format: Annotated[Format, typer.Option(help="Of the dense vectors.")] = Format.FLOAT32,
    output: Annotated[list[Output] | None, typer.Option(help="Repeat for several; dense by default.")] = None,
    part_rows: Annotated[
        int | None, typer.Option(min=1, help="Rows of a part; 50000, or 2000 with multi_vector.")
    ] = None,
    max_length: Annotated[int | None, typer.Option(help="Longest text in tokens; the model's own by default.")] = None,
    dimension: Annotated[int | None, typer.Option(help="Keep so many leading dimensions.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:N or mps; chosen by default.")] = None,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Ray cluster that computes: auto, local, ray://HOST:PORT.")
    ] = None,
    plan: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Write nothing: tell what N texts would take; INPUT is a sample."),
    ] = None,
    plan_seconds: Annotated[float, typer.Option(help="How long --plan measures.")] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Embed the texts of files into Parquet; run it again where it was interrupted."""
    from bge_runtime.bulk import embed_to_parquet, plan_embedding

    outputs: list[Any] = [each.value for each in output or (Output.DENSE,)]
    if plan is None and (source is None or out is None):
        raise ConfigurationError("Name the input and the folder of the result: bge embed INPUT --out FOLDER.")
    if plan is not None and out is not None:
        raise ConfigurationError("--plan writes nothing. Leave --out away, or --plan.")
    # What is cut is told in the result.
    embedder = bge_runtime.Embedder(
        model, max_length=max_length, truncate_dim=dimension, device=device, truncation="silent"
    )
    if plan is not None:
        planned = plan_embedding(
            plan,
            embedder,
            sample=source,
            role=role.value,
            text_column=text_column,
            format=format.value,
            outputs=outputs,
            seconds=plan_seconds,
        )
        print_json(planned.as_dict()) if as_json else _print_plan(planned)
        return
    assert source is not None
    assert out is not None
    result = embed_to_parquet(
        source,
        out,
        embedder,
        role=role.value,
        text_column=text_column,
        id_column=id_column,
        format=format.value,
        outputs=outputs,
        part_rows=part_rows,
        ray=ray,
        show_progress=on_terminal(),
    )
    print_json(result.as_dict()) if as_json else _print_result(result)


def _print_result(result: BulkResult) -> None:
    where = f"{result.rows} texts in {result.parts} part{'s' if result.parts > 1 else ''}: {str(result.folder)!r}"
    if not result.changed:
        say(f"Nothing to do: this run is finished. {where}")
        return
    say(where)
    say(f"embedded now: {result.computed} in {result.seconds:.1f} s, {result.texts_per_second:.1f} per second")
    if result.recomputed:
        say(f"of these an earlier run had begun, and lost: {result.recomputed}")
    if result.truncated:
        say(f"cut to what the model reads: {result.truncated}")


def _print_plan(plan: Plan) -> None:
    rows = [
        (
            str(each.devices),
            f"{each.hours:.2f}",
            _size(each.memory_bytes),
            _size(each.disk_bytes),
            _size(each.moved_bytes),
        )
        for each in plan.estimates
    ]
    say(
        f"{plan.rows} texts with {plan.model} on {plan.device} ({plan.precision}): {plan.texts_per_second:.1f} texts "
        f"per second, {plan.tokens_per_text:.0f} tokens each, measured for {plan.measured_seconds:.1f} s"
    )
    print_table(("DEVICES", "HOURS", "MEMORY", "DISK", "MOVED"), rows)
    for line in plan.assumptions:
        say(f"assumed: {line}")


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.1f} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1000
    raise AssertionError
