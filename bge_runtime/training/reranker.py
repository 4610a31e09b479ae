"""Training a reranker on questions, what answers them, and what its embedder takes for answers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.base.modules import Transformer
from sentence_transformers.cross_encoder.modules import LogitScore
from sentence_transformers.util import batch_to_device

from bge_runtime import (
    ConfigurationError,
    Embedder,
    ModelSpec,
    Reranker,
    UnsupportedModelError,
    VectorCache,
)
from bge_runtime.evaluation.exact import search
from bge_runtime.evaluation.judgements import Judgements
from bge_runtime.evaluation.metrics import measure
from bge_runtime.training import adapters
from bge_runtime.training.embedder import rows_of, set_dropout
from bge_runtime.training.examples import TrainingData
from bge_runtime.training.folders import Trained, Workplace, copy_tokenizer, write_row
from bge_runtime.training.gate import METRIC, TOLERANCE, check_tolerance, general_questions, measure_with, pass_gate
from bge_runtime.training.holding_out import SHARE, hold_out
from bge_runtime.training.mining import mine
from bge_runtime.training.reading import LABEL, LINE, Pairs, pad_id
from bge_runtime.training.runs import History, Score, arguments, quiet, run
from bge_runtime.training.settings import TrainingSettings

__all__ = ["GroupLoss", "train_reranker"]

Loss = Literal["cross_entropy", "bce", "kl", "margin_mse"]
LOSSES = ("cross_entropy", "bce", "kl", "margin_mse")
TAUGHT = ("kl", "margin_mse")
# Candidates of each development question that the score between epochs is taken over.
POOL = 10
ANSWER = "Yes"


def train_reranker(
    data: TrainingData,
    out: str | os.PathLike[str],
    *,
    model: Reranker | str,
    embedder: Embedder | str,
    settings: TrainingSettings | None = None,
    loss: Loss = "cross_entropy",
    teacher_temperature: float = 1.0,
    depth: int = 20,
    share: float = SHARE,
    guard: Judgements | None = None,
    tolerance: float = TOLERANCE,
    force: bool = False,
    vector_cache: VectorCache | str | os.PathLike[str] | None = None,
    show_progress: bool = False,
) -> Trained:
    """Train a reranker to stand behind an embedder, measure both together before and after, and write its folder.

    Examples without negatives get those that the embedder finds, since these are what the reranker will have to tell
    from answers. See `train_embedder` for held-out questions, the gate, and how a run goes on. Before, for the gate, is
    the embedder with the reranker as it came; with the embedder alone where the model was no reranker.

    Args:
        data: Examples.
        out: Folder that the model goes to; it must not be there yet.
        model: What is trained: a reranker, or an embedder, which gets a new head for the score.
        embedder: Whose results it will order.
        settings: Epochs, batch and the rest; `mini_batch_size` counts pairs.
        loss: `cross_entropy` over a question's positive and its negatives, as BGE's rerankers were trained; `bce` on
            each pair; `kl` and `margin_mse` learn a teacher's scores, which the examples carry.
        teacher_temperature: By which the teacher's scores are divided in `kl`.
        depth: How many of the embedder's results are ordered, for the gate.
        share: How many questions each of the two development sets gets.
        guard: Questions of another kind; `None` takes those of the package.
        tolerance: By how much the guard may fall.
        force: Hand the model over whatever the gate says.
        vector_cache: Remembers vectors and scores.
        show_progress: Whether to show progress on standard error.

    Raises:
        ConfigurationError: An argument has a wrong value, or does not fit the data.
        UnsupportedModelError: A layerwise reranker, whose heads nobody but its authors can train.
        BackendError: A loss is not finite.
    """
    chosen = settings or TrainingSettings()
    check_tolerance(tolerance)
    base = model if isinstance(model, Reranker) else Reranker(model, truncation="silent")
    first = embedder if isinstance(embedder, Embedder) else Embedder(embedder, truncation="silent")
    _check(base.spec, data, chosen, loss)
    others = guard or general_questions()
    told = {
        "kind": "reranker",
        "model": base.model,
        "identity": base.identity,
        "embedder": first.model,
        "embedder_identity": first.identity,
        "guard": {"name": others.name, "digest": others.digest},
        "settings": chosen.as_dict(),
        "loss": loss,
        "teacher_temperature": teacher_temperature,
        "depth": depth,
        "max_length": base.max_length,
        "share": share,
        "given": data.digest,
    }
    workplace = Workplace(out, told)
    cache = workplace.cache(vector_cache)
    found_by = Embedder(**{**first.options(), "vector_cache": cache, "truncation": "silent"})
    if loss not in TAUGHT and sum(bool(each.negatives) for each in data.examples) * 2 < len(data.examples):
        data = mine(data, found_by, negatives=chosen.negatives, seed=chosen.seed, show_progress=show_progress).data
    split = hold_out(data, share=share, seed=chosen.seed)
    told |= {
        "data": {"name": data.name, "digest": data.digest, "examples": len(split.training.examples)},
        "held_out": {name: len(each.queries) for name, each in split.development.items()},
    }
    start = _start(base, workplace, chosen.seed)
    before = measure_with(found_by, cache, reranker=None if start is not base else base, depth=depth)
    pools = {name: _candidates(found_by, each) for name, each in split.development.items()}
    trained, history = _trained(
        split.training,
        {name: (each, pools[name]) for name, each in split.development.items()},
        reranker=start,
        settings=chosen,
        loss=GroupLoss.of(loss, teacher_temperature),
        folder=workplace.checkpoints,
        show_progress=show_progress,
    )
    candidate = workplace.candidate(lambda folder: _save(trained, folder, start))
    result = Reranker(str(candidate), truncation="silent", device=base.options()["device"], normalize=False)
    gate = pass_gate(
        before,
        measure_with(found_by, cache, reranker=result, depth=depth),
        development=split.development,
        guard=others,
        tolerance=tolerance,
        force=force,
    )
    for each in (result, start, found_by):
        each.close()
    from bge_runtime.evaluation.charts import curves

    picture = curves(history.losses, history.scores, f"development {METRIC}").png
    return workplace.finish(candidate, gate, {**told, "history": history.as_dict()}, base=[base.model], picture=picture)


class GroupLoss(torch.nn.Module):
    """Loss of a question's texts together: the positive first, then its negatives.

    Attributes:
        model: The cross-encoder, which the trainer puts here.
    """

    def __init__(self, model: CrossEncoder, name: str, teacher_temperature: float = 1.0) -> None:
        """Take the model and which loss."""
        super().__init__()
        self.model = model
        self._name = name
        self._teacher_temperature = teacher_temperature

    @classmethod
    def of(cls, name: str, teacher_temperature: float) -> Any:
        """Return what makes the loss of a model."""
        return lambda model: cls(model, name, teacher_temperature)

    def forward(
        self, columns: Sequence[Sequence[str]], labels: torch.Tensor | None, prompt: object = None, task: object = None
    ) -> torch.Tensor:
        """Return the mean loss of questions, in the first column, with the texts of the further ones."""
        queries, texts = columns[0], columns[1:]
        pairs = [(query, column[at]) for at, query in enumerate(queries) for column in texts]
        features = batch_to_device(self.model.preprocess(pairs), self.model.device)
        logits = self.model(features)["scores"].float().reshape(len(queries), len(texts))
        if self._name == "cross_entropy":
            return torch.nn.functional.cross_entropy(
                logits, torch.zeros(len(queries), dtype=torch.int64).to(logits.device)
            )
        if self._name == "bce":
            wanted = torch.zeros_like(logits)
            wanted[:, 0] = 1
            return torch.nn.functional.binary_cross_entropy_with_logits(logits, wanted)
        assert labels is not None
        teacher = labels.to(logits.device)
        if self._name == "margin_mse":
            return torch.nn.functional.mse_loss(logits[:, :1] - logits[:, 1:], teacher[:, :1] - teacher[:, 1:])
        return torch.nn.functional.kl_div(
            torch.log_softmax(logits, dim=1),
            torch.softmax(teacher / self._teacher_temperature, dim=1),
            reduction="batchmean",
        )


class _Groups:
    """Makes a batch of rows: columns of texts, labels, and the lines that they come from."""

    def __init__(self) -> None:
        self.valid_label_columns = [LABEL]

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = {LINE: torch.tensor([row[LINE] for row in rows])}
        if LABEL in rows[0]:
            batch[LABEL] = torch.tensor([row[LABEL] for row in rows], dtype=torch.float32)
        return batch | {name: [row[name] for row in rows] for name in rows[0] if name not in (LINE, LABEL)}


class _Trainer(CrossEncoderTrainer):
    """The trainer, without statistics of the data for a model card, which is another here."""

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Add none."""


