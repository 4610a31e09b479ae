"""What `bge eval` and `bge calibrate` do with their options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bge_runtime import ConfigurationError, Embedder, Reranker, ScoreCalibrator, VectorCache
from bge_runtime.evaluation.calibration import CalibrationReport
from bge_runtime.evaluation.comparison import Comparison, compare, shown_number
from bge_runtime.evaluation.evaluation import Evaluation, evaluate
from bge_runtime.evaluation.judgements import Judgements
from bge_runtime.evaluation.settings import parse_axes
from bge_runtime.search.index import default_cache_folder

__all__ = ["Answer", "Calibration", "Request", "answer", "calibrated"]

Table = tuple[Sequence[str], Sequence[Sequence[str]]]
QUESTIONS = Path("questions.jsonl")


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """The options of `bge eval`."""

    data: Path | None
    model: str
    reranker: str | None
    depth: int
    run: Path | None
    compare: tuple[str, ...]
    metric: str
    split: str
    corpus: Path | None
    qrels: Path | None
    mteb: str | None
    make_questions: Path | None
    out: Path | None
    cache_dir: Path | None
    command: str

    @property
    def cache_folder(self) -> Path:
        """Where vectors and finished combinations are kept."""
        return (self.cache_dir or default_cache_folder()) / "evaluation"


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What is printed.

    Attributes:
        values: For `--json`.
        tables: Titles and rows.
        lines: What stands below them.
    """

    values: dict[str, Any]
    tables: list[Table] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)


def answer(request: Request, *, show_progress: bool, notify: Callable[[str], None]) -> Answer:
    """Do what the options ask for.

    Raises:
        ConfigurationError: They exclude each other, or one is missing.
    """
    if request.make_questions is not None:
        return _made(request)
    if request.mteb is not None:
        return _mteb(request, notify)
    if request.data is None:
        raise ConfigurationError("Name the data: bge eval DATA. Without any, --make-questions FOLDER writes some.")
    if request.compare and (request.reranker or request.run):
        raise ConfigurationError("--compare takes the reranker as an axis: --compare rerank=none,MODEL. Use one.")
    data = Judgements.read(request.data, split=request.split, corpus=request.corpus, qrels=request.qrels)
    cache = _cache(request.cache_folder)
    result: Evaluation | Comparison
    if request.compare:
        result = compare(
            request.model,
            data,
            parse_axes(request.compare),
            metric=request.metric,
            vector_cache=cache,
            folder=request.cache_folder / "runs",
            show_progress=show_progress,
            notify=notify,
        )
        told = _compared(result)
    else:
        subject = request.model if request.run is None else request.run
        result = evaluate(
            subject,
            data,
            reranker=request.reranker,
            depth=request.depth,
            vector_cache=cache,
            show_progress=show_progress,
        )
        told = _evaluated(result)
    if request.out is not None:
        from bge_runtime.evaluation.report import write_report

        told.lines.append(f"report: {write_report(request.out, result, data, command=request.command)}")
    return told


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """The options of `bge calibrate`."""

    data: Path
    model: str
    reranker: str | None
    out: Path
    split: str
    test_split: str | None
    corpus: Path | None
    qrels: Path | None
    candidates: int
    method: str
    precision: float
    recall: float
    wrong: float
    confidence: float
    without_labels: bool
    cache_dir: Path | None


def calibrated(asked: Calibration, *, show_progress: bool) -> Answer:
    """Fit a calibrator, write it, and say what it is good for.

    Raises:
        ConfigurationError: The options exclude each other, or the file cannot be written.
    """
    from bge_runtime.evaluation import calibrating

    if asked.without_labels and (asked.reranker or asked.test_split):
        raise ConfigurationError(
            "--without-labels is for a model's cosines alone: leave --reranker and --test-split out."
        )
    data = Judgements.read(asked.data, split=asked.split, corpus=asked.corpus, qrels=asked.qrels)
    cache = _cache((asked.cache_dir or default_cache_folder()) / "evaluation")
    embedder = Embedder(asked.model, vector_cache=cache, truncation="silent", show_progress=show_progress)
    if asked.without_labels:
        calibrator = calibrating.calibrate_without_labels(embedder, data, candidates=asked.candidates)
        calibrator.save(asked.out)
        return _told(calibrator, asked.out, None)
    ranker = None if asked.reranker is None else Reranker(asked.reranker, normalize=False, truncation="silent")

    def found(judged: Judgements) -> calibrating.Candidates:
        return calibrating.candidates_of(
            embedder,
            judged,
            reranker=ranker,
            candidates=asked.candidates,
            vector_cache=cache,
            show_progress=show_progress,
        )

    calibrator = calibrating.calibrate(
        found(data),
        method=asked.method,
        precision=asked.precision,
        recall=asked.recall,
        wrong=asked.wrong,
        confidence=asked.confidence,
        random_pairs=calibrating.random_pairs_of(embedder, data) if ranker is None else None,
    )
    calibrator.save(asked.out)
    if asked.test_split is None:
        return _told(calibrator, asked.out, None)
    other = Judgements.read(asked.data, split=asked.test_split, corpus=asked.corpus, qrels=asked.qrels)
    return _told(calibrator, asked.out, calibrating.check_calibrator(calibrator, found(other)))


