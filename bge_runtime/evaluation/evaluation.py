"""How good a model, retriever or run is on judged questions."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import bge_runtime
from bge_runtime import ConfigurationError, InputError, Reranker, VectorCache
from bge_runtime.evaluation.judgements import Judgements
from bge_runtime.evaluation.judging import Run, judged
from bge_runtime.evaluation.metrics import METRICS, measure
from bge_runtime.evaluation.subjects import Costs, subject_of

__all__ = ["Evaluation", "evaluate", "evaluate_subject", "machine", "versions", "write_whole"]

PACKAGES = (
    "bge-integrations",
    "torch",
    "sentence-transformers",
    "transformers",
    "langchain-core",
    "llama-index-core",
    "ir-measures",
    "pytrec-eval-terrier",
)
DEPTH = 100


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a subject reached.

    Attributes:
        label: The subject's name.
        data: Name of the collection.
        data_digest: Of its questions, judgements and documents.
        metrics: Mean of each metric over the questions, 0 to 1.
        per_query: By metric, the value of each question.
        run: Ids and scores for each question, best first.
        best_scores: Score of the first result of each question, those without an answer included.
        queries: How many questions were judged.
        identity: Digest of what ranked; `None` where that is not known.
        costs: Seconds, milliseconds and bytes.
        notes: What is to be known about data and run.
        versions: Of the packages at work.
        machine: Processor, cores, system.
    """

    label: str
    data: str
    data_digest: str
    metrics: Mapping[str, float]
    per_query: Mapping[str, Mapping[str, float]]
    run: Run
    best_scores: Mapping[str, float]
    queries: int
    identity: str | None
    costs: Costs
    notes: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)

    @property
    def texts_embedded(self) -> int:
        """How many texts were embedded in this run; those of the cache are none of them."""
        return self.costs.texts_embedded

    @property
    def seconds(self) -> float:
        """How long the run took."""
        return self.costs.seconds

    def as_dict(self) -> dict[str, Any]:
        """Return everything but single questions, for JSON."""
        costs = asdict(self.costs)
        return {
            "label": self.label,
            "data": self.data,
            "data_digest": self.data_digest,
            "metrics": dict(self.metrics),
            "queries": self.queries,
            "identity": self.identity,
            **costs,
            "notes": list(self.notes),
            "versions": dict(self.versions),
            "machine": dict(self.machine),
        }

    def save(self, folder: str | os.PathLike[str], name: str = "run") -> Path:
        """Write `NAME.json` and `NAME.trec` into a folder, the latter as trec_eval reads it, with ids as single words.

        Returns:
            The JSON file.

        Raises:
            ConfigurationError: The disk or the folder refuses.
        """
        place = Path(folder)
        write_whole(place / f"{name}.trec", self.as_trec())
        values = {
            **self.as_dict(),
            "per_query": {key: dict(each) for key, each in self.per_query.items()},
            "best_scores": dict(self.best_scores),
            "run": {query: [list(each) for each in found] for query, found in self.run.items()},
        }
        write_whole(place / f"{name}.json", json.dumps(values, ensure_ascii=False, indent=1))
        return place / f"{name}.json"

    @classmethod
    def load(cls, file: str | os.PathLike[str]) -> Evaluation | None:
        """Return what `save` wrote; `None` where there is nothing, or nothing of this version."""
        path = Path(file)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            run = {
                query: [(str(name), float(score)) for name, score in found] for query, found in values["run"].items()
            }
            costs = Costs(**{each.name: values[each.name] for each in fields(Costs)})
            own = {each.name: values[each.name] for each in fields(cls) if each.name in values}
            return cls(**{**own, "run": run, "costs": costs, "notes": tuple(values["notes"])})
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def as_trec(self) -> str:
        """Return the run in TREC's format."""
        tag = "".join(letter if letter.isalnum() or letter in "-._" else "-" for letter in self.label)
        lines = []
        for query, found in self.run.items():
            for rank, (document, score) in enumerate(found, start=1):
                lines.append(f"{_word(query)} Q0 {_word(document)} {rank} {score!r} {tag}\n")
        return "".join(lines)


