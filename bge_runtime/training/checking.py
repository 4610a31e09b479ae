"""What is wrong or odd about training data, all of it at once, before hours are spent on it."""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bge_runtime import ConfigurationError, Embedder, InputError, loaded_models
from bge_runtime.evaluation.judgements import Judgements
from bge_runtime.evaluation.sources import read_documents
from bge_runtime.training.examples import Example, Problem, TrainingData, own_rows, read_examples
from bge_runtime.training.holding_out import hold_out
from bge_runtime.training.settings import TrainingSettings

__all__ = ["DataReport", "Finding", "Guess", "check_data"]

# As `train_embedder` has them, whose packages are not needed here.
LOSSES = ("contrastive", "kl", "margin_mse", "contrastive_kl")
# Lines of one kind of finding that are told each by itself, and named in one that counts.
SHOWN = 5
# Below, whatever is measured on a tenth of them is chance.
FEW = 100
TIMED = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that is wrong, or that one should know.

    Attributes:
        where: File and line, or what it is about.
        kind: What kind of thing, in a word that does not change.
        message: What is the matter, and what to do.
        is_error: Whether training refuses it, or learns nothing from it; else it goes on.
    """

    where: str
    kind: str
    message: str
    is_error: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Guess:
    """What training will take, roughly: half and twice as much are possible.

    Attributes:
        memory_mb: Weights, gradients, optimiser and activations, beside what the libraries take.
        minutes: All epochs, without the measuring before, between and after.
        device: What it is guessed for.
    """

    memory_mb: int
    minutes: float
    device: str

    def __str__(self) -> str:
        """Say it in a line."""
        return f"roughly {self.memory_mb:,} MB of memory and {self.minutes:,.1f} minutes on {self.device}"


@dataclass(frozen=True, kw_only=True, slots=True)
class DataReport:
    """What was found.

    Attributes:
        name: Of the data.
        examples: How many can be used.
        findings: Errors first, then in the order of the checks. Of one kind on many lines the first five are there,
            and one that counts the rest.
        guess: What training will take; `None` without a model.
    """

    name: str
    examples: int
    findings: tuple[Finding, ...]
    guess: Guess | None = None

    @property
    def errors(self) -> tuple[Finding, ...]:
        """What has to be mended."""
        return tuple(each for each in self.findings if each.is_error)

    def as_dict(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        return {
            "name": self.name,
            "examples": self.examples,
            "findings": [asdict(each) for each in self.findings],
            "guess": None if self.guess is None else {**asdict(self.guess), "is_rough": True},
        }


def check_data(
    path_or_data: str | os.PathLike[str] | TrainingData,
    *,
    model: Embedder | str | None = None,
    settings: TrainingSettings | None = None,
    loss: str = "contrastive",
    test: str | os.PathLike[str] | TrainingData | Judgements | None = None,
    split: str = "train",
    corpus: str | os.PathLike[str] | None = None,
    qrels: str | os.PathLike[str] | None = None,
) -> DataReport:
    """Look for everything that is wrong with training data, and do not stop at the first.

    Texts count as the same whatever their letter case and spaces.

    Args:
        path_or_data: What `TrainingData.read` takes, or what it has read.
        model: What is to be trained: tells which texts are too long, and what training will take.
        settings: With what settings.
        loss: By which loss; see `train_embedder`.
        test: What the model will be tested on: a file as `TrainingData.read` and `Judgements.read` take it (of BEIR's
            judgements those called `test`), or what they have read.
        split: Which of BEIR's judgements are trained on.
        corpus: Documents, for data that has none.
        qrels: TREC's judgements.

    Raises:
        ConfigurationError: A file is missing or of no known format, or an option has a wrong value.
        InputError: The test cannot be read.
    """
    if loss not in LOSSES:
        raise ConfigurationError(f"loss={loss!r} is not allowed. Use {', '.join(map(repr, LOSSES))}.")
    chosen = settings or TrainingSettings()
    found = _Findings()
    name, data = _read(path_or_data, found, split=split, corpus=corpus, qrels=qrels)
    _check_settings(found, data, name, chosen, loss)
    if data is None:
        return DataReport(name=name, examples=0, findings=found.all())
    _check_repetitions(found, data.examples)
    if loss != "contrastive":
        _check_scores(found, data.examples, chosen, loss)
    _check_amount(found, data, chosen)
    if test is not None:
        _check_leaks(found, data.examples, _read_test(test, corpus))
    guess = None
    if model is not None:
        embedder = model if isinstance(model, Embedder) else Embedder(model, truncation="silent")
        means = _check_lengths(found, embedder, data.examples, chosen)
        _check_prompts(found, embedder, data.examples)
        guess = _guess(embedder, data.examples, chosen, loss, means)
        if embedder is not model:
            embedder.close()
    return DataReport(name=name, examples=len(data.examples), findings=found.all(), guess=guess)


class _Findings:
    """Findings by kind, of each the first few and a count."""

    def __init__(self) -> None:
        self._shown: dict[tuple[str, str], list[Finding]] = {}
        self._counts = Counter[tuple[str, str]]()

    def add(self, kind: str, where: str, message: str, *, is_error: bool = False, group: str = "") -> None:
        """Take a finding; those of one kind, and group of it, are capped together."""
        key = (kind, group)
        self._counts[key] += 1
        shown = self._shown.setdefault(key, [])
        if len(shown) < SHOWN:
            shown.append(Finding(where=where, kind=kind, message=message, is_error=is_error))

    def all(self) -> tuple[Finding, ...]:
        """Return them, errors first."""
        return tuple(sorted(self._capped(), key=lambda each: not each.is_error))

    def _capped(self) -> Iterator[Finding]:
        for key, shown in self._shown.items():
            yield from shown
            if (more := self._counts[key] - len(shown)) > 0:
                what = f"have the same problem as the {len(shown)} before ({key[0]})"
                yield replace(shown[0], where=f"{more} more lines", message=what)


def _read(
    given: str | os.PathLike[str] | TrainingData,
    found: _Findings,
    *,
    split: str,
    corpus: str | os.PathLike[str] | None,
    qrels: str | os.PathLike[str] | None,
) -> tuple[str, TrainingData | None]:
    """Return the name, and what can be used; `None` where nothing can."""
    rows: Iterable[tuple[str, Any]] = ()
    documents: Mapping[str, str] = {}
    try:
        if not isinstance(given, TrainingData):
            place = Path(given).expanduser()
            name = place.stem
            # As `TrainingData.read` does, which stops at the first line that is wrong.
            is_lines = qrels is None and place.is_file() and place.suffix in (".jsonl", ".json")
            if rows := own_rows(place) if is_lines else []:
                documents = {} if corpus is None else read_documents(Path(corpus))
            else:
                given = TrainingData.read(place, split=split, corpus=corpus, qrels=qrels)
    except InputError as error:
        found.add("unreadable", place.name, str(error), is_error=True)
        return name, None
    if isinstance(given, TrainingData):
        name, rows, documents = given.name, _rows(given.examples), given.documents
        for told in given.notes:
            found.add("note", name, told)

    def report(problem: Problem) -> None:
        # What a message begins with tells which rule it is of: a thousand empty texts must not hide one broken line.
        rule = problem.message.partition("=")[0].partition("(")[0]
        found.add("unusable", problem.where, problem.message, is_error=True, group=rule)

    def note(problem: Problem) -> None:
        found.add("negative-is-positive", problem.where, problem.message)

    examples = tuple(read_examples(rows, report, note=note))
    return name, TrainingData(name=name, examples=examples, documents=documents) if examples else None


def _rows(examples: Iterable[Example]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield examples as the lines of a file, so that what was made by hand goes through the same checks."""
    for at, each in enumerate(examples, start=1):
        yield (
            each.where or f"example {at}",
            {
                "query": each.query,
                "pos": list(each.positives),
                "neg": list(each.negatives),
                "pos_scores": list(each.positive_scores),
                "neg_scores": list(each.negative_scores),
                "prompt": each.prompt,
                "type": each.kind,
            },
        )


