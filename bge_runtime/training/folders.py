"""Where a training works, and the folder that it hands over."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bge_runtime import ConfigurationError, ModelSpec, VectorCache
from bge_runtime.evaluation.evaluation import versions, write_whole
from bge_runtime.training.gate import METRIC, Gate

__all__ = ["ROW", "Trained", "Workplace", "copy_model", "copy_tokenizer", "write_row"]

ROW = "bge_model.json"
TOLD = "training.json"
RUN = "run.json"
MADE = ("onnx", "openvino", "checkpoint-", "runs", ".")
OF_ITS_TRAINING = ("README.md", TOLD, "curves.png", "trainer_state.json", "training_args.bin")
# What a tokenizer is read from; it is copied, since libraries write it anew in their own way.
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """What a training came to.

    Attributes:
        folder: The model: in its place where the gate is open, else aside, as `NAME.rejected`, in the place of an
            earlier one.
        gate: The decision, and the figures it was taken by.
        report: Settings, data, losses, scores, seconds, versions, as `training.json` has them.
    """

    folder: Path
    gate: Gate
    report: Mapping[str, Any]


class Workplace:
    """The place of a run until it is finished: checkpoints, vectors, and the folder that is being written."""

    def __init__(self, out: str | os.PathLike[str], run: Mapping[str, Any]) -> None:
        """Take the place of the output, and what makes two runs the same.

        Raises:
            ConfigurationError: There are checkpoints of another run already, or nothing can be written.
        """
        self.out = Path(out).expanduser()
        self.folder = self.out.with_name(f"{self.out.name}.run")
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise ConfigurationError(f"out={str(self.out)!r} is there already. Name another folder, or take it away.")
        told = json.dumps(dict(run), sort_keys=True, indent=1, default=str)
        file = self.folder / RUN
        is_begun = next(self.checkpoints.glob("checkpoint-*"), None) is not None
        if is_begun and file.is_file() and file.read_text(encoding="utf-8") != told:
            raise ConfigurationError(
                f"{str(self.folder)!r} holds a run of other data or settings that is not finished. Start that one "
                "again to go on, take the folder away, or name another output."
            )
        write_whole(file, told)

    @property
    def checkpoints(self) -> Path:
        """Folder of the trainer."""
        return self.folder / "checkpoints"

    def cache(self, given: VectorCache | str | os.PathLike[str] | None) -> VectorCache:
        """Return the caller's cache, or one for the length of the run."""
        if isinstance(given, VectorCache):
            return given
        return VectorCache(self.folder / "vectors.sqlite" if given is None else given)

    def candidate(self, save: Callable[[Path], None]) -> Path:
        """Return the folder of the model that is to be judged, whole or not there."""
        place = self.folder / "candidate"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        try:
            save(place)
        except OSError as error:
            shutil.rmtree(place, ignore_errors=True)
            raise ConfigurationError(
                f"{str(place)!r} cannot be written ({error.strerror or error}). Make room and start again: training "
                "goes on from its last whole checkpoint."
            ) from error
        return place

    def finish(
        self, candidate: Path, gate: Gate, report: Mapping[str, Any], *, base: Sequence[str], picture: bytes | None
    ) -> Trained:
        """Write card and figures, move the model to its place or aside, and clean up.

        Args:
            candidate: Folder of the model.
            gate: Whether it is handed over.
            report: Settings, data, losses.
            base: Names of the models that it comes from.
            picture: Curves, as a PNG.
        """
        told = {**report, "gate": gate.as_dict(), "versions": versions()}
        write_whole(candidate / TOLD, json.dumps(told, ensure_ascii=False, indent=1, default=str))
        write_whole(candidate / "README.md", _card(told, gate, base, has_picture=picture is not None))
        if picture is not None:
            write_whole(candidate / "curves.png", picture)
        place = self.out if gate.is_open else self.out.with_name(f"{self.out.name}.rejected")
        if place.is_dir():
            shutil.rmtree(place)
        candidate.replace(place)
        with suppress(OSError):
            shutil.rmtree(self.folder)
        return Trained(folder=place, gate=gate, report=told)


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Put the tokenizer of one model's folder in the place of another's."""
    for name in TOKENIZER:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
        else:
            (folder / name).unlink(missing_ok=True)


def copy_model(source: Path, folder: Path) -> None:
    """Copy a model's files, but for what was made from them, and what tells how it came about."""
    for place in sorted(source.iterdir()):
        if place.is_dir() and not place.name.startswith(MADE):
            shutil.copytree(place, folder / place.name)
        elif place.is_file() and place.name not in OF_ITS_TRAINING:
            shutil.copyfile(place, folder / place.name)


def write_row(spec: ModelSpec, folder: Path, **facts: Any) -> None:
    """Write what the runtime is to know about a model beside its weights: a row of the model table."""
    row = {**spec.as_dict(), "package": None, "checked": "", **facts}
    write_whole(folder / ROW, json.dumps(row, ensure_ascii=False, indent=1))


def _card(told: Mapping[str, Any], gate: Gate, base: Sequence[str], *, has_picture: bool) -> str:
    """Return the model card: metadata that the hub and the runtime read, and the figures."""
    metadata = {
        "library_name": "sentence-transformers",
        "tags": ["bge-integrations", str(told["kind"]).replace(" ", "-")],
        "base_model": list(base),
    }
    rows = [
        f"| {each.name} ({each.data}) | {each.difference.questions} | {each.before:.4f} | {each.after:.4f} | "
        f"{each.difference.mean:+.4f} | {each.difference.low:+.4f} to {each.difference.high:+.4f} |"
        for each in gate.measured
    ]
    decision = "handed over" if gate.is_open else "not handed over"
    why = "".join(f"\n- {reason}" for reason in gate.reasons)
    data = told["data"]
    # JSON is YAML, and quotes whatever needs it.
    head = "".join(f"{name}: {json.dumps(value, ensure_ascii=False)}\n" for name, value in metadata.items())
    return (
        f"---\n{head}---\n\n# {told['kind']} of {', '.join(base)}\n\n"
        f"Trained on {data['examples']} examples of {data['name']} (SHA-256 {data['digest']}).\n\n"
        f"| {METRIC} on | questions | before | after | difference | 95% interval |\n|---|---|---|---|---|---|\n"
        + "\n".join(rows)
        + f"\n\nThe model is {decision}{' although:' if gate.reasons and gate.is_open else ''}.{why}\n\n"
        + ("![loss and development score](curves.png)\n\n" if has_picture else "")
        + f"Settings, losses and versions are in {TOLD}; what the runtime needs to know is in {ROW}.\n"
    )
