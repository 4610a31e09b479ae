"""One run of a trainer of sentence-transformers: its arguments, its checkpoints, what it shows, and what stops it."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import datasets
import torch
from sentence_transformers.base.evaluation import BaseEvaluator
from tqdm import tqdm
from transformers import EarlyStoppingCallback, ProgressCallback, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging as transformers_logging

from bge_runtime import BackendError, ConfigurationError
from bge_runtime.training.reading import LINE
from bge_runtime.training.settings import TrainingSettings

__all__ = ["SCORE", "History", "Score", "arguments", "last_checkpoint", "quiet", "run"]

SCORE = "development"
STATE = "trainer_state.json"
# Libraries that tell of every save and batch.
CHATTY = ("sentence_transformers", "transformers", "accelerate")


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """What a run went through.

    Attributes:
        losses: Loss of each optimiser step, in order.
        scores: Development score by step; step 0 is the model as it came.
        best_step: Step whose checkpoint was taken; 0 where training made nothing better.
        seconds: How long it took, interruptions not counted.
    """

    losses: list[tuple[int, float]]
    scores: list[tuple[int, float]]
    best_step: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        return {
            "losses": self.losses,
            "scores": self.scores,
            "best_step": self.best_step,
            "seconds": round(self.seconds, 1),
        }


def arguments(kind: Any, settings: TrainingSettings, folder: Path, *, scored: bool, device: str) -> Any:
    """Return the arguments of a trainer.

    Args:
        kind: Class of the arguments.
        settings: What the caller chose.
        folder: Where checkpoints go.
        scored: Whether there is a development score.
        device: What the run computes on.
    """
    # Below 1 it is a share of all steps.
    each = min(1 / settings.evaluations, 1 - 1e-9)
    measured = {
        "eval_strategy": "steps",
        "eval_steps": each,
        "load_best_model_at_end": True,
        "metric_for_best_model": f"eval_{SCORE}",
        "greater_is_better": True,
        "save_total_limit": 2,
    }
    return kind(
        output_dir=str(folder),
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup,
        seed=settings.seed,
        data_seed=settings.seed,
        bf16=settings.precision == "bfloat16",
        use_cpu=device == "cpu",
        save_strategy="steps",
        save_steps=each,
        logging_steps=1,
        # A loss that is no number is shown as it is, and stops the run.
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=device.startswith("cuda"),
        **_checkpointing(kind, settings),
        **(measured if scored else {"save_total_limit": 1}),
    )


def _checkpointing(kind: Any, settings: TrainingSettings) -> dict[str, bool]:
    # Called gradient_checkpointing before transformers 5.24, which warns of that name.
    names = [name for name in ("activation_checkpointing", "gradient_checkpointing") if hasattr(kind, name)]
    return {names[0]: True} if settings.gradient_checkpointing else {}


def run(
    trainer: Any,
    settings: TrainingSettings,
    *,
    where: Sequence[str],
    resume: bool = True,
    show_progress: bool = False,
) -> History:
    """Train, from the last whole checkpoint where there is one.

    Args:
        trainer: A trainer of sentence-transformers, made with `arguments`.
        settings: The same settings.
        where: File and line of each example, by the number that batches carry.
        resume: Whether to go on from a checkpoint of the same folder.
        show_progress: Whether to show a bar with loss and score on standard error.

    Returns:
        Losses and scores; the trainer's model is the best one then.

    Raises:
        BackendError: A loss is not finite; the message names the lines of the batch, and the last checkpoint is there.
        ConfigurationError: The disk is full, or the folder refuses.
    """
    folder = Path(trainer.args.output_dir)
    checkpoint = last_checkpoint(folder) if resume else None
    for each in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(each)
    trainer.add_callback(_Bar(show_progress))
    if settings.patience is not None and trainer.evaluator is not None:
        trainer.add_callback(EarlyStoppingCallback(settings.patience))
    trainer.compute_loss = _watched(trainer.compute_loss, where)
    with quiet():
        try:
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        except OSError as error:
            remove_broken(folder)
            raise ConfigurationError(
                f"Training cannot write to {str(folder)!r} ({error.strerror or error}). Make room and start it again: "
                "it goes on from its last whole checkpoint."
            ) from error
        except RuntimeError as error:
            # What torch and safetensors raise for a disk that is full.
            if "No space left" not in str(error) and "file write failed" not in str(error):
                raise
            remove_broken(folder)
            raise ConfigurationError(
                f"Training cannot write to {str(folder)!r} ({error}). Make room and start it again: it goes on from "
                "its last whole checkpoint."
            ) from error
    return history(trainer.state)


def history(state: Any) -> History:
    """Return what a trainer's state says of its run."""
    rows = state.log_history
    best = state.best_global_step or 0
    return History(
        losses=[(row["step"], row["loss"]) for row in rows if "loss" in row],
        scores=[(row["step"], row[f"eval_{SCORE}"]) for row in rows if f"eval_{SCORE}" in row],
        best_step=int(best or state.global_step),
        seconds=sum(row.get("train_runtime", 0.0) for row in rows),
    )


