"""Training an embedder on questions and their texts."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.modules import Transformer
from sentence_transformers.base.sampler import BatchSamplers
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from sentence_transformers.util import pairwise_cos_sim

from bge_runtime import ConfigurationError, Embedder, InputError, Reranker, VectorCache
from bge_runtime.evaluation.exact import search
from bge_runtime.evaluation.judgements import Judgements
from bge_runtime.evaluation.metrics import measure
from bge_runtime.training import adapters
from bge_runtime.training.examples import TrainingData
from bge_runtime.training.folders import Trained, Workplace, copy_tokenizer, write_row
from bge_runtime.training.gate import METRIC, TOLERANCE, check_tolerance, general_questions, measure_with, pass_gate
from bge_runtime.training.heads import (
    GATE_WEIGHTS,
    OUTPUTS,
    HeadsLoss,
    add_heads,
    load_checkpoint,
    read,
    take_heads,
    weighted,
)
from bge_runtime.training.holding_out import SHARE, hold_out
from bge_runtime.training.reading import LABEL, LINE, Columns, Texts, pad_id
from bge_runtime.training.runs import History, Score, arguments, quiet, run
from bge_runtime.training.settings import TrainingSettings

__all__ = ["Loss", "model_to_train", "pool_of", "rows_of", "save_model", "set_dropout", "train_embedder"]

Output = Literal["dense", "sparse", "multi_vector"]
Loss = Literal["contrastive", "kl", "margin_mse", "contrastive_kl"]
LOSSES = ("contrastive", "kl", "margin_mse", "contrastive_kl")
# Candidates of each development question that the score between epochs is taken over, beside its positives.
POOL = 10
POOLINGS = {"cls": "cls", "mean": "mean", "last": "lasttoken"}


def train_embedder(
    data: TrainingData,
    out: str | os.PathLike[str],
    *,
    model: Embedder | str,
    settings: TrainingSettings | None = None,
    loss: Loss = "contrastive",
    outputs: Sequence[Output] = ("dense",),
    temperature: float | None = None,
    teacher_temperature: float | None = None,
    matryoshka: Sequence[int] = (),
    share: float = SHARE,
    guard: Judgements | None = None,
    tolerance: float = TOLERANCE,
    force: bool = False,
    vector_cache: VectorCache | str | os.PathLike[str] | None = None,
    show_progress: bool = False,
) -> Trained:
    """Train an embedder, measure it before and after, and write its folder.

    A share of the questions is held out, twice: some whose documents no training example has, and some whose documents
    others have. They pick the checkpoint and decide, with the guard set, whether the model is handed over: see
    `pass_gate`. A run that ends early goes on from its last checkpoint when it is started again with the same
    arguments; what it needs until then is in `OUT.run`.

    Args:
        data: Examples; negatives come from `mine`, or are those of the data.
        out: Folder that the model goes to; it must not be there yet.
        model: What is trained: a name or folder, or an `Embedder` with an instruction, a length or a device of its
            own, which training uses and the result keeps.
        settings: Epochs, batch and the rest.
        loss: `contrastive` is InfoNCE over the negatives of the batch and the example's own; `kl` and `margin_mse`
            learn a teacher's scores, which the examples carry (`mine(teacher=...)`); `contrastive_kl` is the sum of
            two, as FlagEmbedding does it.
        outputs: Of a model with heads (bge-m3), those that learn, together: `dense`, `sparse`, `multi_vector`, each
            taught by the sum of all (arXiv:2402.03216). The others do not fit the new states, and the result has
            them no more. With more than `dense`, a whole batch is in memory at once, and development set and gate are
            scored by the weighted sum.
        temperature: By which scores are divided; `None` takes the model's own from the table.
        teacher_temperature: The same for the teacher's scores; `None` is 1 for a reranker's logits.
        matryoshka: Leading dimensions that are to work by themselves, such as (256, 128) (arXiv:2205.13147).
        share: How many questions each of the two development sets gets.
        guard: Questions of another kind that the model is to answer as before; `None` takes those of the package.
        tolerance: By how much the guard may fall.
        force: Hand the model over whatever the gate says.
        vector_cache: Remembers vectors of the model as it came, and of the trained one.
        show_progress: Whether to show progress on standard error.

    Raises:
        ConfigurationError: An argument has a wrong value, or does not fit the data.
        InputError: The data cannot be learned from.
        BackendError: A loss is not finite.
    """
    chosen = settings or TrainingSettings()
    embedder = model if isinstance(model, Embedder) else Embedder(model, truncation="silent")
    check_tolerance(tolerance)
    _check(embedder, data, chosen, loss, temperature, matryoshka)
    learning = _checked_outputs(embedder, outputs, loss, matryoshka)
    others = guard or general_questions()
    split = hold_out(data, share=share, seed=chosen.seed)
    scale = embedder.spec.temperature if temperature is None else temperature
    told = {
        "kind": "embedder",
        "model": embedder.model,
        "identity": embedder.identity,
        "data": {"name": data.name, "digest": data.digest, "examples": len(split.training.examples)},
        "held_out": {name: len(each.queries) for name, each in split.development.items()},
        "guard": {"name": others.name, "digest": others.digest},
        "settings": chosen.as_dict(),
        "loss": loss,
        "outputs": list(learning),
        "temperature": scale,
        "teacher_temperature": teacher_temperature,
        "matryoshka": list(matryoshka),
        "query_instruction": embedder.query_instruction,
        "max_length": embedder.max_length,
        "share": share,
    }
    workplace = Workplace(out, told)
    cache = workplace.cache(vector_cache)
    reference = Embedder(**{**embedder.options(), "vector_cache": cache, "truncation": "silent"})
    before = measure_with(reference, cache, reranker=_behind(reference, learning))
    pools = {name: pool_of(reference, each, show_progress=show_progress) for name, each in split.development.items()}
    trained, history = _trained(
        split.training,
        pools,
        embedder=reference,
        settings=chosen,
        loss=loss,
        outputs=learning,
        temperature=scale,
        teacher_temperature=teacher_temperature or 1.0,
        matryoshka=matryoshka,
        folder=workplace.checkpoints,
        show_progress=show_progress,
    )
    candidate = workplace.candidate(lambda folder: save_model(trained, folder, reference, learning))
    result = Embedder(str(candidate), vector_cache=cache, truncation="silent", device=embedder.options()["device"])
    gate = pass_gate(
        before,
        measure_with(result, cache, reranker=_behind(result, learning)),
        development=split.development,
        guard=others,
        tolerance=tolerance,
        force=force,
    )
    result.close()
    reference.close()
    from bge_runtime.evaluation.charts import curves

    picture = curves(history.losses, history.scores, f"development {METRIC}").png
    report = {**told, "history": history.as_dict()}
    return workplace.finish(candidate, gate, report, base=[embedder.model], picture=picture)


def _behind(embedder: Embedder, outputs: Sequence[str]) -> Reranker | None:
    """Return what orders an embedder's results by all outputs that learn; `None` where its vectors alone count."""
    if tuple(outputs) == ("dense",):
        return None
    weights = [GATE_WEIGHTS[name] if name in outputs else 0.0 for name in OUTPUTS]
    return Reranker(embedder, mode="hybrid", weights=weights)


