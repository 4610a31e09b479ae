"""The command `bge`. Heavy imports wait inside the commands, so that `bge --help` answers at once."""

from __future__ import annotations

import io
import logging
import pkgutil
import shlex
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

import bge_runtime
from bge_runtime.cli import bulk, serving, training
from bge_runtime.cli.output import (
    AsJson,
    Corpus,
    Qrels,
    VectorsDir,
    VisibleFormatter,
    on_terminal,
    one_line,
    print_answer,
    print_json,
    print_table,
    say,
)

if TYPE_CHECKING:
    from bge_runtime.evaluation.bench import Comparison
    from bge_runtime.evaluation.migration import Migration, Requirement
    from bge_runtime.search import Hit, SearchResult

__all__ = ["app"]

EXIT_DIFFERENT = 1
EXIT_ERROR = 2
EXIT_INTERRUPTED = 130
SNIPPET_LENGTH = 220


class _Commands(TyperGroup):
    """Commands whose expected errors are one line on standard error, and no traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except bge_runtime.BGEError as error:
            say(f"Error: {error}", err=True)
            raise typer.Exit(EXIT_ERROR) from error
        except KeyboardInterrupt as error:
            typer.echo("Interrupted.", err=True)
            raise typer.Exit(EXIT_INTERRUPTED) from error


app = typer.Typer(
    name="bge",
    cls=_Commands,
    help="Embed, search and rerank with BGE models.",
    epilog='Example: bge search docs "how do I turn the query instruction off?"',
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


app.add_typer(training.data, name="data")
app.add_typer(training.train, name="train")
app.command("serve", epilog="Example: bge serve --model BAAI/bge-m3 --model BAAI/bge-reranker-v2-m3 --port 8080")(
    serving.serve
)
app.command("embed", epilog="Example: bge embed corpus.jsonl --out vectors --model BAAI/bge-small-en-v1.5")(bulk.embed)
app.command("mine", epilog="Example: bge mine train.jsonl --corpus corpus.jsonl --out mined.jsonl")(training.mine)
app.command("mix", epilog="Example: bge mix BAAI/bge-small-en-v1.5 tuned --weights 0.5,0.5 --out mixed")(training.mix)


class Hub(StrEnum):
    """Where `bge download` fetches from."""

    HUGGINGFACE = "huggingface"
    MODELSCOPE = "modelscope"


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"bge {bge_runtime.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Embed, search and rerank with BGE models."""
    # Documents hold characters that some terminals lack.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    # Readers of documents log what is wrong with them, in words of the documents.
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(VisibleFormatter())


@app.command(epilog="Example: bge models --json")
def models(as_json: AsJson = False) -> None:
    """List the models: what each is, and whether it runs."""
    specs = bge_runtime.list_models()
    if as_json:
        print_json(
            [{**spec.as_dict(), "runnable": spec.unsupported is None, "reason": spec.unsupported} for spec in specs]
        )
        return
    # 80 columns wide, as terminals are; the rest is in the JSON.
    rows = [
        (spec.id, spec.kind, str(spec.dimension or "-"), str(spec.max_length), ",".join(spec.languages))
        for spec in specs
    ]
    print_table(("MODEL", "KIND", "DIM", "TOKENS", "LANGUAGES"), rows)
    for reason in dict.fromkeys(spec.unsupported for spec in specs if spec.unsupported is not None):
        names = ", ".join(spec.id for spec in specs if spec.unsupported == reason)
        say("")
        for line in textwrap.wrap(
            f"not runnable: {names}: {reason}", 80, subsequent_indent="  ", break_on_hyphens=False
        ):
            say(line)