class Score(BaseEvaluator):
    """The development score, as sentence-transformers asks for it."""

    def __init__(self, measure: Callable[[Any], float]) -> None:
        """Take what measures a model."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.primary_metric = SCORE
        self._measure = measure

    def __call__(
        self, model: Any, output_path: object = None, epoch: object = -1, steps: object = -1
    ) -> dict[str, float]:
        """Return the score of a model in evaluation mode, without gradients."""
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad():
                return {SCORE: self._measure(model)}
        finally:
            model.train(was_training)


def last_checkpoint(folder: Path) -> Path | None:
    """Return the last checkpoint that is whole, and remove those that are not; `None` without any."""
    remove_broken(folder)
    found = [(int(each.name.rsplit("-", 1)[1]), each) for each in _checkpoints(folder)]
    return max(found)[1] if found else None


def remove_broken(folder: Path) -> None:
    """Remove checkpoints that were being written when the process ended: the state is what is written last."""
    for each in _checkpoints(folder):
        try:
            json.loads((each / STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            shutil.rmtree(each, ignore_errors=True)


def _checkpoints(folder: Path) -> list[Path]:
    return [each for each in folder.glob("checkpoint-*") if each.name.rsplit("-", 1)[1].isdigit()]


def _watched(compute: Callable[..., Any], where: Sequence[str]) -> Callable[..., Any]:
    """Return a trainer's computation of the loss that refuses a number that is none."""

    @wraps(compute)
    def watched(model: Any, inputs: dict[str, Any], *rest: Any, **named: Any) -> Any:
        lines = inputs.pop(LINE, None)
        found = compute(model, inputs, *rest, **named)
        loss = found[0] if isinstance(found, tuple) else found
        value = float(loss.detach())
        if not math.isfinite(value):
            named_lines = [where[int(at)] for at in (lines.flatten().tolist() if lines is not None else ())]
            raise BackendError(
                f"The loss is {value}, which teaches nothing. The batch is of {', '.join(named_lines) or 'unknown'}. "
                "Look at those lines; a lower learning rate, or precision='float32', helps where they are in order. "
                "The last checkpoint is kept."
            )
        return found

    return watched


class _Bar(TrainerCallback):
    """A bar with the loss and the score, and no line for each step."""

    def __init__(self, shown: bool) -> None:
        self._shown = shown
        self._bar: Any = None
        self._told: dict[str, str] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._bar = tqdm(
            total=state.max_steps, initial=state.global_step, desc="training", unit="step", disable=not self._shown
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._bar.update(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float] | None = None, **_: Any) -> None:
        names = {"loss": "loss", f"eval_{SCORE}": "score"}
        self._told |= {names[key]: f"{value:.4f}" for key, value in (logs or {}).items() if key in names}
        if self._bar is not None:
            self._bar.set_postfix(self._told)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._bar.close()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the bars and lines of other libraries away: they tell of each file that is read or written."""
    before = {name: logging.getLogger(name).level for name in CHATTY}
    bars, own = transformers_logging.is_progress_bar_enabled(), datasets.are_progress_bars_disabled()
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if not own:
            datasets.enable_progress_bars()
        if bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