def rows_of(data: TrainingData, settings: TrainingSettings, *, with_scores: bool = False) -> Iterator[dict[str, Any]]:
    """Yield a row of each question with each of its positives: the texts by column, and the example's number.

    Where an example has fewer negatives than asked for, positives of other examples take their place.

    Args:
        data: Examples.
        settings: How many negatives, and the seed.
        with_scores: Whether a label holds the teacher's score of each text.
    """
    others = list(dict.fromkeys(text for each in data.examples for text in each.positives))
    for at, example in enumerate(data.examples):
        negatives = list(example.negatives[: settings.negatives])
        scores = list(example.negative_scores[: settings.negatives])
        if len(negatives) < settings.negatives:
            if with_scores:
                raise InputError(
                    f"{example.where or 'An example'} has {len(negatives)} negatives with a teacher's score, where "
                    f"negatives={settings.negatives}. Mine again with a smaller relative_margin (what is there is "
                    "kept), or ask for fewer."
                )
            chance = random.Random(f"{settings.seed} {example.query}")
            known = {*example.positives, *negatives}
            # Of few texts some are taken twice: rows have the same columns.
            free = [text for text in others if text not in known] or [
                text for text in data.documents.values() if text not in known
            ]
            if not free:
                raise InputError(
                    f"{example.where or 'An example'} has {len(negatives)} negatives, and no other text is there to be "
                    f"one. Pass negatives={len(negatives)}, or more documents."
                )
            missing = settings.negatives - len(negatives)
            negatives += chance.sample(free, missing) if missing <= len(free) else chance.choices(free, k=missing)
        for number, positive in enumerate(example.positives):
            row: dict[str, Any] = {LINE: at, "query": example.query, "positive": positive}
            row |= {f"negative_{place}": text for place, text in enumerate(negatives, start=1)}
            if with_scores:
                row[LABEL] = [example.positive_scores[number], *scores]
            yield row