def _check(spec: ModelSpec, data: TrainingData, settings: TrainingSettings, loss: str) -> None:
    if loss not in LOSSES:
        raise ConfigurationError(f"loss={loss!r} is not allowed. Use {', '.join(map(repr, LOSSES))}.")
    if spec.score == "layerwise":
        raise UnsupportedModelError(
            f"{spec.id!r} has a score head behind each layer, which is not trained here. Train bge-reranker-v2-gemma, "
            "or an encoder."
        )
    if settings.negatives < 1 and loss != "bce":
        raise ConfigurationError(
            f"negatives={settings.negatives} leaves each question with its positive alone, so that loss={loss!r} is 0 "
            "and nothing is learned. Pass 1 or more."
        )
    missing = next((each for each in data.examples if not each.has_scores), None)
    if loss in TAUGHT and missing is not None:
        raise ConfigurationError(
            f"loss={loss!r} learns a teacher's scores, and {missing.where or 'an example'} has none. Mine with a "
            "teacher (bge mine --teacher MODEL), or use loss='cross_entropy'."
        )


def _start(base: Reranker, workplace: Workplace, seed: int) -> Reranker:
    """Return the reranker to train; an embedder's folder gets a head first, the same for the same seed."""
    if base.method == "cross_encoder":
        return base
    folder = workplace.folder / "start"
    torch.manual_seed(seed)
    with quiet():
        model = CrossEncoder(
            str(base.source.folder),
            device="cpu",
            num_labels=1,
            max_length=base.max_length,
            local_files_only=True,
            activation_fn=torch.nn.Identity(),
            model_kwargs={"dtype": torch.float32},
        )
        model.save_pretrained(str(folder), create_model_card=False)
    copy_tokenizer(base.source.folder, folder)
    spec = base.spec
    write_row(
        spec,
        folder,
        kind="reranker",
        score="logit",
        outputs=("score",),
        dimension=None,
        pooling=None,
        query_instruction="",
        document_instruction="",
        query_format="{instruction}{text}",
        tasks={},
    )
    return Reranker(str(folder), truncation="silent", device=base.options()["device"], max_length=base.max_length)