def _check_settings(
    found: _Findings, data: TrainingData | None, name: str, settings: TrainingSettings, loss: str
) -> None:
    if loss != "contrastive":
        if settings.negatives < 1:
            found.add(
                "loss-is-zero",
                name,
                f"loss={loss!r} with negatives=0 compares each positive with nothing. Pass negatives=1 or more.",
                is_error=True,
            )
        return
    alone = "leaves each question with its positive alone, so that the loss is always 0 and nothing is learned."
    if settings.batch_size == 1 and settings.negatives == 0:
        message = f"batch_size=1 with negatives=0 {alone} Use a larger batch, or negatives."
        found.add("loss-is-zero", name, message, is_error=True)
    elif data is not None and len({text for each in data.examples for text in each.positives}) == 1:
        if not settings.negatives or not any(each.negatives for each in data.examples):
            message = f"One text is the positive of all questions, which {alone} Mine negatives in a corpus."
            found.add("loss-is-zero", name, message, is_error=True)


def _check_repetitions(found: _Findings, examples: Sequence[Example]) -> None:
    """Look for what stands in the data twice, and for what says the contrary of another line."""
    questions: dict[str, str] = {}
    pairs: dict[tuple[str, str], str] = {}
    for each in examples:
        query = _same(each.query)
        is_pair = False
        for text in each.positives:
            if before := pairs.get((query, _same(text))):
                is_pair = True
                message = f"has question and positive of {before} again, which count twice then: {text!r:.80}"
                found.add("pair-twice", each.where, message)
            pairs.setdefault((query, _same(text)), each.where)
        if query in questions and not is_pair:
            message = (
                f"asks what {questions[query]} asks, with other positives; write them in one line: {each.query!r:.80}"
            )
            found.add("question-twice", each.where, message)
        questions.setdefault(query, each.where)
        if more := len(each.negatives) - len(set(map(_same, each.negatives))):
            found.add("negative-twice", each.where, f"{more} of its negatives stand in it already")
    for each in examples:
        for text in each.negatives:
            if other := pairs.get((_same(each.query), _same(text))):
                message = f"has a negative that is a positive of the same question in {other}: {text!r:.80}"
                found.add("negative-is-positive-elsewhere", each.where, message)


