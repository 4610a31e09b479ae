"""From a score to the probability of being relevant: the map, what it holds for, and its file."""

from __future__ import annotations

import hashlib
import json
import math
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bge_runtime.embedding.embedder import Embedder
from bge_runtime.errors import ConfigurationError, InputError, check_path, public

if TYPE_CHECKING:
    from bge_runtime.reranking.reranker import Reranker

__all__ = ["Calibrating", "ScoreCalibrator", "ScoreThreshold", "score_facts"]

FORMAT = 1
MOST_BYTES = 2**24  # of a file, whose map has some hundred knots

Method = Literal["isotonic", "platt"]
Purpose = Literal["precision", "recall", "wrong", "answerable"]
Facts = Mapping[str, str]
Calibrating: TypeAlias = "ScoreCalibrator | str | os.PathLike[str] | Mapping[str, Any]"


@public
@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreThreshold:
    """A score from which on something is kept, and what it reached where it was fitted.

    Attributes:
        purpose: What it was chosen for: `precision` and `recall` of what is kept; `wrong`, the largest share of what
            is kept that may be wrong, with the confidence; `answerable`, whether a question has an answer here.
        target: The value asked for; for `answerable`, which minimises its error, none.
        score: Raw score from which on to keep, as the model gives it; `None` where no threshold keeps the promise.
        probability: What the map makes of that score: the threshold to pass to a calibrated reranker.
        score_interval: Where the threshold lies, from the bootstrap; for `wrong`, none.
        reached: Precision, recall, share wrong, or balanced error at the threshold, where it was fitted.
        interval: Of `reached`: from the bootstrap; for `wrong`, from 0 to the upper limit that the promise rests on.
        confidence: Of the intervals, and of the promise.
        kept: How many candidates (for `answerable`: questions) lie at or above the threshold, where it was fitted.
        reason: Why there is no score; else empty.
    """

    purpose: Purpose
    target: float | None
    score: float | None
    probability: float | None
    score_interval: tuple[float, float] | None
    reached: float | None
    interval: tuple[float, float] | None
    confidence: float
    kept: int
    reason: str = ""


