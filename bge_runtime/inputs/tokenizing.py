"""Text to token ids: no padding, length cut by us and counted."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from bge_runtime.errors import ConfigurationError, public
from bge_runtime.inputs.prepared import PreparedInputs

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Framed", "TokenSequence", "Tokenizing", "characters", "copied", "split_ids"]

QUERY_SHARE = 0.75  # FlagEmbedding caps the query of a pair at three quarters of max_length
# What the tokenizer gets at once: enough for all its threads, and its results hold 100 bytes and more per token.
TEXTS_PER_CALL = 128
FIRST_PROCESS = os.getpid()


class Framed(NamedTuple):
    """A text whose end is not what the model is to read last.

    Attributes:
        examples: In-context examples, which do not count towards the longest input.
        head: Instruction before the text.
        text: The text.
        tail: What stays behind the text when it is cut.
    """

    examples: str
    head: str
    text: str
    tail: str


@public
class TokenSequence(NamedTuple):
    """Token ids of one input, and their segment ids; what waits in a queue is held as arrays, not as lists.

    Attributes:
        ids: Token ids, special tokens included.
        type_ids: For each of them, to which text of a pair it belongs, as the model counts them.
    """

    ids: Sequence[int]
    type_ids: Sequence[int]

    @property
    def length(self) -> int:
        """What the input costs: its tokens."""
        return len(self.ids)


class _Template(NamedTuple):
    """Special tokens around one text or a pair, as (ids, type ids) runs, and the texts' own type ids."""

    runs: tuple[TokenSequence, ...]
    type_ids: tuple[int, ...]
    size: int

    def build(self, *texts: Sequence[int]) -> TokenSequence:
        ids, types = array("i", self.runs[0].ids), bytes(self.runs[0].type_ids)
        for text, type_id, run in zip(texts, self.type_ids, self.runs[1:], strict=True):
            ids.extend(text)
            ids.extend(run.ids)
            types += bytes([type_id]) * len(text) + bytes(run.type_ids)
        return TokenSequence(ids, types)


def copied(tokenizer: Tokenizer) -> Tokenizer:
    """Return a copy of somebody else's tokenizer; of a large vocabulary it costs a second."""
    return type(tokenizer).from_str(tokenizer.to_str())


