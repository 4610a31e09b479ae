"""Pre-training an encoder on plain texts by RetroMAE, before it learns to retrieve."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoTokenizer, Trainer, TrainerCallback, TrainingArguments

from bge_runtime import ConfigurationError, Embedder, InputError, UnsupportedModelError, check_texts
from bge_runtime.evaluation.evaluation import versions, write_whole
from bge_runtime.evaluation.sources import read_folder
from bge_runtime.search.splitting import Splitter
from bge_runtime.training.embedder import model_to_train, save_model, set_dropout
from bge_runtime.training.folders import ROW, TOLD, Workplace
from bge_runtime.training.reading import LINE
from bge_runtime.training.retromae_model import ARCHITECTURES, IGNORED, Collator, RetroMAE
from bge_runtime.training.runs import arguments, run
from bge_runtime.training.settings import TrainingSettings

__all__ = ["Pretrained", "train_retromae"]

# Of the texts; more than so many tell nothing more.
HELD_OUT, MOST = 0.05, 1000
# Of fewer, not one would be held out.
LEAST = 20
IDS = "ids"
CORPUS = "corpus.jsonl"
# Each loss with the labels that it is the mean of.
LOSSES = {"encoder_loss": "labels", "decoder_loss": "decoder_labels"}
WAYS = 'Pass a list of texts, JSON lines with {"text": "..."}, or a folder of documents.'


@dataclass(frozen=True, kw_only=True, slots=True)
class Pretrained:
    """What a pre-training came to.

    Attributes:
        folder: The model.
        report: Settings, data, losses, measured mask rates, seconds, versions, as `training.json` has them.
    """

    folder: Path
    report: Mapping[str, Any]


def train_retromae(
    texts: Iterable[str] | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    model: Embedder | str,
    settings: TrainingSettings | None = None,
    encoder_rate: float = 0.3,
    decoder_rate: float = 0.5,
    show_progress: bool = False,
) -> Pretrained:
    """Pre-train the encoder of a model on texts without questions, and write its folder.

    The result is where `train_embedder` starts from, and is not for retrieval yet; it pools as the model did. A share
    of the texts is held out: the model is handed over where both losses fell on them, and is put aside as
    `OUT.rejected` where one did not. The decoder, and mostly the head, are new, so that the first fall is theirs and
    what was gained for retrieval shows after `train_embedder` only. A run that ends early goes on from its last
    checkpoint when it is started again with the same arguments; what it needs until then is in `OUT.run`.

    Args:
        texts: Texts, cut where the model's length ends; or a path: JSON lines with `text`, and maybe `title`, or a
            folder of documents, which are split as `bge search` splits them. What comes twice is read once.
        out: Folder that the model goes to; it must not be there yet.
        model: What is trained: a name or folder, or an `Embedder` with a length or a device of its own, which training
            uses and the result keeps.
        settings: Epochs, batch and the rest. Checkpoints are written as often as `evaluations` says; `negatives` and
            `patience` have no part in this. A batch larger than `mini_batch_size` is read in parts of that size, whose
            losses are averaged.
        encoder_rate: Share of the tokens that the encoder has to restore.
        decoder_rate: Share of the tokens that each row of the decoder does not see.
        show_progress: Whether to show progress on standard error.

    Raises:
        ConfigurationError: An argument has a wrong value, or a loss did not fall; the message has the figures.
        InputError: A text is empty, or there are too few.
        UnsupportedModelError: The model is no encoder of this kind.
        BackendError: A loss is not finite.
    """
    chosen = settings or TrainingSettings()
    given = model if isinstance(model, Embedder) else Embedder(model, truncation="silent")
    _check(given, chosen)
    embedder = Embedder(**{**given.options(), "truncation": "silent"})
    tokenizer = AutoTokenizer.from_pretrained(str(embedder.source.folder), local_files_only=True)
    collator = Collator(tokenizer, seed=chosen.seed, encoder_rate=encoder_rate, decoder_rate=decoder_rate)
    lines = _lines(texts, embedder)
    held = _held_out(len(lines), chosen.seed)
    told: dict[str, Any] = {
        "kind": "encoder",
        "model": embedder.model,
        "identity": embedder.identity,
        "data": {
            "name": Path(texts).name if isinstance(texts, str | os.PathLike) else "a list",
            "digest": _digest(lines),
            "texts": len(lines) - len(held),
        },
        "held_out": {"texts": len(held)},
        "settings": chosen.as_dict(),
        "encoder_rate": encoder_rate,
        "decoder_rate": decoder_rate,
        "max_length": embedder.max_length,
    }
    workplace = Workplace(out, told)
    trainer, rows = _trainer(lines, held, embedder, chosen, collator, workplace.checkpoints)
    before = _measure(trainer.model, rows, collator, trainer.args.per_device_train_batch_size)
    history = run(trainer, chosen, where=[each.where for each in lines], show_progress=show_progress)
    # Without the number format of the run, as before.
    trained = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    after = _measure(trained, rows, collator, trainer.args.per_device_train_batch_size)
    candidate = workplace.candidate(lambda folder: _save(trained, folder, embedder))
    logged = trainer.state.log_history
    parts = {name: [(row["step"], row[name]) for row in logged if name in row] for name in LOSSES}
    report = {
        **told,
        "history": {**history.as_dict(), **parts},
        "mask_rates": {"encoder": collator.measured_encoder_rate, "decoder": collator.measured_decoder_rate},
        "held_out": {**told["held_out"], "before": before, "after": after},
        "versions": versions(),
    }
    from bge_runtime.evaluation.charts import curves

    return _finish(workplace, candidate, report, curves(history.losses, [], "").png)


class Batches(TrainerCallback):
    """Makes batches of rows, masked for the epoch that the trainer is in, also when it goes on within one.

    A trainer tells its epoch to callbacks. What accelerate tells to data sets does not reach them after a resumption.
    """

    def __init__(self, collator: Collator) -> None:
        """Take what masks texts."""
        self._collator = collator
        self._epoch = 0

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take the epoch; the state has the share of it that was read, too."""
        self._epoch = int(state.epoch or 0)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Return what the model takes, and the lines of the texts."""
        lines = [row[LINE] for row in rows]
        batch = self._collator.collate([row[IDS] for row in rows], lines=lines, epoch=self._epoch)
        return {**batch, LINE: torch.tensor(lines)}


class RetroMAETrainer(Trainer):
    """The trainer of transformers, which logs the losses of encoder and decoder as well.

    Attributes:
        evaluator: What measures a development score between epochs: nothing.
    """

    evaluator = None

    def __init__(self, model: RetroMAE, args: TrainingArguments, rows: Any, batches: Batches) -> None:
        """Take the model, and rows with ids and line."""
        _save_once(model)
        super().__init__(model=model, args=args, train_dataset=rows, data_collator=batches, callbacks=[batches])
        self._parts: list[dict[str, float]] = []

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the sum of both losses, and remember each."""
        loss, found = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        self._parts.append({name: float(found[name].detach().mean()) for name in LOSSES})
        return (loss, found) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log both losses with their sum: means over the parts that a batch was read in."""
        if "loss" in logs and self._parts:
            logs = {**logs, **{name: sum(each[name] for each in self._parts) / len(self._parts) for name in LOSSES}}
            self._parts.clear()
        super().log(logs, start_time)


class _Line(NamedTuple):
    """A text, and where it comes from."""

    where: str
    text: str


def _check(embedder: Embedder, settings: TrainingSettings) -> None:
    spec = embedder.spec
    if spec.architecture not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"{embedder.model!r} is of the architecture {spec.architecture!r}, and RetroMAE trains "
            f"{', '.join(map(repr, ARCHITECTURES))}. Use an encoder of these."
        )
    if embedder.source.adapter is not None:
        raise ConfigurationError(
            f"adapter={embedder.source.adapter!r} stays beside the weights, which are what is trained here. Add it to "
            "them first, and name the folder that comes of it."
        )
    if settings.lora_rank is not None:
        raise ConfigurationError(
            f"lora_rank={settings.lora_rank!r} is not allowed here: pre-training changes all weights. Pass None."
        )
    if settings.batch_size > settings.mini_batch_size and settings.batch_size % settings.mini_batch_size:
        raise ConfigurationError(
            f"batch_size={settings.batch_size} is read in parts of mini_batch_size={settings.mini_batch_size} texts, "
            "which do not make it up. Pass a multiple, or a mini_batch_size that is as large."
        )


def _lines(texts: Iterable[str] | str | os.PathLike[str], embedder: Embedder) -> list[_Line]:
    """Return the texts, each once.

    Raises:
        ConfigurationError: There is nothing at the path.
        InputError: A text is empty, or there are too few.
    """
    if isinstance(texts, str | os.PathLike):
        place = Path(texts).expanduser()
        found = list(_of_path(place, embedder))
    else:
        found = [_Line(f"text {number}", text) for number, text in enumerate(check_texts(texts), start=1)]
    if empty := next((each for each in found if not each.text.strip()), None):
        raise InputError(f"{empty.where} is {empty.text!r}. Leave out texts without a word.")
    once = {each.text: each for each in reversed(found)}
    kept = list(reversed(once.values()))
    if len(kept) < LEAST:
        raise InputError(
            f"There are {len(kept)} different texts to learn from, of {LEAST} at least: one in {1 / HELD_OUT:.0f} is "
            f"held out to measure on, and thousands are needed to gain something. {WAYS}"
        )
    return kept


def _of_path(place: Path, embedder: Embedder) -> Iterator[_Line]:
    if (place / CORPUS).is_file():
        place = place / CORPUS
    if place.is_file() and place.suffix == ".jsonl":
        yield from _of_json_lines(place)
        return
    documents = list(read_folder(place))  # before the first is split, which needs the model
    splitter = Splitter(embedder)
    for name, _, sections in documents:
        yield from (_Line(name, chunk.text) for chunk in splitter.split(sections) if chunk.text.strip())


def _of_json_lines(place: Path) -> Iterator[_Line]:
    try:
        content = place.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{place.name} is not UTF-8 ({error}). Save it as UTF-8.") from error
    except OSError as error:
        raise ConfigurationError(f"{str(place)!r} cannot be read ({error.strerror or error}).") from error
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            where = f"{place.name} line {number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise InputError(f"{where} is not JSON ({error}): {line[:80]!r}. {WAYS}") from error
            text, title = (row.get("text"), row.get("title") or "") if isinstance(row, dict) else (None, "")
            if not isinstance(text, str) or not isinstance(title, str):
                raise InputError(f"{where} has no text: {line[:80]!r}. {WAYS}")
            # As MTEB joins them.
            yield _Line(where, f"{title} {text}".strip())


def _held_out(count: int, seed: int) -> frozenset[int]:
    return frozenset(random.Random(seed).sample(range(count), min(round(HELD_OUT * count), MOST)))


def _digest(lines: Sequence[_Line]) -> str:
    told = hashlib.sha256()
    for each in lines:
        told.update(json.dumps(each.text, ensure_ascii=False).encode())
    return told.hexdigest()[:32]


def _trainer(
    lines: Sequence[_Line],
    held: frozenset[int],
    embedder: Embedder,
    settings: TrainingSettings,
    collator: Collator,
    folder: Path,
) -> tuple[RetroMAETrainer, list[dict[str, Any]]]:
    """Return a trainer, and the rows that are held out."""
    sequences = embedder.tokenize([each.text for each in lines])
    rows = [{LINE: at, IDS: each.ids} for at, each in enumerate(sequences)]
    device = embedder.device
    embedder.close()  # the weights of the runtime; those that are trained are others
    model = RetroMAE.load(embedder.source.folder, seed=settings.seed)
    set_dropout(model, settings.dropout)
    if settings.gradient_checkpointing:
        # Called gradient_checkpointing_enable before transformers 5.24, which warns of that name.
        enable = getattr(model.encoder, "activation_checkpointing_enable", None)
        (enable or model.encoder.gradient_checkpointing_enable)()
    size = min(settings.batch_size, settings.mini_batch_size)
    # The trainer would ask the whole for checkpointing, of which the encoder alone knows.
    own = replace(settings, batch_size=size, gradient_checkpointing=False)
    args = arguments(TrainingArguments, own, folder, scored=False, device=device)
    args.gradient_accumulation_steps = settings.batch_size // size
    args.remove_unused_columns = False  # ids and line are the collator's
    trainer = RetroMAETrainer(model, args, [row for row in rows if row[LINE] not in held], Batches(collator))
    # Of alike lengths, little is padding.
    return trainer, sorted((rows[at] for at in held), key=lambda row: (len(row[IDS]), row[LINE]))


def _save_once(model: RetroMAE) -> None:
    """Let the model's state hold shared tensors under one name, since safetensors refuses them under two."""
    names: dict[int, str] = {}
    aliases: dict[str, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        first = names.setdefault(id(tensor), name)
        if first != name:
            aliases[name] = first

    def saved(_: object, state: dict[str, Any], prefix: str, __: object) -> None:
        for name in aliases:
            del state[prefix + name]

    def loaded(_: object, state: dict[str, Any], prefix: str, *__: object) -> None:
        for name, first in aliases.items():
            state[prefix + name] = state[prefix + first]

    model.register_state_dict_post_hook(saved)  # type: ignore[no-untyped-call]
    model.register_load_state_dict_pre_hook(loaded)  # type: ignore[no-untyped-call]


def _measure(model: Any, rows: Sequence[Mapping[str, Any]], collator: Collator, size: int) -> dict[str, float]:
    """Return the mean of each loss over the tokens of texts, which are masked the same each time."""
    batches = Batches(collator)
    sums, counts = (dict.fromkeys(LOSSES, 0.0) for _ in range(2))
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    with torch.no_grad():
        for start in range(0, len(rows), size):
            batch = {name: value.to(device) for name, value in batches(rows[start : start + size]).items()}
            del batch[LINE]
            found = model(**batch)
            for name, labels in LOSSES.items():
                count = int((batch[labels] != IGNORED).sum())
                sums[name] += float(found[name]) * count
                counts[name] += count
    model.train(was_training)
    return {name: sums[name] / max(counts[name], 1) for name in LOSSES}


def _save(model: Any, folder: Path, embedder: Embedder) -> None:
    """Write the encoder as sentence-transformers holds it, with the pooling that the model came with."""
    whole = model_to_train(embedder)
    whole[0].model = model.encoder.cpu()
    save_model(whole, folder, embedder)


def _finish(workplace: Workplace, candidate: Path, report: Mapping[str, Any], picture: bytes) -> Pretrained:
    """Write card and figures, move the model to its place or aside, and clean up.

    Raises:
        ConfigurationError: A loss did not fall.
    """
    before, after = (report["held_out"][name] for name in ("before", "after"))
    # What is no number has not fallen.
    reasons = [f"{name} {before[name]:.4f} to {after[name]:.4f}" for name in LOSSES if not after[name] < before[name]]
    told = {**report, "handed_over": not reasons}
    write_whole(candidate / TOLD, json.dumps(told, ensure_ascii=False, indent=1, default=str))
    write_whole(candidate / "README.md", _card(told, reasons))
    write_whole(candidate / "curves.png", picture)
    place = workplace.out.with_name(f"{workplace.out.name}.rejected") if reasons else workplace.out
    if place.is_dir():
        shutil.rmtree(place)
    candidate.replace(place)
    with suppress(OSError):
        shutil.rmtree(workplace.folder)
    if reasons:
        raise ConfigurationError(
            f"Pre-training is not handed over: on {report['held_out']['texts']} texts held out, a loss did not fall: "
            f"{'; '.join(reasons)}. The model is kept aside in {str(place)!r}. Pass more texts or epochs, or a lower "
            f"learning_rate than {report['settings']['learning_rate']!r}."
        )
    return Pretrained(folder=place, report=told)


def _card(told: Mapping[str, Any], reasons: Sequence[str]) -> str:
    """Return the model card: metadata that the hub and the runtime read, and the figures."""
    metadata = {
        "library_name": "sentence-transformers",
        "tags": ["bge-integrations", "retromae"],
        "base_model": [told["model"]],
    }
    held, data, rates = told["held_out"], told["data"], told["mask_rates"]
    rows = [f"| {name} | {held['before'][name]:.4f} | {held['after'][name]:.4f} |" for name in LOSSES]
    # JSON is YAML, and quotes whatever needs it.
    head = "".join(f"{name}: {json.dumps(value, ensure_ascii=False)}\n" for name, value in metadata.items())
    return (
        f"---\n{head}---\n\n# Encoder of {told['model']}, pre-trained\n\n"
        f"RetroMAE (arXiv:2205.12035) on {data['texts']} texts ({data['name']}, SHA-256 {data['digest']}). "
        f"Masked, as measured: encoder {rates['encoder']:.2f}, decoder {rates['decoder']:.2f}. Training for retrieval "
        "starts from it; it is not for retrieval yet.\n\n"
        f"| mean on {held['texts']} texts held out | before | after |\n|---|---|---|\n"
        + "\n".join(rows)
        + f"\n\nThe model is {'not handed over, since a loss did not fall' if reasons else 'handed over'}.\n\n"
        + "![sum of both losses by step](curves.png)\n\n"
        + f"Settings, both losses by step and versions are in {TOLD}; what the runtime needs to know is in {ROW}.\n"
    )