@public
@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreCalibrator:
    """A monotone map from one scorer's raw score to the probability that a candidate is relevant.

    The probability is about the candidates that it was fitted on: of the best few that a search brings for a
    question, how likely is one with this score to be judged relevant. `bge_runtime.evaluation.calibration` fits
    calibrators. One holds for the scorer it was fitted on: `check` refuses any other.

    Attributes:
        method: `isotonic`: linear between `knots`; `platt`: 1 / (1 + exp(-(slope * score + intercept))).
        knots: Pairs of raw score and probability, both rising.
        slope: Of `platt`.
        intercept: Of `platt`.
        identity: What the scorer's `score_identity` (of a `Reranker`) or `identity` (of an `Embedder`) must be.
        scorer: What that scorer is, in words, by name.
        thresholds: The thresholds that were fitted along with it.
        fitted: On what and how, by name: numbers, texts.
        weak: Whether it was fitted without labels.
    """

    method: Method
    identity: str
    scorer: Facts
    knots: tuple[tuple[float, float], ...] = ()
    slope: float = 0.0
    intercept: float = 0.0
    thresholds: tuple[ScoreThreshold, ...] = ()
    fitted: Mapping[str, Any] = field(default_factory=dict)
    weak: bool = False

    def __post_init__(self) -> None:
        """Check the map.

        Raises:
            ConfigurationError: It is not a map from scores to probabilities that rises.
        """
        if not isinstance(self.identity, str) or not self.identity:
            raise ConfigurationError(f"identity={self.identity!r} is not allowed. Pass the scorer's.")
        if self.method == "platt":
            if not (math.isfinite(self.slope) and self.slope > 0 and math.isfinite(self.intercept)):
                raise ConfigurationError(
                    f"slope={self.slope!r}, intercept={self.intercept!r} are no map that rises. "
                    "Pass a finite slope above 0 and a finite intercept."
                )
            return
        if self.method != "isotonic":
            raise ConfigurationError(f"method={self.method!r} is not allowed. Use 'isotonic' or 'platt'.")
        table = np.asarray(self.knots, dtype=np.float64)
        if not _rises(table):
            raise ConfigurationError(
                f"The {len(self.knots)} knots are no map that rises. Pass at least two pairs of a finite score, each "
                "larger than the one before, and a probability from 0 to 1, none smaller than the one before."
            )

    def probabilities(self, scores: ArrayLike) -> NDArray[np.float64]:
        """Return the probability of being relevant that belongs to each raw score.

        Args:
            scores: Raw scores of any shape, as the scorer gives them: a cosine, or a logit before any sigmoid.

        Returns:
            Array float64 of the same shape, 0 to 1, rising with the score; NaN where the score is.

        Raises:
            InputError: They are no numbers.
        """
        try:
            values = np.asarray(scores, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise InputError(f"scores={scores!r} are no numbers ({error}). Pass raw scores.") from error
        if self.method == "platt":
            logits = self.slope * values + self.intercept
            small = np.exp(-np.abs(logits))  # neither overflows nor cancels
            return np.asarray(np.where(np.isnan(logits), np.nan, np.where(logits >= 0, 1, small) / (1 + small)))
        table = np.asarray(self.knots, dtype=np.float64)
        return np.asarray(np.interp(values, table[:, 0], table[:, 1]))

    def threshold(self, purpose: Purpose) -> ScoreThreshold:
        """Return the threshold that was fitted for a purpose.

        Raises:
            ConfigurationError: None was; the message names those that were.
        """
        for each in self.thresholds:
            if each.purpose == purpose:
                return each
        found = ", ".join(repr(each.purpose) for each in self.thresholds) or "none"
        raise ConfigurationError(f"purpose={purpose!r} has no threshold here. Those that were fitted: {found}.")

    def check(self, scorer: Reranker | Embedder) -> None:
        """Refuse a scorer that it was not fitted on; needs the model's files, not its weights in memory.

        Raises:
            ConfigurationError: Names both scorers and what they differ in.
        """
        identity, own = score_facts(scorer)
        if identity == self.identity:
            return
        names = dict.fromkeys([*own, *self.scorer])
        differing = [
            f"{name} {self.scorer.get(name)!r} there, {own.get(name)!r} here"
            for name in names
            if self.scorer.get(name) != own.get(name)
        ]
        raise ConfigurationError(
            f"The calibrator was fitted on {_named(self.scorer, self.identity)}, and what scores here is "
            f"{_named(own, identity)}. They differ in: {'; '.join(differing) or 'how the model is loaded'}. "
            "Use what it was fitted on, or fit another calibrator."
        )

    @property
    def digest(self) -> str:
        """SHA-256 of the content, which its file carries."""
        return _digest(self.content())

    def content(self) -> dict[str, Any]:
        """Return everything as JSON knows it, without the digest."""
        found = {each.name: getattr(self, each.name) for each in fields(self)}
        found["thresholds"] = [asdict(each) for each in self.thresholds]
        content: dict[str, Any] = json.loads(json.dumps({"format": FORMAT, **found}, default=dict))
        return content

    def as_dict(self) -> dict[str, Any]:
        """Return the content with its digest: what the file holds, and what `from_dict` takes."""
        return {**self.content(), "digest": self.digest}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as a JSON file, whole or not at all; a file that is there is replaced.

        Raises:
            ConfigurationError: The file cannot be written.
        """
        file = Path(check_path(path, "path"))
        made = file.with_name(f".{file.name}-{uuid.uuid4().hex}")
        try:
            try:
                made.write_text(json.dumps(self.as_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
                made.replace(file)
            finally:
                made.unlink(missing_ok=True)
        except OSError as error:
            raise ConfigurationError(f"The calibrator cannot be saved as {str(file)!r} ({error}).") from error

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Return the calibrator of a file.

        Raises:
            ConfigurationError: There is no such file, or it is no calibrator, of another version, or was changed.
        """
        file = Path(check_path(path, "path"))
        try:
            if file.is_file() and file.stat().st_size > MOST_BYTES:
                raise ConfigurationError(f"{str(file)!r} is no calibrator: it has more than {MOST_BYTES} bytes.")
            content = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigurationError(f"There is no calibrator to read at {str(file)!r} ({error}).") from error
        except (ValueError, RecursionError) as error:
            raise ConfigurationError(
                f"{str(file)!r} is no calibrator ({error}). Pass a file that ScoreCalibrator.save wrote."
            ) from error
        return cls.from_dict(content, repr(str(file)))

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], name: str = "What was passed") -> Self:
        """Return the calibrator that `as_dict` described.

        Args:
            content: As `as_dict` returns it.
            name: What to call it in an error.

        Raises:
            ConfigurationError: It is no calibrator, of another version, or was changed.
        """
        if not isinstance(content, Mapping) or "format" not in content or "digest" not in content:
            raise ConfigurationError(f"{name} is no calibrator. Pass what ScoreCalibrator.save wrote.")
        own = {key: value for key, value in content.items() if key != "digest"}
        if own["format"] != FORMAT:
            raise ConfigurationError(
                f"{name} is a calibrator of format {own['format']!r}; this version reads {FORMAT}. Fit it anew."
            )
        if _digest(own) != content["digest"]:
            raise ConfigurationError(
                f"{name} was changed after it was saved, or is damaged: its content does not have the digest "
                f"{content['digest']!r} that it carries. A calibrator is fitted, not edited: fit it anew."
            )
        del own["format"]
        try:
            thresholds = tuple(_threshold(each) for each in own.pop("thresholds"))
            knots = tuple((float(score), float(probability)) for score, probability in own.pop("knots"))
            return cls(**own, thresholds=thresholds, knots=knots)
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            raise ConfigurationError(f"{name} is no calibrator ({error}). Fit it anew.") from error

    @classmethod
    def of(cls, calibrator: Calibrating) -> ScoreCalibrator:
        """Return the calibrator that an option names: itself, that of a path, or of what `as_dict` returned.

        Raises:
            ConfigurationError: It is none of them, or its file is no calibrator, or was changed.
        """
        if isinstance(calibrator, ScoreCalibrator):
            return calibrator
        if isinstance(calibrator, Mapping):
            return cls.from_dict(calibrator)
        if isinstance(calibrator, str | os.PathLike):
            return cls.read(calibrator)
        raise ConfigurationError(
            f"calibrator={calibrator!r} is not allowed. Pass a ScoreCalibrator, or the path of its file."
        )

    def __repr__(self) -> str:
        """Show the map's kind and what it holds for."""
        weak = ", weak" if self.weak else ""
        return f"ScoreCalibrator({self.method!r}, of {_named(self.scorer, self.identity)}{weak})"