class Tokenizing:
    """A model's tokenizer, private to it.

    It carries no truncation or padding state, whatever `tokenizer.json` says, and nothing here changes
    it, so any number of threads may share it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Take over `tokenizer`, which nobody else may change from now on; see `copied`."""
        self._tokenizer = tokenizer
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._single = self._template("a")
        self._pair = self._template("a", "a")

    def with_prompt(self, prompt: str) -> Self:
        """Return a tokenizer of pairs that ends them with this prompt.

        Raises:
            ConfigurationError: The model takes none.
        """
        raise ConfigurationError(f"prompt={prompt!r} is not allowed: this model takes no prompt. Leave it out.")

    def to_json(self) -> str:
        """Return what a `tokenizer.json` of this tokenizer holds."""
        return str(self._tokenizer.to_str())

    def texts(self, texts: Sequence[str | Framed], max_length: int, overlap: int | None = None) -> PreparedInputs:
        """Tokenise texts with their special tokens, in at most `max_length` tokens each.

        Args:
            texts: Any texts; those in a frame are cut inside it, and their examples come on top of `max_length`.
            max_length: Most tokens of a sequence, special tokens included.
            overlap: Tokens that two passages of a longer text share; `None` cuts its end off instead.
        """
        room = max(max_length - self._single.size, 0)
        cut: list[int] = []
        sequences, passages = [], []
        whole = [text if isinstance(text, str) else "".join(text) for text in texts]
        for index, (text, ids) in enumerate(zip(texts, self._content(whole), strict=True)):
            if isinstance(text, str):
                parts = split_ids(ids, room, overlap)
                is_cut = overlap is None and len(ids) > room
            else:
                parts = [self._cut_inside(text, ids, room)]
                is_cut = parts[0] is not ids
            if is_cut:
                cut.append(index)
            sequences += [self._single.build(part) for part in parts]
            passages.append(len(parts))
        return PreparedInputs(sequences, passages, len(cut), cut[0] if cut else None)

    def pairs(self, pairs: Sequence[tuple[str, str]], max_length: int, overlap: int | None = None) -> PreparedInputs:
        """Tokenise (query, document) pairs; a query keeps at most three quarters, the document is made to fit.

        Each distinct text is tokenised once.

        Args:
            pairs: Queries and documents.
            max_length: Most tokens of a sequence, special tokens included.
            overlap: Tokens that two passages of a longer document share; `None` cuts its end off instead.
        """
        distinct = list(dict.fromkeys(text for pair in pairs for text in pair))
        content = dict(zip(distinct, self._content(distinct), strict=True))
        query_room = max(min(int(max_length * QUERY_SHARE), max_length - self._pair.size), 0)
        cut: list[int] = []
        sequences, passages = [], []
        for index, (query, document) in enumerate(pairs):
            first = content[query][:query_room]
            room = max(max_length - self._pair.size - len(first), 0)
            parts = split_ids(content[document], room, overlap)
            if (overlap is None and len(content[document]) > room) or len(content[query]) > query_room:
                cut.append(index)
            sequences += [self._pair.build(first, part) for part in parts]
            passages.append(len(parts))
        return PreparedInputs(sequences, passages, len(cut), cut[0] if cut else None)

    def token_id(self, token: str) -> int | None:
        """Return the id of a token, `None` if it is not in the vocabulary."""
        found: int | None = self._tokenizer.token_to_id(token)
        return found

    def token(self, token_id: int) -> str:
        """Return the token of an id, as the vocabulary writes it."""
        return str(self._tokenizer.id_to_token(token_id))

    def count(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text, special tokens included, uncut."""
        return [len(ids) + self._single.size for ids in self._content(texts)]

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Return where each content token stands in `text`, in characters."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).offsets)

    def _content(self, texts: Sequence[str]) -> Iterable[list[int]]:
        if os.getpid() != FIRST_PROCESS:
            # The tokenizers' threads stayed behind in the process that this one was forked from, and calls that are
            # spread over threads would wait for them.
            yield from (self._tokenizer.encode(text, add_special_tokens=False).ids for text in texts)
            return
        for start in range(0, len(texts), TEXTS_PER_CALL):
            part = texts[start : start + TEXTS_PER_CALL]
            for encoding in self._tokenizer.encode_batch_fast(part, add_special_tokens=False):
                yield encoding.ids

    def _cut_inside(self, framed: Framed, ids: list[int], room: int) -> list[int]:
        """Return `ids`, or those of a shorter text in its frame when head and text have no room beside the tail.

        As FlagEmbedding does for bge-en-icl: the tail is counted as it is tokenised alone.
        """
        room = max(room - self._length(framed.tail), 0)
        if len(ids) <= room:
            return ids
        text = framed.head + framed.text
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        if len(encoding.ids) <= room:
            return ids
        # Neither the space before the next token, nor the first bytes of a character.
        end = min(encoding.offsets[room - 1][1], encoding.offsets[room][0]) if room else 0
        shorter = framed.examples + text[:end] + framed.tail
        return list(self._tokenizer.encode(shorter, add_special_tokens=False).ids)

    def _length(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _template(self, *texts: str) -> _Template:
        """Learn from an encoding which special tokens stand where."""
        encoding = self._tokenizer.encode(texts[0], texts[1] if len(texts) == 2 else None)
        runs: list[tuple[list[int], list[int]]] = [([], []) for _ in range(len(texts) + 1)]
        type_ids = [0] * len(texts)
        position = 0
        for token, type_id, owner in zip(encoding.ids, encoding.type_ids, encoding.sequence_ids, strict=True):
            if owner is None:
                runs[position][0].append(token)
                runs[position][1].append(type_id)
            else:
                position = owner + 1
                type_ids[owner] = type_id
        return _Template(tuple(TokenSequence(*run) for run in runs), tuple(type_ids), sum(len(ids) for ids, _ in runs))


def characters(items: Iterable[Any]) -> list[int]:
    """Return the length of each text, pair, or text in a frame; of a picture, that of its name."""
    sizes = []
    for item in items:
        texts = (item,) if isinstance(item, str) else item
        size = 0
        for text in texts:
            size += len(text) if isinstance(text, str) else 0
        sizes.append(size)
    return sizes


def split_ids(ids: list[int], room: int, overlap: int | None) -> list[list[int]]:
    """Return the beginning, or overlapping parts that hold everything, of at most `room` tokens."""
    if overlap is None or len(ids) <= room or not room:
        return [ids[:room]]
    step = room - min(overlap, room // 2)
    return [ids[start : start + room] for start in range(0, len(ids) - room + step, step)]