def pool_of(embedder: Embedder, data: Judgements, *, show_progress: bool) -> Judgements:
    """Return a development set with few documents: the positives, and what the embedder takes for them."""
    names = list(data.documents)
    vectors = embedder.encode_documents(data.documents.values(), show_progress=show_progress)
    rows, _ = search(embedder.encode_queries(data.queries.values()), vectors, POOL)
    kept = {names[row] for row in rows.flatten().tolist()} | {
        each for grades in data.grades.values() for each in grades
    }
    return Judgements(
        name=data.name,
        queries=data.queries,
        grades=data.grades,
        documents={name: text for name, text in data.documents.items() if name in kept},
    )


def model_to_train(embedder: Embedder) -> SentenceTransformer:
    """Return the model as sentence-transformers holds it, in float32, pooling as the runtime does."""
    folder, spec = embedder.source.folder, embedder.spec
    given = {"dtype": torch.float32, "use_safetensors": not spec.pickled_weights}
    if spec.pooling == "model":
        return SentenceTransformer(str(folder), device="cpu", local_files_only=True, model_kwargs=given)
    with quiet():
        body = Transformer(str(folder), model_kwargs={**given, "local_files_only": True})
    body.max_seq_length = embedder.max_length
    parts: list[Any] = [body, Pooling(body.get_embedding_dimension(), POOLINGS[str(spec.pooling)])]
    return SentenceTransformer(modules=[*parts, *([Normalize()] if embedder.normalize else [])], device="cpu")


def set_dropout(model: torch.nn.Module, share: float | None) -> None:
    """Drop this share of activations everywhere; `None` leaves the model's own."""
    for module in model.modules():
        if share is not None and isinstance(module, torch.nn.Dropout):
            module.p = share