@app.command(epilog="Example: bge doctor --verify BAAI/bge-reranker-base")
def doctor(
    verify: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="Compare with the values that its authors published; `list` shows which there are."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show versions, devices, the model hub and which models are on this machine; or check a model's results."""
    if verify is not None:
        from bge_runtime.evaluation import verification

        result = verification.Listing() if verify == "list" else verification.verify(verify)
        if as_json:
            print_json(result.as_dict())
        else:
            print_table(*result.table())
        raise typer.Exit(0 if result.ok else EXIT_DIFFERENT)
    from bge_runtime.cli.doctor import examine, render

    report = examine()
    if as_json:
        print_json(report.as_dict())
    else:
        for line in render(report).split("\n"):
            say(line)


@app.command(epilog="Example: bge download BAAI/bge-small-en-v1.5")
def download(
    model: Annotated[str, typer.Argument(help="Hub id, or a name that `bge models` lists.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit; the main branch by default.")] = None,
    cache_folder: Annotated[str | None, typer.Option(help="Cache folder; the hub's usual one by default.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Fetch files again that are here already.")] = False,
    source: Annotated[
        Hub, typer.Option("--from", help="Where to fetch from; HF_ENDPOINT names a mirror of the first.")
    ] = Hub.HUGGINGFACE,
) -> None:
    """Bring a model onto this machine and print its folder."""
    folder = bge_runtime.download(
        model,
        revision=revision,
        cache_folder=cache_folder,
        force=force,
        source=source.value,
        show_progress=on_terminal(),
    )
    typer.echo(folder)


@app.command(epilog='Example: bge search docs "how do I turn the query instruction off?" -k 5')
def search(
    folder: Annotated[Path, typer.Argument(help="Folder with Markdown, text, HTML or PDF files, or one such file.")],
    question: Annotated[str, typer.Argument(help="What to look for.")],
    model: Annotated[str, typer.Option(help="Embedding model.")] = bge_runtime.DEFAULT_OFFLINE_MODEL,
    reranker: Annotated[
        str | None,
        typer.Option(help="Reranking model; late interaction with the embedding model by default."),
    ] = None,
    no_rerank: Annotated[bool, typer.Option("--no-rerank", help="Keep the order of the vectors.")] = False,
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="Sections to print.")] = 3,
    fetch_k: Annotated[int, typer.Option(min=1, help="Chunks to retrieve for the reranker.")] = 100,
    chunk_tokens: Annotated[
        int | None,
        typer.Option(help="Most tokens of a chunk; 200 by default, or what the model reads if less."),
    ] = None,
    cache_dir: Annotated[
        Path | None, typer.Option(help="Where the index is kept; BGE_CACHE_DIR, else ~/.cache/bge.")
    ] = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Forget the stored index first.")] = False,
    as_json: AsJson = False,
) -> None:
    """Search a folder of documents; only files that changed since the last run are embedded."""
    from bge_runtime.search import search_folder

    if no_rerank and reranker is not None:
        raise bge_runtime.ConfigurationError("--reranker and --no-rerank exclude each other. Use one.")
    embedder = bge_runtime.Embedder(model)
    ranker = None if no_rerank else bge_runtime.Reranker(embedder if reranker is None else reranker)
    reranking = "none" if ranker is None else f"{ranker.method.replace('_', ' ')} with {ranker.model}"
    say(f"embedding model: {embedder.model}; reranking: {reranking}", err=True)
    result = search_folder(
        folder,
        question,
        embedder=embedder,
        reranker=ranker,
        k=k,
        fetch_k=fetch_k,
        chunk_tokens=chunk_tokens,
        cache_folder=cache_dir,
        rebuild=rebuild,
        show_progress=on_terminal(),
        notify=lambda message: say(message, err=True),
    )
    if not as_json:
        _print_hits(result.hits)
        return
    methods = {"method": ranker.method if ranker else None, "model": ranker.model if ranker else None}
    print_json({"question": question, "model": embedder.model, "reranking": methods, **_as_values(result)})


