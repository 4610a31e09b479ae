"""Sections to chunks that the model reads in full, counted in its own tokens."""

from __future__ import annotations

import hashlib
import re
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
_BREAKS = tuple(re.compile(pattern) for pattern in (r"\n\s*\n", r"\n|[.!?](?=\s)|[\u3002\uff01\uff1f]", r"\s"))


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """A piece of a section.

    Attributes:
        trail: Headings above it, outermost first.
        text: What is embedded: the headings, then the piece itself.
        body_start: Where the piece itself begins in `text`.
    """

    trail: tuple[str, ...]
    text: str
    body_start: int = 0

    @property
    def body(self) -> str:
        """The piece without the headings."""
        return self.text[self.body_start :]

    @cached_property
    def key(self) -> str:
        """Digest of `text`, which names its vector."""
        return hashlib.sha256(self.text.encode()).hexdigest()


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
        """Yield the chunks of sections in order."""
        for section in sections:
            heading = self._heading(section.trail)
            if section.text:
                for body in self._bodies(section.text, heading):
                    yield Chunk(trail=section.trail, text=heading + body, body_start=len(heading))
            elif heading:
                yield Chunk(trail=section.trail, text=heading.strip(), body_start=len(heading.strip()))

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
        offsets = self.embedder.token_offsets(line) if line else []
        room = max(self.limit // 2 - self._specials, 1)
        return f"{line[offsets[-room][0] :] if len(offsets) > room else line}\n" if line else ""

    def _bodies(self, text: str, heading: str) -> Iterator[str]:
        room = max(self.limit - self.embedder.count_tokens([heading])[0], 1)
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
        offsets = self.embedder.token_offsets(window)
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
            if size <= 1 or self.embedder.count_tokens([heading + window[:end].strip()])[0] <= self.limit:
                return end, following
            # Tokens of the joined text can differ from those of its parts.
            size -= 1

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
