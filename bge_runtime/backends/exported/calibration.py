"""The texts that set the scales of an int8 export."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from pathlib import Path

from bge_runtime.errors import ConfigurationError

__all__ = ["calibration_digest", "calibration_texts"]

MAX_TEXTS = 512


def calibration_texts(file: Path | None) -> list[str]:
    """Return the texts of a file, one per line, at most 512; `None` is the list that comes with the package.

    Raises:
        ConfigurationError: The file cannot be read or holds no text.
    """
    try:
        content = _content(file).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"calibration={str(file)!r} cannot be read ({error}). Pass a UTF-8 file with one text per line."
        ) from error
    texts = [line.strip() for line in content.splitlines() if line.strip()]
    if not texts:
        raise ConfigurationError(f"calibration={str(file)!r} holds no text. Put one text on each line.")
    return texts[:MAX_TEXTS]


def calibration_digest(file: Path | None) -> str:
    """Return a SHA-256 of the texts; see `calibration_texts`."""
    return hashlib.sha256("\n".join(calibration_texts(file)).encode()).hexdigest()


def _content(file: Path | None) -> bytes:
    return (files("bge_runtime.backends") / "calibration.txt").read_bytes() if file is None else file.read_bytes()
