"""The commands that check data, mine negatives, train and mix. Heavy imports wait inside them."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import bge_runtime
from bge_runtime import DEFAULT_OFFLINE_MODEL, ConfigurationError
from bge_runtime.cli.output import AsJson, Corpus, Qrels, VectorsDir, on_terminal, print_json, print_table, say

if TYPE_CHECKING:
    from bge_runtime.training.examples import TrainingData
    from bge_runtime.training.folders import Trained

__all__ = ["data", "mine", "mix", "train"]

EXIT_KEPT = 1

data = typer.Typer(help="Look at training data before anything is computed.", no_args_is_help=True)
train = typer.Typer(help="Train an embedder, a reranker, or the query side, on your own data.", no_args_is_help=True)

Data = Annotated[
    Path, typer.Argument(help="FlagEmbedding's JSON lines, BEIR, LlamaIndex question JSON, or questions of `bge eval`.")
]
Out = Annotated[Path, typer.Option(help="Folder of the result; it must not be there yet.")]
Split = Annotated[str, typer.Option(help="Which judgements of BEIR data.")]
Model = Annotated[str, typer.Option(help="Model to train, by name or folder.")]
Guard = Annotated[Path | None, typer.Option(help="Questions of another kind, as for `bge eval`; general ones else.")]
Tolerance = Annotated[float, typer.Option(help="By how much the guard may fall (nDCG@10).")]
Share = Annotated[float, typer.Option(help="Share of the questions in each of the two development sets.")]
Force = Annotated[bool, typer.Option("--force", help="Hand the model over whatever the gate says.")]
Epochs = Annotated[float, typer.Option(help="How often each example is read.")]
MaxSteps = Annotated[int | None, typer.Option(help="Stop after so many optimiser steps.")]
BatchSize = Annotated[int, typer.Option(help="Questions in an optimiser step.")]
Rate = Annotated[float, typer.Option(help="Highest learning rate.")]
Negatives = Annotated[int, typer.Option(help="Negatives of each example.")]
MiniBatch = Annotated[int, typer.Option(help="Texts in a forward pass: it bounds the memory.")]
InBfloat16 = Annotated[bool, typer.Option("--bf16", help="Compute in bfloat16.")]
Checkpointing = Annotated[bool, typer.Option("--gradient-checkpointing", help="Less memory for more time.")]
Rank = Annotated[int | None, typer.Option(help="Train LoRA adapters of this rank.")]
Dropout = Annotated[float | None, typer.Option(help="Share of dropped activations; 0 is faster on a CPU.")]
Seed = Annotated[int, typer.Option(help="Of everything that is drawn at random.")]
Evaluations = Annotated[int, typer.Option(help="How often the development score is measured, and a checkpoint kept.")]
Patience = Annotated[int | None, typer.Option(help="Stop after so many measurements without a better one.")]


class EmbedderLoss(StrEnum):
    """What `bge train embedder` learns by."""

    CONTRASTIVE = "contrastive"
    KL = "kl"
    MARGIN_MSE = "margin_mse"
    CONTRASTIVE_KL = "contrastive_kl"


class RerankerLoss(StrEnum):
    """What `bge train reranker` learns by."""

    CROSS_ENTROPY = "cross_entropy"
    BCE = "bce"
    KL = "kl"
    MARGIN_MSE = "margin_mse"


@data.command("check", epilog="Example: bge data check train.jsonl --model BAAI/bge-small-en-v1.5")
def check(
    path: Data,
    model: Annotated[str | None, typer.Option(help="Model to train: lengths, memory and time are told for it.")] = None,
    test: Annotated[Path | None, typer.Option(help="Questions to be tested on later; leaks are told.")] = None,
    loss: EmbedderLoss = EmbedderLoss.CONTRASTIVE,
    split: Split = "train",
    corpus: Corpus = None,
    qrels: Qrels = None,
    batch_size: BatchSize = 32,
    negatives: Negatives = 7,
    as_json: AsJson = False,
) -> None:
    """Find what is wrong with training data, line by line; exit status 1 where something must be mended."""
    from bge_runtime.training import TrainingSettings, check_data

    report = check_data(
        path,
        model=model,
        settings=TrainingSettings(batch_size=batch_size, negatives=negatives),
        loss=loss.value,
        test=test,
        split=split,
        corpus=corpus,
        qrels=qrels,
    )
    if as_json:
        print_json(report.as_dict())
    else:
        say(f"{report.name}: {report.examples} examples")
        for each in report.findings:
            say(f"{'error' if each.is_error else 'warning'}: {each.where}: {each.message}")
        if report.guess is not None:
            say(f"guess: {report.guess}")
    raise typer.Exit(1 if report.errors else 0)


def mine(
    path: Data,
    out: Annotated[Path, typer.Option(help="JSON lines with negatives.")],
    model: Annotated[str, typer.Option(help="Embedder that searches.")] = DEFAULT_OFFLINE_MODEL,
    negatives: Negatives = 7,
    first: Annotated[int, typer.Option(help="First rank of the candidates.")] = 1,
    last: Annotated[int, typer.Option(help="Last rank.")] = 100,
    absolute_margin: Annotated[float | None, typer.Option(help="Least distance to the positive's cosine.")] = None,
    relative_margin: Annotated[
        float | None, typer.Option(help="The same as a share of it: 0.05 keeps what is below 95%.")
    ] = 0.05,
    at_random: Annotated[bool, typer.Option("--random", help="Any of the candidates, not the hardest.")] = False,
    reranker: Annotated[str | None, typer.Option(help="Takes out what it takes for answers.")] = None,
    teacher: Annotated[str | None, typer.Option(help="Scores all texts, for distillation.")] = None,
    split: Split = "train",
    corpus: Corpus = None,
    qrels: Qrels = None,
    seed: Seed = 0,
    cache_dir: VectorsDir = None,
    as_json: AsJson = False,
) -> None:
    """Find hard negatives for training data, and show twenty of them."""
    from bge_runtime.training import mine as mined_of

    found = mined_of(
        _read(path, split, corpus, qrels),
        bge_runtime.Embedder(model, vector_cache=_cache(cache_dir), truncation="silent"),
        negatives=negatives,
        ranks=(first, last),
        absolute_margin=absolute_margin,
        relative_margin=relative_margin,
        choose="random" if at_random else "top",
        reranker=None if reranker is None else bge_runtime.Reranker(reranker, normalize=False, truncation="silent"),
        teacher=None if teacher is None else bge_runtime.Reranker(teacher, normalize=False, truncation="silent"),
        seed=seed,
        show_progress=on_terminal(),
    )
    found.data.write(out)
    if as_json:
        print_json({**found.as_dict(), "file": str(out)})
        return
    for each in found.shown:
        say(f"question: {each['query']}")
        say(f"  positive {each['cosine_of_positive']:.3f}: {each['positive']:.100}")
        say(f"  negative {each['cosine_of_negative']:.3f}: {each['negative']:.100}")
    rows = [(what, str(count)) for what, count in found.dropped.items()]
    print_table(("CANDIDATES", str(found.candidates)), [(f"dropped: {what}", count) for what, count in rows])
    say(f"{len(found.data.examples)} examples, {found.short} with fewer than {negatives} negatives: {out}")


@train.command("embedder", epilog="Example: bge train embedder mined.jsonl --corpus corpus.jsonl --out tuned")
def train_embedder(
    path: Data,
    out: Out,
    model: Model = DEFAULT_OFFLINE_MODEL,
    loss: EmbedderLoss = EmbedderLoss.CONTRASTIVE,
    outputs: Annotated[
        str, typer.Option(help="Of bge-m3: which heads learn together, as dense,sparse,multi_vector.")
    ] = "dense",
    query_instruction: Annotated[str | None, typer.Option(help="Instead of the model's own; '' for none.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Longest text in tokens.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Instead of the model's own.")] = None,
    teacher_temperature: Annotated[float | None, typer.Option(help="Of the teacher's scores.")] = None,
    matryoshka: Annotated[str, typer.Option(help="Leading dimensions to work alone, as 256,128.")] = "",
    split: Split = "train",
    corpus: Corpus = None,
    qrels: Qrels = None,
    guard: Guard = None,
    tolerance: Tolerance = 0.01,
    share: Share = 0.1,
    force: Force = False,
    epochs: Epochs = 1.0,
    max_steps: MaxSteps = None,
    batch_size: BatchSize = 32,
    learning_rate: Rate = 2e-5,
    negatives: Negatives = 7,
    mini_batch_size: MiniBatch = 32,
    bf16: InBfloat16 = False,
    gradient_checkpointing: Checkpointing = False,
    lora_rank: Rank = None,
    dropout: Dropout = None,
    seed: Seed = 0,
    evaluations: Evaluations = 4,
    patience: Patience = None,
    cache_dir: VectorsDir = None,
    as_json: AsJson = False,
) -> None:
    """Train an embedder; started again after an end, it goes on from its last checkpoint."""
    from bge_runtime.training import TrainingSettings
    from bge_runtime.training import train_embedder as trained

    examples = _read(path, split, corpus, qrels)
    settings = TrainingSettings(
        epochs=epochs,
        max_steps=max_steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        negatives=negatives,
        mini_batch_size=mini_batch_size,
        precision="bfloat16" if bf16 else "float32",
        gradient_checkpointing=gradient_checkpointing,
        lora_rank=lora_rank,
        dropout=dropout,
        seed=seed,
        evaluations=evaluations,
        patience=patience,
    )
    embedder = bge_runtime.Embedder(
        model, query_instruction=query_instruction, max_length=max_length, truncation="silent"
    )
    _finish(
        lambda: trained(
            examples,
            out,
            model=embedder,
            settings=settings,
            loss=loss.value,
            outputs=tuple(each.strip() for each in outputs.split(",")),  # type: ignore[misc]  # checked there
            temperature=temperature,
            teacher_temperature=teacher_temperature,
            matryoshka=_numbers(matryoshka, "--matryoshka"),
            share=share,
            guard=_guard(guard),
            tolerance=tolerance,
            force=force,
            vector_cache=_cache(cache_dir),
            show_progress=on_terminal(),
        ),
        as_json,
    )


@train.command("reranker", epilog="Example: bge train reranker mined.jsonl --model BAAI/bge-reranker-base --out tuned")
def train_reranker(
    path: Data,
    out: Out,
    model: Model,
    embedder: Annotated[str, typer.Option(help="Embedder that it will stand behind.")] = DEFAULT_OFFLINE_MODEL,
    loss: RerankerLoss = RerankerLoss.CROSS_ENTROPY,
    teacher_temperature: Annotated[float, typer.Option(help="Of the teacher's scores.")] = 1.0,
    depth: Annotated[int, typer.Option(min=1, help="How many results it orders, for the gate.")] = 20,
    max_length: Annotated[int | None, typer.Option(help="Longest pair in tokens.")] = None,
    split: Split = "train",
    corpus: Corpus = None,
    qrels: Qrels = None,
    guard: Guard = None,
    tolerance: Tolerance = 0.01,
    share: Share = 0.1,
    force: Force = False,
    epochs: Epochs = 1.0,
    max_steps: MaxSteps = None,
    batch_size: BatchSize = 32,
    learning_rate: Rate = 2e-5,
    negatives: Negatives = 7,
    mini_batch_size: MiniBatch = 32,
    bf16: InBfloat16 = False,
    gradient_checkpointing: Checkpointing = False,
    lora_rank: Rank = None,
    dropout: Dropout = None,
    seed: Seed = 0,
    evaluations: Evaluations = 4,
    patience: Patience = None,
    cache_dir: VectorsDir = None,
    as_json: AsJson = False,
) -> None:
    """Train a reranker on what its embedder takes for answers; an embedder as --model gets a new head."""
    from bge_runtime.training import TrainingSettings
    from bge_runtime.training import train_reranker as trained

    examples = _read(path, split, corpus, qrels)
    settings = TrainingSettings(
        epochs=epochs,
        max_steps=max_steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        negatives=negatives,
        mini_batch_size=mini_batch_size,
        precision="bfloat16" if bf16 else "float32",
        gradient_checkpointing=gradient_checkpointing,
        lora_rank=lora_rank,
        dropout=dropout,
        seed=seed,
        evaluations=evaluations,
        patience=patience,
    )
    _finish(
        lambda: trained(
            examples,
            out,
            model=bge_runtime.Reranker(model, max_length=max_length, truncation="silent"),
            embedder=embedder,
            settings=settings,
            loss=loss.value,
            teacher_temperature=teacher_temperature,
            depth=depth,
            share=share,
            guard=_guard(guard),
            tolerance=tolerance,
            force=force,
            vector_cache=_cache(cache_dir),
            show_progress=on_terminal(),
        ),
        as_json,
    )


@train.command("query", epilog="Example: bge train query questions.jsonl --corpus corpus.jsonl --out mapped")
def train_query(
    path: Data,
    out: Out,
    model: Annotated[str, typer.Option(help="Embedder that the index was filled by.")] = DEFAULT_OFFLINE_MODEL,
    split: Split = "train",
    corpus: Corpus = None,
    qrels: Qrels = None,
    guard: Guard = None,
    tolerance: Annotated[
        float, typer.Option(help="By how much the guard, and unseen documents, may fall (nDCG@10).")
    ] = 0.01,
    share: Share = 0.1,
    force: Force = False,
    refit: Annotated[bool, typer.Option(help="Learn from the questions held out too, once the gate is open.")] = True,
    seed: Seed = 0,
    cache_dir: VectorsDir = None,
    as_json: AsJson = False,
) -> None:
    """Train a map of query vectors alone: no document is embedded again, and indexes stay."""
    from bge_runtime.training import train_query as trained

    examples = _read(path, split, corpus, qrels)
    _finish(
        lambda: trained(
            examples,
            out,
            model=model,
            share=share,
            guard=_guard(guard),
            tolerance=tolerance,
            force=force,
            refit=refit,
            seed=seed,
            vector_cache=_cache(cache_dir),
            show_progress=on_terminal(),
        ),
        as_json,
    )


@train.command("retromae", epilog="Example: bge train retromae texts.jsonl --out pretrained")
def train_retromae(
    path: Annotated[Path, typer.Argument(help="JSON lines with `text`, or a folder of documents.")],
    out: Out,
    model: Model = DEFAULT_OFFLINE_MODEL,
    encoder_rate: Annotated[float, typer.Option(help="Share of tokens that the encoder does not see.")] = 0.3,
    decoder_rate: Annotated[float, typer.Option(help="Share of tokens that each place of the decoder does not.")] = 0.5,
    epochs: Epochs = 1.0,
    max_steps: MaxSteps = None,
    batch_size: BatchSize = 32,
    learning_rate: Rate = 2e-5,
    mini_batch_size: MiniBatch = 32,
    bf16: InBfloat16 = False,
    dropout: Dropout = None,
    seed: Seed = 0,
    evaluations: Evaluations = 4,
    as_json: AsJson = False,
) -> None:
    """Pre-train an encoder on texts alone; the result is where `bge train embedder` starts from."""
    from bge_runtime.training import TrainingSettings
    from bge_runtime.training import train_retromae as trained

    done = trained(
        path,
        out,
        model=model,
        settings=TrainingSettings(
            epochs=epochs,
            max_steps=max_steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            mini_batch_size=mini_batch_size,
            precision="bfloat16" if bf16 else "float32",
            dropout=dropout,
            seed=seed,
            evaluations=evaluations,
        ),
        encoder_rate=encoder_rate,
        decoder_rate=decoder_rate,
        show_progress=on_terminal(),
    )
    if as_json:
        print_json({"folder": str(done.folder), **done.report})
        return
    rates, held = done.report["mask_rates"], done.report["held_out"]
    say(f"masked: encoder {rates['encoder']:.2f}, decoder {rates['decoder']:.2f}")
    for name in held["before"]:
        say(f"{name} on texts held out: {held['before'][name]:.4f} to {held['after'][name]:.4f}")
    say(f"model: {done.folder}")


def mix(
    models: Annotated[list[str], typer.Argument(help="Models of one architecture, by name or folder.")],
    out: Out,
    weights: Annotated[str | None, typer.Option(help="A weight for each, as 0.5,0.5; their sum is 1.")] = None,
    examples: Annotated[
        Path | None, typer.Option(help="Weights from each model's loss on these examples, as LM-Cocktail has it.")
    ] = None,
    training: Annotated[
        Path | None, typer.Option(help="Of BASE and TUNED: the weight that finds most on what this training held out.")
    ] = None,
    split: Split = "train",
    corpus: Corpus = None,
    qrels: Qrels = None,
    guard: Guard = None,
    tolerance: Tolerance = 0.01,
    share: Share = 0.1,
    force: Force = False,
    seed: Seed = 0,
    cache_dir: VectorsDir = None,
    as_json: AsJson = False,
) -> None:
    """Mix the weights of models: what one has learned, with what the other has not forgotten."""
    from bge_runtime import training as wing

    if sum(each is not None for each in (weights, examples, training)) != 1:
        raise ConfigurationError("Say where the weights come from: one of --weights, --examples and --training.")
    if training is not None:
        if len(models) != 2:
            raise ConfigurationError(f"--training chooses between two models, BASE and TUNED; these are {len(models)}.")
        found = _read(training, split, corpus, qrels)
        _finish(
            lambda: wing.choose_mix(
                models[0],
                models[1],
                out,
                data=found,
                share=share,
                seed=seed,
                guard=_guard(guard),
                tolerance=tolerance,
                force=force,
                vector_cache=_cache(cache_dir),
                show_progress=on_terminal(),
            ),
            as_json,
        )
        return
    if examples is not None:
        losses = wing.example_losses(models, _read(examples, split, corpus, qrels))
        shares = wing.weights_by_loss(losses)
    else:
        losses = None
        shares = list(_numbers(str(weights), "--weights", float))
    folder = wing.mix(models, out, weights=shares)
    if as_json:
        print_json({"folder": str(folder), "models": models, "weights": shares, "losses": losses})
        return
    print_table(("MODEL", "WEIGHT"), [(name, f"{each:.4f}") for name, each in zip(models, shares, strict=True)])
    say(f"mixed: {folder}")


def _read(path: Path, split: str, corpus: Path | None, qrels: Path | None) -> TrainingData:
    from bge_runtime.training import TrainingData

    return TrainingData.read(path, split=split, corpus=corpus, qrels=qrels)


def _guard(path: Path | None) -> Any:
    from bge_runtime.evaluation.judgements import Judgements

    return None if path is None else Judgements.read(path)


def _cache(folder: Path | None) -> bge_runtime.VectorCache:
    from bge_runtime.search.index import default_cache_folder

    place = (folder or default_cache_folder()) / "evaluation"
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"{str(place)!r} cannot be made ({error.strerror or error}). Name one that you may write to: --cache-dir."
        ) from error
    return bge_runtime.VectorCache(place / "vectors.sqlite")


def _numbers(given: str, option: str, kind: Callable[[str], Any] = int) -> tuple[Any, ...]:
    try:
        return tuple(kind(part) for part in given.split(",") if part.strip())
    except ValueError as error:
        raise ConfigurationError(f"{option} {given!r} is not a list of numbers. Write them with commas.") from error


def _finish(work: Callable[[], Trained], as_json: bool) -> None:
    """Run a training, say what came of it, and end with status 1 where the model is not handed over."""
    done = work()
    gate = done.gate
    if as_json:
        print_json({"folder": str(done.folder), **done.report})
    else:
        rows = [
            (
                f"{each.name} ({each.data})",
                str(each.difference.questions),
                f"{each.before:.4f}",
                f"{each.after:.4f}",
                f"{each.difference.mean:+.4f}",
                f"{each.difference.low:+.4f} to {each.difference.high:+.4f}",
            )
            for each in gate.measured
        ]
        print_table(("nDCG@10 ON", "QUESTIONS", "BEFORE", "AFTER", "DIFFERENCE", "95% INTERVAL"), rows)
        for reason in gate.reasons:
            say(f"{'all the same' if gate.is_open else 'not handed over'}: {reason}")
        say(f"{'model' if gate.is_open else 'kept aside'}: {done.folder}")
    if not gate.is_open:
        raise typer.Exit(EXIT_KEPT)