class _Trainer(SentenceTransformerTrainer):
    """The trainer, without statistics of the data for a model card, which is another here."""

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Add none."""


def _check(
    embedder: Embedder,
    data: TrainingData,
    settings: TrainingSettings,
    loss: str,
    temperature: float | None,
    matryoshka: Sequence[int],
) -> None:
    if loss not in LOSSES:
        raise ConfigurationError(f"loss={loss!r} is not allowed. Use {', '.join(map(repr, LOSSES))}.")
    if temperature is not None and not (isinstance(temperature, int | float) and 0 < temperature <= 10):
        raise ConfigurationError(f"temperature={temperature!r} is not allowed. Pass more than 0, such as 0.02.")
    dimension = embedder.dimension
    if any(not isinstance(each, int) or not 0 < each < dimension for each in matryoshka):
        raise ConfigurationError(f"matryoshka={list(matryoshka)!r} is not allowed. Pass numbers below {dimension}.")
    if loss != "contrastive":
        if settings.negatives < 1:
            raise ConfigurationError(
                f"loss={loss!r} needs negatives: one text alone is always the best. Pass 1 or more."
            )
        missing = next((each for each in data.examples if not each.has_scores), None)
        if missing is not None:
            raise ConfigurationError(
                f"loss={loss!r} learns a teacher's scores, and {missing.where or 'an example'} has none. Mine with a "
                "teacher (bge mine --teacher MODEL), or use loss='contrastive'."
            )
    elif settings.batch_size == 1 and settings.negatives == 0:
        raise ConfigurationError(
            "batch_size=1 and negatives=0 leave each question with its positive alone, so that the loss is 0 and "
            "nothing is learned. Use a larger batch, or negatives."
        )
    if own := next((each for each in data.examples if each.prompt and each.prompt != embedder.query_instruction), None):
        raise ConfigurationError(
            f"{own.where or 'An example'} has prompt={own.prompt!r}, where queries get {embedder.query_instruction!r}. "
            "A model has one instruction here: pass Embedder(..., query_instruction=...), or take prompt out."
        )


def _checked_outputs(
    embedder: Embedder, outputs: Sequence[str], loss: str, matryoshka: Sequence[int]
) -> tuple[str, ...]:
    """Return the outputs that learn, in the order of `OUTPUTS`."""
    given = (outputs,) if isinstance(outputs, str) else tuple(outputs)
    known = [name for name in OUTPUTS if name in embedder.spec.outputs]
    if not given or any(name not in known for name in given):
        raise ConfigurationError(
            f"outputs={given!r} is not allowed. {embedder.model!r} has {', '.join(map(repr, known))}."
        )
    chosen = tuple(name for name in OUTPUTS if name in given)
    if chosen != ("dense",) and (loss != "contrastive" or matryoshka):
        raise ConfigurationError(
            f"loss={loss!r} and matryoshka={list(matryoshka)!r} are for dense vectors alone. With outputs={chosen!r} "
            "use loss='contrastive' and no matryoshka."
        )
    return chosen


def _trained(
    data: TrainingData,
    pools: Mapping[str, Judgements],
    *,
    embedder: Embedder,
    settings: TrainingSettings,
    loss: str,
    outputs: Sequence[str],
    temperature: float,
    teacher_temperature: float,
    matryoshka: Sequence[int],
    folder: Path,
    show_progress: bool,
) -> tuple[SentenceTransformer, History]:
    rows = list(rows_of(data, settings, with_scores=loss != "contrastive"))
    model = model_to_train(embedder)
    set_dropout(model, settings.dropout)
    if settings.lora_rank is not None:
        adapters.add(model, settings.lora_rank, settings.seed)
    with_heads = tuple(outputs) != ("dense",)
    if with_heads:
        add_heads(model, embedder.source.folder)
    texts = Texts(embedder, pad_id(model[0]))
    columns = [name for name in rows[0] if name not in (LINE, LABEL)]
    texts.add((row["query"] for row in rows), "query")
    texts.add((row[name] for row in rows for name in columns[1:]), "document")
    for pool in pools.values():
        texts.add(pool.queries.values(), "query")
        texts.add(pool.documents.values(), "document")
    device = embedder.device
    embedder.close()  # the weights of the runtime; those that are trained are others
    args = arguments(SentenceTransformerTrainingArguments, settings, folder, scored=bool(pools), device=device)
    # A text twice in a batch would be its own negative.
    args.batch_sampler = BatchSamplers.NO_DUPLICATES
    with quiet():
        trainer = _Trainer(
            model=model,
            args=args,
            train_dataset=Dataset.from_list(rows),
            loss=HeadsLoss(model, outputs, temperature)
            if with_heads
            else _loss(model, settings, loss, temperature, teacher_temperature, matryoshka),
            evaluator=Score(lambda trained: _score(trained, texts, pools, outputs)) if pools else None,
            data_collator=Columns(texts),  # type: ignore[arg-type]
        )
    if with_heads or settings.lora_rank is not None:
        load = load_checkpoint if with_heads else adapters.load_checkpoint
        trainer._load_from_checkpoint = partial(load, model)  # type: ignore[method-assign]
    where = [each.where or f"example {at}" for at, each in enumerate(data.examples, start=1)]
    history = run(trainer, settings, where=where, show_progress=show_progress)
    trained = trainer.model
    return (adapters.merged(trained) if settings.lora_rank is not None else trained), history


def _loss(
    model: SentenceTransformer,
    settings: TrainingSettings,
    name: str,
    temperature: float,
    teacher_temperature: float,
    matryoshka: Sequence[int],
) -> torch.nn.Module:
    parts: list[torch.nn.Module] = []
    if name.startswith("contrastive"):
        # With its negatives, each question brings so many texts.
        if settings.batch_size * (2 + settings.negatives) > settings.mini_batch_size:
            parts.append(
                losses.CachedMultipleNegativesRankingLoss(
                    model, scale=1 / temperature, mini_batch_size=settings.mini_batch_size
                )
            )
        else:  # gradients need no cache where all fits
            parts.append(losses.MultipleNegativesRankingLoss(model, scale=1 / temperature))
    if name.endswith("kl"):
        parts.append(
            losses.DistillKLDivLoss(
                model,
                similarity_fct=pairwise_cos_sim,
                student_temperature=temperature,
                teacher_temperature=teacher_temperature,
            )
        )
    if name == "margin_mse":
        parts.append(losses.MarginMSELoss(model, similarity_fct=pairwise_cos_sim))
    whole = parts[0] if len(parts) == 1 else Sum(model, parts)
    if not matryoshka:
        return whole
    dimension = int(model.get_embedding_dimension() or 0)
    return losses.MatryoshkaLoss(model, whole, [dimension, *sorted(matryoshka, reverse=True)])


class Sum(torch.nn.Module):
    """Several losses of the same batch, added."""

    def __init__(self, model: SentenceTransformer, parts: Sequence[torch.nn.Module]) -> None:
        """Take the losses, which have the model already."""
        super().__init__()
        self.model = model
        self.parts = torch.nn.ModuleList(parts)

    def forward(self, features: Any, labels: torch.Tensor) -> torch.Tensor:
        """Return the sum."""
        # Each loss writes into the features of a forward pass.
        values = [part([dict(each) for each in features], labels) for part in self.parts]
        return torch.stack(values).sum()


def _score(model: SentenceTransformer, texts: Texts, pools: Mapping[str, Judgements], outputs: Sequence[str]) -> float:
    """Return the mean of the development sets' scores, each question counting the same."""
    values: list[float] = []
    for pool in pools.values():
        names = list(pool.documents)
        table = _table(model, texts, list(pool.queries.values()), list(pool.documents.values()), outputs)
        best = np.argsort(-table, axis=1, kind="stable")[:, :10]
        found = {
            query: [(names[row], float(table[at, row])) for row in best[at]] for at, query in enumerate(pool.queries)
        }
        values += measure(found, pool.grades, [METRIC])[METRIC].values()
    return float(np.mean(values))