@app.command(epilog="Example: bge bench --data docs --rounds 3")
def bench(
    data: Annotated[
        Path,
        typer.Option(help="Your texts: a file with one per line, JSON lines with `text`, or a folder of documents."),
    ],
    model: Annotated[str, typer.Option(help="Embedding or reranking model.")] = bge_runtime.DEFAULT_OFFLINE_MODEL,
    queries: Annotated[
        Path | None, typer.Option(help="Queries for a reranker, as --data; else the first words of the first text.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each way of running is timed, in turn.")] = 3,
    limit: Annotated[int, typer.Option(min=1, help="Most texts, picked evenly.")] = 256,
    as_json: AsJson = False,
) -> None:
    """Time your texts on this machine: every backend and precision against plain sentence-transformers."""
    from bge_runtime.evaluation.bench import compare, read_queries, read_texts

    texts = read_texts(data, limit)
    result = compare(model, texts, queries=read_queries(queries, texts), rounds=rounds, show_progress=on_terminal())
    if as_json:
        print_json(asdict(result))
    else:
        _print_comparison(result)


@app.command("eval", epilog="Example: bge eval scifact.tar.gz --compare rerank=none,late_interaction --out report")
def evaluate(
    data: Annotated[
        Path | None,
        typer.Argument(help="BEIR folder or archive, TREC queries, LlamaIndex question JSON, or JSON lines."),
    ] = None,
    model: Annotated[str, typer.Option(help="Embedding model.")] = bge_runtime.DEFAULT_OFFLINE_MODEL,
    reranker: Annotated[
        str | None, typer.Option(help="Reranking model; the embedding model's own name is late interaction.")
    ] = None,
    depth: Annotated[int, typer.Option(min=1, help="Candidates to rerank.")] = 100,
    run: Annotated[Path | None, typer.Option(help="A saved TREC run, instead of a model.")] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(metavar="AXIS=VALUE,VALUE", help="Compare; repeat for a grid. A wrong axis lists them all."),
    ] = None,
    metric: Annotated[str, typer.Option(help="What --compare tests.")] = "nDCG@10",
    split: Annotated[str, typer.Option(help="Which judgements of BEIR data.")] = "test",
    corpus: Corpus = None,
    qrels: Qrels = None,
    mteb: Annotated[str | None, typer.Option(help="Tasks of MTEB instead of data, as SciFact,T2Retrieval.")] = None,
    make_questions: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write weak questions about documents to --out, and stop.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the report, or file of the questions.")] = None,
    cache_dir: VectorsDir = None,
    as_json: AsJson = False,
) -> None:
    """Measure how well a model finds what answers your questions; with --compare, which way to take."""
    from bge_runtime.cli import evaluation

    request = evaluation.Request(
        data=data,
        model=model,
        reranker=reranker,
        depth=depth,
        run=run,
        compare=tuple(compare or ()),
        metric=metric,
        split=split,
        corpus=corpus,
        qrels=qrels,
        mteb=mteb,
        make_questions=make_questions,
        out=out,
        cache_dir=cache_dir,
        command=" ".join(["bge", *map(shlex.quote, sys.argv[1:])]),
    )
    result = evaluation.answer(request, show_progress=on_terminal(), notify=lambda line: say(line, err=True))
    print_answer(result, as_json)