def evaluate(
    subject: Any,
    data: Judgements | str | os.PathLike[str],
    *,
    reranker: Reranker | str | None = None,
    depth: int = DEPTH,
    bits: str = "float32",
    top_k: int = 100,
    metrics: Iterable[str] = METRICS,
    id_key: str | None = None,
    vector_cache: VectorCache | str | os.PathLike[str] | None = None,
    show_progress: bool = False,
) -> Evaluation:
    """Measure how well something finds what answers questions.

    Models search exactly, over all documents of the collection; whatever they embed goes through the vector cache, so
    that a run that was cut off goes on where it stood. Retrievers, stores and engines answer from what they hold.

    Args:
        subject: A model's name, an `Embedder`, a LangChain retriever or vector store, a LlamaIndex index, retriever or
            query engine, or the file of a TREC run.
        data: Judgements, or what `Judgements.read` reads.
        reranker: Orders the best of a model anew.
        depth: How many the reranker gets for each question.
        bits: How a model's document vectors are held: `float32`, `int8` or `binary`.
        top_k: How many results of each question are looked at.
        metrics: Names of measures.
        id_key: Key of the metadata in which a framework's documents carry the ids of the judgements.
        vector_cache: Remembers vectors and reranker scores of models that are named: a `VectorCache`, or the path of
            its file.
        show_progress: Whether to show a progress bar on standard error.

    Raises:
        ConfigurationError: The subject cannot be evaluated, or an option has a wrong value.
        InputError: The data cannot be used, or the results have nothing to do with it.
        BGEError: The model cannot be loaded or run.
    """
    names = tuple(metrics)
    measure({}, {}, names)  # a wrong name is an error before anything is embedded
    for name, value in (("depth", depth), ("top_k", top_k)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigurationError(f"{name}={value!r} is not allowed. Pass a whole number of at least 1.")
    judgements = data if isinstance(data, Judgements) else Judgements.read(data)
    cache = vector_cache if isinstance(vector_cache, VectorCache | None) else VectorCache(vector_cache)
    chosen = subject_of(
        subject,
        reranker=reranker,
        depth=depth,
        bits=bits,
        id_key=id_key,
        vector_cache=cache,
        show_progress=show_progress,
    )
    return evaluate_subject(chosen, judgements, top_k=top_k, metrics=names)


def evaluate_subject(
    subject: Any, data: Judgements, *, top_k: int = 100, metrics: Iterable[str] = METRICS
) -> Evaluation:
    """Measure something that `subject_of` returned; see `evaluate`."""
    hits = subject.rank(data, top_k)
    for query, found in hits.items():
        if any(math.isnan(hit.score) for hit in found):
            raise InputError(f"{subject.label} gives {query!r} a score that is NaN, which orders nothing.")
    run, remarks = judged(hits, data, subject.label)
    grades = {query: data.relevant(query) for query in data.queries}
    per_query = measure(run, grades, metrics)
    most = max((len(found) for found in run.values()), default=0)
    if most < top_k and (not data.documents or most < len(data.documents)):
        remarks.append(f"at most {most} results for a question, so that measures beyond that say less")
    return Evaluation(
        label=subject.label,
        data=data.name,
        data_digest=data.digest,
        metrics={name: sum(values.values()) / len(values) for name, values in per_query.items()},
        per_query=per_query,
        run=run,
        best_scores={query: found[0].score for query, found in hits.items() if found},
        queries=len(data.queries),
        identity=subject.identity,
        costs=subject.costs,
        notes=(*data.notes, *remarks),
        versions=versions(),
        machine=machine(),
    )


def versions() -> dict[str, str]:
    """Return the versions of the packages that have a say in the figures."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Return processor, cores, device and system, without the host's name."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        models = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    device = bge_runtime.choose_device().device
    return {"processor": name, "cores": os.cpu_count(), "device": device, "system": platform.system()}


def _word(name: str) -> str:
    """Return an id as one word, which TREC's format wants."""
    return "_".join(name.split()) or "_"


def write_whole(file: Path, content: str | bytes) -> None:
    """Write a file whole, or leave the one that is there.

    Raises:
        ConfigurationError: The disk or the folder refuses.
    """
    made = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        made.write_bytes(content.encode() if isinstance(content, str) else content)
        made.replace(file)
    except OSError as error:
        raise ConfigurationError(
            f"{str(file)!r} cannot be written ({error.strerror or error}). Make room, or name another folder; what was "
            "computed is kept where a cache was given."
        ) from error
    finally:
        with suppress(OSError):
            made.unlink(missing_ok=True)