def _cache(folder: Path) -> VectorCache:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"{str(folder)!r} cannot be made ({error.strerror or error}). Name one that you may write to: --cache-dir."
        ) from error
    return VectorCache(folder / "vectors.sqlite")


def _told(calibrator: ScoreCalibrator, file: Path, report: CalibrationReport | None) -> Answer:
    rows = []
    for each in calibrator.thresholds:
        target = "-" if each.target is None else f"{each.target:g}"
        if each.score is None:
            rows.append((each.purpose, target, "none", "-", "-", each.reason))
            continue
        interval = "-" if each.interval is None else f"{each.interval[0]:.3f} to {each.interval[1]:.3f}"
        rows.append(
            (each.purpose, target, f"{each.score:.4f}", f"{each.probability:.3f}", f"{each.reached:.3f}", interval)
        )
    lines = [f"calibrator of {calibrator.scorer.get('model', 'the model')}, {calibrator.method}: {file}"]
    if calibrator.weak:
        lines.append(f"weak: {calibrator.fitted['weakness']}")
    values: dict[str, Any] = {"file": str(file), **calibrator.as_dict()}
    if report is not None:
        values["check"] = asdict(report)
        lines.append(
            f"on the other questions: expected calibration error {report.error:.4f}, "
            f"resolution {report.resolution:.4f} of {report.uncertainty:.4f}"
        )
    return Answer(
        values=values, tables=[(("FOR", "TARGET", "SCORE", "PROBABILITY", "REACHED", "INTERVAL"), rows)], lines=lines
    )


def _made(request: Request) -> Answer:
    from bge_runtime.evaluation.questions import make_questions

    assert request.make_questions is not None
    file = request.out or QUESTIONS
    if file.is_dir():
        raise ConfigurationError(f"--out {str(file)!r} is a folder. Name the file of the questions.")
    made = make_questions(request.make_questions)
    made.write(file)
    lines = [
        f"{len(made.queries)} questions: {file}",
        *made.notes,
        f"Next: bge eval {file} --corpus {request.make_questions}",
    ]
    return Answer(values={"questions": len(made.queries), "file": str(file), "notes": list(made.notes)}, lines=lines)


def _mteb(request: Request, notify: Callable[[str], None]) -> Answer:
    from bge_runtime.evaluation.mteb import evaluate_tasks

    names = [name.strip() for name in str(request.mteb).split(",") if name.strip()]
    scores = evaluate_tasks(request.model, names, notify=notify)
    rows = [(name, f"{value:.4f}") for name, value in scores.items()]
    return Answer(values={"model": request.model, "scores": scores}, tables=[(("TASK", "MAIN SCORE"), rows)])


def _evaluated(result: Evaluation) -> Answer:
    costs = result.costs
    lines = [f"{result.label} on {result.data}: {result.queries} questions"]
    speed = "" if costs.texts_per_s is None else f", {shown_number(costs.texts_per_s)} documents per s"
    lines.append(f"{costs.texts_embedded} texts embedded in {costs.seconds:.1f} s{speed}")
    lines += [f"note: {note}" for note in result.notes]
    rows = [(name, f"{value:.4f}") for name, value in result.metrics.items()]
    return Answer(values=result.as_dict(), tables=[(("METRIC", "VALUE"), rows)], lines=lines)


def _compared(result: Comparison) -> Answer:
    rows = []
    for number, each in enumerate(result.entries, start=1):
        costs = each.evaluation.costs
        told = sum(ms or 0.0 for ms in (costs.query_ms, costs.search_ms, costs.rerank_ms))
        quality = f"{each.evaluation.metrics[result.metric]:.4f}"
        front = "front" if each.on_front else ""
        rows.append((str(number), each.label, quality, shown_number(told), str(costs.bytes_per_vector), front))
    numbers = {each.label: str(number) for number, each in enumerate(result.entries, start=1)}
    pairs = [
        (
            f"{numbers[pair.first]} to {numbers[pair.second]}",
            f"{pair.difference.mean:+.4f}",
            f"{pair.difference.low:+.4f} to {pair.difference.high:+.4f}",
            f"{pair.adjusted:.4f}",
            "yes" if pair.is_significant else "no",
        )
        for pair in result.pairs
    ]
    notes = dict.fromkeys(note for each in result.entries for note in each.evaluation.notes)
    return Answer(
        values=result.as_dict(),
        tables=[
            (("#", "WHAT", result.metric, "MS", "BYTES", ""), rows),
            (("PAIR", "DIFFERENCE", "95% INTERVAL", "P ADJUSTED", "SIGNIFICANT"), pairs),
        ],
        lines=[
            f"take: {result.recommendation.code}",
            result.recommendation.reason,
            *result.warnings,
            *(f"note: {note}" for note in notes),
        ],
    )