@app.command(epilog="Example: bge calibrate scifact.tar.gz --split train --test-split test --out calibrator.json")
def calibrate(
    data: Annotated[Path, typer.Argument(help="Judged questions, as for `bge eval`; whole documents.")],
    out: Annotated[Path, typer.Option(help="File of the calibrator.")] = Path("calibrator.json"),
    model: Annotated[str, typer.Option(help="Embedding model.")] = bge_runtime.DEFAULT_OFFLINE_MODEL,
    reranker: Annotated[
        str | None,
        typer.Option(help="Calibrate this reranker's scores; the embedding model's name is late interaction."),
    ] = None,
    split: Annotated[str, typer.Option(help="Which judgements of BEIR data to fit on.")] = "test",
    test_split: Annotated[str | None, typer.Option(help="Which others to measure on.")] = None,
    corpus: Corpus = None,
    qrels: Qrels = None,
    candidates: Annotated[int, typer.Option(min=1, help="How many of a question's best results it is about.")] = 10,
    method: Annotated[str, typer.Option(help="isotonic, platt, or auto.")] = "auto",
    precision: Annotated[float, typer.Option(help="Share of the kept results that is to be relevant.")] = 0.8,
    recall: Annotated[float, typer.Option(help="Share of the relevant results that is to be kept.")] = 0.9,
    wrong: Annotated[float, typer.Option(help="Most that may be wrong of what is kept, as a promise.")] = 0.1,
    confidence: Annotated[float, typer.Option(help="Of intervals and promise.")] = 0.95,
    without_labels: Annotated[bool, typer.Option("--without-labels", help="Use no judgements; much weaker.")] = False,
    cache_dir: VectorsDir = None,
    as_json: AsJson = False,
) -> None:
    """Turn scores into probabilities, and find the thresholds, on your own questions."""
    from bge_runtime.cli import evaluation

    asked = evaluation.Calibration(
        data=data,
        model=model,
        reranker=reranker,
        out=out,
        split=split,
        test_split=test_split,
        corpus=corpus,
        qrels=qrels,
        candidates=candidates,
        method=method,
        precision=precision,
        recall=recall,
        wrong=wrong,
        confidence=confidence,
        without_labels=without_labels,
        cache_dir=cache_dir,
    )
    print_answer(evaluation.calibrated(asked, show_progress=on_terminal()), as_json)