def _candidates(embedder: Embedder, data: Judgements) -> dict[str, list[str]]:
    """Return the ids of the best documents of each question."""
    names = list(data.documents)
    vectors = embedder.encode_documents(data.documents.values())
    rows, _ = search(embedder.encode_queries(data.queries.values()), vectors, POOL)
    return {query: [names[row] for row in rows[at]] for at, query in enumerate(data.queries)}


def _trained(
    data: TrainingData,
    pools: Mapping[str, tuple[Judgements, Mapping[str, Sequence[str]]]],
    *,
    reranker: Reranker,
    settings: TrainingSettings,
    loss: Any,
    folder: Path,
    show_progress: bool,
) -> tuple[CrossEncoder, History]:
    rows = list(rows_of(data, settings, with_scores=bool(data.examples[0].has_scores)))
    model = _model(reranker)
    set_dropout(model, settings.dropout)
    if settings.lora_rank is not None:
        adapters.add(model, settings.lora_rank, settings.seed)
    columns = [name for name in rows[0] if name not in (LINE, LABEL, "query")]
    pad_left = reranker.spec.score == "yes_logit"
    pairs = Pairs(reranker, pad_id(model), pad_left=pad_left)
    pairs.add((row["query"], row[name]) for row in rows for name in columns)
    for judged, found in pools.values():
        pairs.add((judged.queries[query], judged.documents[each]) for query, names in found.items() for each in names)
    device = reranker.device
    reranker.close()  # the weights of the runtime; those that are trained are others
    # The losses ask the model itself for tokens.
    model.preprocess = pairs  # type: ignore[method-assign, assignment]
    args = arguments(CrossEncoderTrainingArguments, settings, folder, scored=bool(pools), device=device)
    # A group's texts go through the model together; groups are independent, so that their gradients add up.
    groups = max(min(settings.mini_batch_size // len(columns), settings.batch_size), 1)
    args.per_device_train_batch_size = groups
    args.gradient_accumulation_steps = max(settings.batch_size // groups, 1)
    with quiet():
        trainer = _Trainer(
            model=model,
            args=args,
            train_dataset=Dataset.from_list(rows),
            loss=loss,
            evaluator=Score(lambda trained: _score(trained, pools)) if pools else None,
            data_collator=_Groups(),  # type: ignore[arg-type]
        )
    trainer.model_accepts_loss_kwargs = False  # else the gradients of an accumulated step were summed, not averaged
    if settings.lora_rank is not None:
        trainer._load_from_checkpoint = partial(adapters.load_checkpoint, model)  # type: ignore[method-assign]
    where = [each.where or f"example {at}" for at, each in enumerate(data.examples, start=1)]
    history = run(trainer, settings, where=where, show_progress=show_progress)
    trained = trainer.model
    return (adapters.merged(trained) if settings.lora_rank is not None else trained), history


def _model(reranker: Reranker) -> CrossEncoder:
    """Return the model as sentence-transformers holds it, in float32, scoring as the runtime does."""
    spec, folder = reranker.spec, str(reranker.source.folder)
    given: dict[str, Any] = {"dtype": torch.float32, "use_safetensors": not spec.pickled_weights}
    with quiet():
        if spec.score == "logit":
            whole: CrossEncoder = CrossEncoder(
                folder,
                device="cpu",
                num_labels=1,
                max_length=reranker.max_length,
                local_files_only=True,
                activation_fn=torch.nn.Identity(),
                model_kwargs=given,
            )
            return whole
        body = Transformer(folder, transformer_task="text-generation", model_kwargs={**given, "local_files_only": True})
        answer = body.tokenizer.encode(ANSWER, add_special_tokens=False)[0]
        built: CrossEncoder = CrossEncoder(
            modules=[body, LogitScore(true_token_id=answer)], device="cpu", activation_fn=torch.nn.Identity()
        )
        return built


def _score(model: CrossEncoder, pools: Mapping[str, tuple[Judgements, Mapping[str, Sequence[str]]]]) -> float:
    """Return the mean over all development questions, each ordered from what the embedder found."""
    values: list[float] = []
    for judged, found in pools.values():
        asked = [(query, name) for query, names in found.items() for name in names]
        order = sorted(range(len(asked)), key=lambda at: len(judged.documents[asked[at][1]]))
        scores: dict[str, list[tuple[str, float]]] = {query: [] for query in found}
        for start in range(0, len(order), 32):
            part = [asked[at] for at in order[start : start + 32]]
            texts = [(judged.queries[query], judged.documents[name]) for query, name in part]
            features = batch_to_device(model.preprocess(texts), model.device)
            logits = model(features)["scores"].float().reshape(-1).tolist()
            for (query, name), logit in zip(part, logits, strict=True):
                scores[query].append((name, logit))
        values += measure(scores, judged.grades, [METRIC])[METRIC].values()
    return float(np.mean(values))


def _save(model: CrossEncoder, folder: Path, reranker: Reranker) -> None:
    # The method again, where it was replaced for training.
    model.__dict__.pop("preprocess", None)
    with quiet():
        model.save_pretrained(str(folder), create_model_card=False)
    copy_tokenizer(reranker.source.folder, folder)
    write_row(reranker.spec, folder, max_length=reranker.max_length)