def _check_scores(found: _Findings, examples: Sequence[Example], settings: TrainingSettings, loss: str) -> None:
    scored = [each for each in examples if each.has_scores]
    for each in examples:
        if not each.has_scores:
            message = (
                f"has no pos_scores and neg_scores, which loss={loss!r} learns. Mine with a teacher (bge mine "
                "--teacher MODEL), or use loss='contrastive'."
            )
            found.add("no-scores", each.where, message, is_error=True)
        elif len(each.negatives) < settings.negatives:
            message = (
                f"has {len(each.negatives)} negatives with a teacher's score, where negatives={settings.negatives}. "
                "Mine again with a smaller relative_margin (what is there is kept), or ask for fewer."
            )
            found.add("few-scored-negatives", each.where, message, is_error=True)
    if scored and all(len({*each.positive_scores, *each.negative_scores}) == 1 for each in scored):
        message = (
            "The teacher gives all texts of a question the same score, in every example. No order can be learned from "
            "that: score the texts with a reranker."
        )
        found.add("constant-scores", scored[0].where, message, is_error=True)


def _check_amount(found: _Findings, data: TrainingData, settings: TrainingSettings) -> None:
    try:
        hold_out(data, seed=settings.seed)
    except ConfigurationError as error:
        found.add("nothing-held-out", data.name, str(error), is_error=True)
    if len(data.examples) < FEW:
        message = (
            f"There are {len(data.examples)} examples. Below {FEW} hardly more than chance is learned and measured: "
            "write more, or let a language model write some (generate_pairs)."
        )
        found.add("few-examples", data.name, message)


def _read_test(test: str | os.PathLike[str] | TrainingData | Judgements, corpus: Any) -> TrainingData | Judgements:
    if isinstance(test, TrainingData | Judgements):
        return test
    place = Path(test).expanduser()
    if place.is_file() and place.suffix in (".jsonl", ".json") and own_rows(place):
        return TrainingData.read(place)
    judged = Judgements.read(place)
    # A corpus of the training data is not to take the place of one that the test brings.
    return judged if judged.documents or corpus is None else Judgements.read(place, corpus=corpus)


