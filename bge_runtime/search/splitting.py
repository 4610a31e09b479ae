"""Sections to chunks that the model reads in full, counted in its own tokens."""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

from bge_runtime import ConfigurationError, Embedder
from bge_runtime.search.sections import Section

__all__ = ["DEFAULT_CHUNK_TOKENS", "Chunk", "Splitter"]

DEFAULT_CHUNK_TOKENS = 200
MIN_CHUNK_TOKENS = 16
# A token stands for fewer characters than this in nearly all text. What does not fit is cut here, so that a
# megabyte without spaces, which some tokenizers call one unknown token, is no single chunk.
MAX_CHARACTERS_PER_TOKEN = 8
_JOINTS = re.compile(r"(?<=[a-z])(?=[A-Z][a-z])|(?<=[A-Za-z])_(?=[A-Za-z])")
_BREAKS = tuple(re.compile(pattern) for pattern in (r"\n\s*\n", r"\n|[.!?](?=\s)|[\u3002\uff01\uff1f]", r"\s"))


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """A piece of a section.

    Attributes:
        trail: Headings above it, outermost first.
        heading: The line that is embedded with it: as much of the trail as there is room for.
        body: The piece itself.
    """

    trail: tuple[str, ...]
    heading: str
    body: str

    @property
    def text(self) -> str:
        """What is embedded."""
        return _joined(self.heading, self.body)

    @cached_property
    def key(self) -> str:
        """Digest of `text`, which names its vector."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def readable(text: str) -> str:
    """Return text with compound identifiers taken apart, which models read as words."""
    return _JOINTS.sub(" ", text)


def _joined(heading: str, body: str) -> str:
    return "\n".join(readable(part) for part in (heading, body) if part)


@dataclass(frozen=True)
class Splitter:
    """Splits sections for one model.

    Attributes:
        embedder: Counts the tokens.
        chunk_tokens: Most tokens of a chunk with its headings and special tokens; `None` is 200, or all that the
            model reads when that is less.
    """

    embedder: Embedder
    chunk_tokens: int | None = None
    limit: int = field(init=False)

    def __post_init__(self) -> None:
        """Check the size against the model.

        Raises:
            ConfigurationError: The model reads fewer tokens.
        """
        most = self.embedder.max_length - self._instruction_tokens
        limit = min(DEFAULT_CHUNK_TOKENS, most) if self.chunk_tokens is None else self.chunk_tokens
        if not MIN_CHUNK_TOKENS <= limit <= most:
            raise ConfigurationError(
                f"chunk_tokens={limit} is not allowed: {self.embedder.model!r} reads {most} tokens of a text. "
                f"Use {MIN_CHUNK_TOKENS} to {most}."
            )
        object.__setattr__(self, "limit", limit)

    @property
    def overlap(self) -> int:
        """Tokens that neighbouring chunks share."""
        return self.limit // 10

    def split(self, sections: Iterable[Section]) -> Iterator[Chunk]:
        """Yield the chunks of sections in order; code is kept out of the chunks with prose, which it would blur."""
        for trail, prose, code in sections:
            heading = self._heading(trail)
            bodies = [body for text in (prose, code) for body in self._bodies(text, heading)]
            for body in bodies or ([""] if heading else []):
                yield Chunk(trail=trail, heading=heading, body=body)

    @cached_property
    def _specials(self) -> int:
        return self.embedder.count_tokens([""])[0]

    @property
    def _instruction_tokens(self) -> int:
        """What a document instruction takes from the length that is left for text."""
        instruction = self.embedder.document_instruction
        return self.embedder.count_tokens([instruction])[0] - self._specials if instruction else 0

    def _heading(self, trail: tuple[str, ...]) -> str:
        """Return the line that stands before a chunk; of long trails, the inner headings in half the length."""
        line = " > ".join(title for title in trail if title)
        offsets = self.embedder.token_offsets(readable(line)) if line else []
        room = max(self.limit // 2 - self._specials, 1)
        return readable(line)[offsets[-room][0] :] if len(offsets) > room else line

    def _bodies(self, text: str, heading: str) -> Iterator[str]:
        room = max(self.limit - self.embedder.count_tokens([readable(heading)])[0], 1)
        start = 0
        while start < len(text):
            window = text[start : start + room * MAX_CHARACTERS_PER_TOKEN]
            end, following = self._cut(window, heading, room, is_last=start + len(window) == len(text))
            body = window[:end].strip()
            if body:
                yield body
            start += following

    def _cut(self, window: str, heading: str, room: int, *, is_last: bool) -> tuple[int, int]:
        """Return where in `window` the piece ends that begins it, and where the next one begins."""
        offsets = self._offsets(window)
        size = min(len(offsets), room)
        # What is left and fits in two pieces is halved: a short tail of its own says little.
        if is_last and room < len(offsets) <= 2 * room - self.overlap:
            size = min(size, (len(offsets) + self.overlap + 1) // 2)
        while True:
            if size < len(offsets):
                end = max(_best_break(window, offsets[size // 2][0], offsets[size - 1][1]), 1)
                following = self._resume(window, offsets, end)
            else:
                end = following = len(window) if is_last else _best_break(window, len(window) // 2, len(window))
            excess = self.embedder.count_tokens([_joined(heading, window[:end].strip())])[0] - self.limit
            if size <= 1 or excess <= 0:
                return end, following
            # Tokens of joined text can differ from those of its parts.
            size = max(size - excess, 1)

    def _offsets(self, text: str) -> list[tuple[int, int]]:
        """Return where the tokens of `readable(text)` stand in `text`."""
        joints = [match.start() for match in _JOINTS.finditer(text) if not match[0]]
        spaces = [joint + number for number, joint in enumerate(joints)]
        return [
            (start - bisect_left(spaces, start), end - bisect_left(spaces, end))
            for start, end in self.embedder.token_offsets(readable(text))
        ]

    def _resume(self, window: str, offsets: list[tuple[int, int]], end: int) -> int:
        """Return where the next piece begins: at a break in the last tokens before `end`."""
        inside = [begin for begin, stop in offsets if stop <= end]
        earliest = max(inside[-self.overlap - 1 :][0], 1) if self.overlap and len(inside) > self.overlap else end
        return _best_break(window, earliest, end, first=True) if earliest < end else end


def _best_break(text: str, low: int, high: int, *, first: bool = False) -> int:
    """Return a position in `text[low:high]` after a paragraph, else a sentence or line, else a word, else `high`."""
    for pattern in _BREAKS:
        ends = [match.end() for match in pattern.finditer(text, low, high) if low < match.end() < high]
        if ends:
            return ends[0] if first else ends[-1]
    return high