@app.command(epilog="Example: bge migrate index new-index --model BAAI/bge-small-en-v1.5")
def migrate(
    source: Annotated[Path, typer.Argument(help="Folder of the index; it is only read.")],
    target: Annotated[Path | None, typer.Argument(help="Folder that the new index is to have.")] = None,
    model: Annotated[str, typer.Option(help="Embedding model of the new index.")] = bge_runtime.DEFAULT_OFFLINE_MODEL,
    from_model: Annotated[
        str | None, typer.Option(help="Embedding model that filled the index; its record must agree.")
    ] = None,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Put the new index in the place of the old one, which is kept beside it.")
    ] = False,
    collection: Annotated[str | None, typer.Option(help="Which index, where the folder holds several.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts embedded and made safe at a time.")] = 256,
    require: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Judged questions, as for `bge eval`, on which the new model must be no worse than --from-model; or "
            "MODULE:FUNCTION, which is given the new index's folder. Else the old one stays.",
        ),
    ] = None,
    allow_empty: Annotated[bool, typer.Option("--allow-empty", help="Take entries without a text along.")] = False,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Load classes that a pickled file names, which can run any code.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Embed an index again with another model, from its own texts; run it again where it was interrupted."""
    from bge_runtime.evaluation.migration import migrate as run

    if in_place == (target is not None):
        raise bge_runtime.ConfigurationError("Name a TARGET, or pass --in-place: one of the two.")
    embedder = bge_runtime.Embedder(model)
    old = None if from_model is None else bge_runtime.Embedder(from_model)
    requirement = None
    if require is not None and Path(require).exists():
        requirement = _no_worse(Path(require), old, embedder, collection, allow_pickle)
    elif require is not None:
        requirement = _requirement(require)
    result = run(
        source,
        target,
        embedder,
        source_embedder=old,
        collection=collection,
        batch_size=batch_size,
        require=requirement,
        allow_empty=allow_empty,
        allow_pickle=allow_pickle,
        show_progress=on_terminal(),
    )
    if as_json:
        print_json({**asdict(result), "source": str(result.source), "target": str(result.target)})
    else:
        _print_migration(result, model)


def _no_worse(
    data: Path, old: bge_runtime.Embedder | None, new: bge_runtime.Embedder, collection: str | None, allow_pickle: bool
) -> Requirement:
    from bge_runtime.evaluation.judgements import Judgements
    from bge_runtime.evaluation.requirement import no_worse

    if old is None:
        raise bge_runtime.ConfigurationError(
            f"--require {str(data)!r} compares two models. Name the old: --from-model."
        )
    return no_worse(Judgements.read(data), old, new, collection=collection, allow_pickle=allow_pickle)


def _requirement(name: str) -> Requirement:
    """Return the function that an option names."""
    try:
        found = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise bge_runtime.ConfigurationError(
            f"--require {name!r} cannot be imported ({error}). Name MODULE:FUNCTION, "
            "of a module that is installed or on PYTHONPATH."
        ) from error
    if not callable(found):
        raise bge_runtime.ConfigurationError(f"--require {name!r} is no function. Name MODULE:FUNCTION.")
    requirement: Requirement = found
    return requirement


def _print_comparison(result: Comparison) -> None:
    reranking = result.kind == "reranker"
    say(
        f"{result.model} on {result.device}: {result.texts} {'pairs' if reranking else 'texts'}, "
        f"{result.tokens} tokens, median of {result.rounds} rounds run in turn"
    )
    rows = []
    for row in result.rows:
        if row.ratio is None or row.ratio_range is None:
            continue
        error = [f"{row.difference:.1e}" if row.difference is not None else "-"]
        if not reranking:
            error = ["-" if each is None else f"{each:.6f}" for each in (row.cosine_min, row.cosine_mean)]
        speeds = [f"{each:.0f}" if each else "-" for each in (row.texts_per_s, row.tokens_per_s)]
        spread = f"{row.ratio_range[0]:.2f} to {row.ratio_range[1]:.2f}"
        rows.append([row.name, *speeds, f"{row.ratio:.2f}", spread, *error])
    error_titles = ["DIFFERENCE"] if reranking else ["COSINE MIN", "MEAN"]
    unit = "PAIRS/S" if reranking else "TEXTS/S"
    print_table(("WAY", unit, "TOKENS/S", "RATIO", "RANGE", *error_titles), rows)
    say("ratio: times as fast as sentence-transformers; errors: against the runtime's own float32")
    for row in result.rows:
        if row.reason is not None:
            say(f"{row.name} does not run: {row.reason}")


def _print_migration(result: Migration, model: str) -> None:
    where = f"{result.kind} index {result.name!r} in {str(result.target)!r}"
    if not result.changed:
        say(f"Nothing to do: the {where} was filled by {model} already.")
        return
    say(
        f"{result.documents} documents: {result.computed} texts embedded, {result.resumed} of an earlier run, "
        f"in {result.seconds:.1f} s"
    )
    say(f"new: {where}, for {model}")
    say(f"old: {str(result.source)!r}")
    for each in result.left_out:
        say(f"left out: {each}")


def _print_hits(hits: Sequence[Hit]) -> None:
    for number, hit in enumerate(hits, start=1):
        scores = f"dense {hit.dense:.4f}" if hit.rerank is None else f"rerank {hit.rerank:.4f}, dense {hit.dense:.4f}"
        say(f"{number}. {hit.file}  ({scores})")
        if hit.heading:
            say(f"   {one_line(' > '.join(hit.heading))}")
        say(f"   {_snippet(hit.text)}")
        say("")


def _as_values(result: SearchResult) -> dict[str, object]:
    return {
        "embedded": result.embedded,
        "texts": result.texts,
        "skipped": result.skipped,
        "results": [
            {
                "file": hit.file,
                "heading": list(hit.heading),
                "dense": hit.dense,
                "rerank": hit.rerank,
                "text": hit.text,
            }
            for hit in result.hits
        ],
    }


def _snippet(text: str) -> str:
    line = one_line(text)
    return line if len(line) <= SNIPPET_LENGTH else f"{line[:SNIPPET_LENGTH].rsplit(' ', 1)[0]} ..."