def _table(
    model: SentenceTransformer, texts: Texts, queries: Sequence[str], documents: Sequence[str], outputs: Sequence[str]
) -> np.ndarray[Any, Any]:
    """Return the score of each question with each document, computed in batches of alike lengths."""
    if tuple(outputs) == ("dense",):

        def unit(features: dict[str, torch.Tensor]) -> torch.Tensor:
            return torch.nn.functional.normalize(model(features)["sentence_embedding"].float(), dim=-1)

        own, others = (
            _in_batches(unit, model, texts, given, role)
            for given, role in ((queries, "query"), (documents, "document"))
        )
        table = torch.cat(own[1]) @ torch.cat(others[1]).T
    else:
        own, others = (
            _in_batches(partial(read, model), model, texts, given, role)
            for given, role in ((queries, "query"), (documents, "document"))
        )
        table = weighted(own[1], others[1], outputs)
    found = np.empty(table.shape, np.float32)
    found[np.ix_(own[0], others[0])] = table.cpu().numpy()
    return found


def _in_batches(
    compute: Callable[[dict[str, torch.Tensor]], Any],
    model: SentenceTransformer,
    texts: Texts,
    given: Sequence[str],
    role: str,
) -> tuple[list[int], list[Any]]:
    """Return the order in which texts were computed, shortest first, and what came of each batch."""
    order = sorted(range(len(given)), key=lambda at: texts.length(given[at], role))
    computed = []
    for start in range(0, len(order), 32):
        features = texts.features([given[at] for at in order[start : start + 32]], role)
        computed.append(compute({name: value.to(model.device) for name, value in features.items()}))
    return order, computed


def save_model(
    model: SentenceTransformer, folder: Path, embedder: Embedder, outputs: Sequence[str] = ("dense",)
) -> None:
    """Write a trained model's folder: weights, prompts and pooling, the embedder's tokenizer, and its row."""
    spec = embedder.spec
    if tuple(outputs) != ("dense",):
        take_heads(model, folder)
    head, tail = spec.query_format.split("{text}", 1)
    if not tail:  # sentence-transformers itself can only put words before a text
        head = head.replace("{instruction}", embedder.query_instruction) if embedder.query_instruction else ""
        model.prompts = {"query": head, "document": embedder.document_instruction}
    with quiet():
        model.save_pretrained(str(folder), create_model_card=False)
    copy_tokenizer(embedder.source.folder, folder)
    write_row(
        spec,
        folder,
        normalize=embedder.normalize,
        max_length=embedder.max_length,
        query_instruction=embedder.query_instruction,
        document_instruction=embedder.document_instruction,
        # The other heads were trained for states that the model no longer gives.
        outputs=list(outputs),
    )