def _check_leaks(found: _Findings, examples: Sequence[Example], test: TrainingData | Judgements) -> None:
    asked, answers, quotes = _tested(test)
    if repeated := [each for each in examples if _same(each.query) in asked]:
        count = len({_same(each.query) for each in repeated})
        message = (
            f"{count} of the {len(asked)} questions of {test.name!r} are trained on. On them a test tells what was "
            "remembered, not what was learned: take them out of one of the two."
        )
        found.add("question-in-test", _first_of(each.where for each in repeated), message)
    places: dict[str, str] = {}
    for each in examples:
        for text in each.positives:
            places.setdefault(_same(text), each.where)
    # A quote is part of a document, or of a chunk of one.
    quoted = {quote for quote in quotes if any(quote in text for text in places)}
    if count := len(quoted | (answers & places.keys())):
        lines = (where for text, where in places.items() if text in answers or any(quote in text for quote in quoted))
        message = (
            f"{count} of the {len(answers | quotes)} texts that answer {test.name!r} are positives here, for "
            "other questions or the same. That is right where the documents in use are these: the test then tells how "
            "new questions do on documents that were trained on. How the model does on new documents it does not tell; "
            "do not take the one for the other, and measure the two apart."
        )
        found.add("document-in-test", _first_of(lines), message)


def _tested(test: TrainingData | Judgements) -> tuple[set[str], set[str], set[str]]:
    """Return questions, documents that answer them, and quotes that do."""
    if isinstance(test, TrainingData):
        texts = (text for each in test.examples for text in each.positives)
        return {_same(each.query) for each in test.examples}, set(map(_same, texts)), set()
    queries = {*test.queries.values(), *test.unanswerable.values()}
    names = {name for grades in test.grades.values() for name, grade in grades.items() if grade > 0}
    answers = {_same(test.documents[name]) for name in names if name in test.documents}
    places = [each for found in test.passages.values() for each in found]
    quotes = {_same(each.quote) for each in places if each.grade > 0 and each.quote}
    return set(map(_same, queries)), answers, quotes


def _check_lengths(
    found: _Findings, embedder: Embedder, examples: Sequence[Example], settings: TrainingSettings
) -> tuple[float, float]:
    """Tell which texts are cut; return the mean number of tokens that are read of queries and of documents."""
    queries: dict[str, str] = {}
    documents: dict[str, str] = {}
    for each in examples:
        queries.setdefault(each.query, each.where)
        for text in (*each.positives, *each.negatives[: settings.negatives]):
            documents.setdefault(text, each.where)
    means = []
    for what, texts, instruction in (
        ("queries", queries, embedder.query_instruction),
        ("documents", documents, embedder.document_instruction),
    ):
        # The instruction's own start and end are not read a second time.
        given, bare = embedder.count_tokens([instruction, ""])
        counts = [count + given - bare for count in embedder.count_tokens(list(texts))]
        most = embedder.max_length
        if long := sum(count > most for count in counts):
            longest = max(counts)
            message = (
                f"{long} of {len(counts)} {what} ({long / len(counts):.1%}) are longer than the {most} tokens that "
                f"{embedder.model!r} reads; the longest, in this line, has {longest}. The rest of them is not learned: "
                "cut them into chunks, as the index has them, or raise max_length where the model allows it."
            )
            found.add(f"long-{what}", list(texts.values())[counts.index(longest)], message)
        means.append(sum(min(count, most) for count in counts) / len(counts))
    return means[0], means[1]


def _check_prompts(found: _Findings, embedder: Embedder, examples: Sequence[Example]) -> None:
    for each in examples:
        if each.prompt and each.prompt != embedder.query_instruction:
            message = (
                f"has prompt={each.prompt!r}, where queries get {embedder.query_instruction!r}. A model has one "
                "instruction here: pass Embedder(..., query_instruction=...), or take prompt out."
            )
            found.add("prompt", each.where, message, is_error=True)