def score_facts(scorer: Reranker | Embedder) -> tuple[str, dict[str, str]]:
    """Return the identity of what gives the scores, and what it is in words, by name; needs the model's files.

    Raises:
        ConfigurationError: It is neither an `Embedder` nor a `Reranker`.
    """
    if isinstance(scorer, Embedder):
        return scorer.identity, _words(scorer, "cosine", _embedder_facts(scorer))
    if not hasattr(scorer, "score_options"):
        raise ConfigurationError(f"scorer={scorer!r} is not allowed. Pass a bge_runtime.Reranker or an Embedder.")
    return scorer.score_identity, _words(scorer, scorer.method, scorer.score_options)


def _words(scorer: Reranker | Embedder, how: str, own: Mapping[str, Any]) -> dict[str, str]:
    source = scorer.source
    shared = {
        "model": scorer.model,
        "score": how,
        "weights": source.weights_digest[:12],
        "precision": source.precision_class,
        "max_length": scorer.max_length,
    }
    return {name: str(value) for name, value in {**shared, **own}.items()}


def _embedder_facts(embedder: Embedder) -> dict[str, Any]:
    return {
        "query_instruction": embedder.query_instruction,
        "document_instruction": embedder.document_instruction,
        "pooling": embedder.spec.pooling,
        "dimension": embedder.dimension,
        "normalize": embedder.normalize,
    }


def _named(scorer: Facts, identity: str) -> str:
    shown = ", ".join(f"{name} {scorer[name]!r}" for name in ("score", "precision") if name in scorer)
    return f"{scorer.get('model')!r} ({shown}, identity {identity[:12]})"


def _rises(table: NDArray[np.float64]) -> bool:
    if table.ndim != 2 or table.shape[0] < 2 or table.shape[1] != 2 or not np.isfinite(table).all():
        return False
    scores, probabilities = table.T
    steps = np.diff(scores).min() > 0 and np.diff(probabilities).min() >= 0
    return bool(steps and probabilities[0] >= 0 and probabilities[-1] <= 1)


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=dict)
    return hashlib.sha256(text.encode()).hexdigest()


def _threshold(content: Mapping[str, Any]) -> ScoreThreshold:
    made = {**content, **{name: _pair(content[name]) for name in ("score_interval", "interval")}}
    if made["purpose"] not in get_args(Purpose):
        raise ValueError(f"purpose {made['purpose']!r}")
    return ScoreThreshold(**made)


def _pair(values: Sequence[float] | None) -> tuple[float, float] | None:
    return None if values is None else (float(values[0]), float(values[1]))