def _guess(
    embedder: Embedder, examples: Sequence[Example], settings: TrainingSettings, loss: str, means: tuple[float, float]
) -> Guess:
    positives = dict.fromkeys(text for each in examples for text in each.positives)
    # Positives of other examples take the place of negatives that are missing.
    beside = min(settings.negatives, max(len(each.negatives) for each in examples) + len(positives) - 1)
    rows = settings.epochs * sum(len(each.positives) for each in examples)
    if settings.max_steps is not None:
        rows = min(rows, settings.max_steps * settings.batch_size)
    is_cached = loss == "contrastive" and settings.batch_size * (2 + beside) > settings.mini_batch_size
    at_once = settings.mini_batch_size if is_cached else settings.batch_size * (2 + beside)
    mean = (means[0] + (1 + beside) * means[1]) / (2 + beside)
    chance = random.Random(settings.seed)
    queries = list(dict.fromkeys(each.query for each in examples))
    sample = [chance.sample(texts, min(TIMED, len(texts))) for texts in (queries, list(positives))]
    query_s, document_s = _seconds_per_text(embedder, sample[0], sample[1])
    # Backward computes twice what forward does: the gradient of the inputs, and that of the weights. Where gradients
    # are cached, and where activations are not kept, the forward pass is done once more.
    passes = 3 + is_cached + settings.gradient_checkpointing
    minutes = rows * (query_s + (1 + beside) * document_s) * passes / 60
    needed = _weights(embedder, settings) + at_once * _activations(embedder, settings, mean)
    return Guess(memory_mb=round(needed / 1e6), minutes=minutes, device=embedder.device)


def _seconds_per_text(embedder: Embedder, queries: Sequence[str], documents: Sequence[str]) -> tuple[float, float]:
    # From a cache they would cost nothing.
    timed = Embedder(**{**embedder.options(), "vector_cache": None, "truncation": "silent"})
    timed.encode_queries(queries[:1], show_progress=False)  # loads the weights
    start = time.perf_counter()
    timed.encode_queries(queries, show_progress=False)
    middle = time.perf_counter()
    timed.encode_documents(documents, show_progress=False)
    return (middle - start) / len(queries), (time.perf_counter() - middle) / len(documents)


def _weights(embedder: Embedder, settings: TrainingSettings) -> float:
    """Return bytes of weights, and of gradients and Adam's two moments of those that are trained, in float32."""
    folder = str(embedder.source.folder)
    # The table does not know every folder's; they have been loaded by now.
    parameters = next((each.parameters for each in loaded_models() if each.folder == folder), embedder.spec.parameters)
    if settings.lora_rank is None:
        return 16.0 * parameters
    hidden, layers, _, inner = _shape(embedder)
    # Two matrices beside each linear one: four of attention, two of the feed-forward part.
    adapters = settings.lora_rank * layers * (4 * 2 * hidden + 2 * (hidden + inner))
    return 4.0 * parameters + 16.0 * adapters


def _activations(embedder: Embedder, settings: TrainingSettings, tokens: float) -> float:
    """Return bytes that a text leaves in a forward pass for the backward pass."""
    hidden, layers, heads, inner = _shape(embedder)
    width = 2 if settings.precision == "bfloat16" else 4
    # Section 4.1 of arXiv:2205.05198: of each token and layer 5 vectors in attention (input, query, key, value,
    # output), 2 of layer norms, 1 and twice the inner width in the feed-forward part. Dropout adds its two masks, and
    # has the scores of attention kept three times over, where torch keeps none without it. Masks count in full width,
    # as torch has them on a CPU. Of all-MiniLM-L6-v2 this is 70 to 85% of what was measured there.
    layer = width * tokens * (8 * hidden + 2 * inner)
    if settings.dropout != 0:
        layer += width * tokens * (2 * hidden + 3 * heads * tokens)
    return layer + layers * width * tokens * hidden if settings.gradient_checkpointing else layers * layer


def _shape(embedder: Embedder) -> tuple[int, int, int, int]:
    """Return hidden size, layers, heads and inner size, as the model's configuration calls them; else what is usual."""
    config = json.loads((embedder.source.folder / "config.json").read_text(encoding="utf-8"))
    hidden = _number(config, ("hidden_size", "dim", "d_model"), embedder.dimension)
    return (
        hidden,
        _number(config, ("num_hidden_layers", "n_layers", "num_layers"), 12),
        _number(config, ("num_attention_heads", "n_heads", "num_heads"), max(hidden // 64, 1)),
        _number(config, ("intermediate_size", "hidden_dim", "d_ff"), 4 * hidden),
    )


def _number(config: Mapping[str, Any], names: Sequence[str], usual: int) -> int:
    return next((config[name] for name in names if isinstance(config.get(name), int)), usual)


def _same(text: str) -> str:
    return " ".join(text.split()).casefold()


def _first_of(places: Iterable[str]) -> str:
    """Return the first few places, and how many more there are."""
    names = list(dict.fromkeys(places))
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
