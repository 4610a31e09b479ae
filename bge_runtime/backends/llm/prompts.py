"""Query and document as an LLM reranker reads them: joined token by token, with a prompt behind."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

from bge_runtime.inputs.prepared import PreparedInputs
from bge_runtime.inputs.tokenizing import Tokenizing, TokenSequence, split_ids

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["DOCUMENT", "HEAD", "PREDICT", "PROMPT", "YES_OR_NO", "PromptedPairs"]

# The prompts that FlagEmbedding's rerankers take when the caller gives none.
YES_OR_NO = (
    "Given a query A and a passage B, determine whether the passage contains an answer to the query by providing "
    "a prediction of either 'Yes' or 'No'."
)
PREDICT = "Predict whether passage B contains an answer to query A."

# Type ids of the three parts of a sequence: what stands before the document, the document, what stands behind it.
HEAD, DOCUMENT, PROMPT = 0, 1, 2


class PromptedPairs(Tokenizing):
    """Tokenises pairs as FlagEmbedding's decoder-only rerankers do.

    A sequence is the beginning-of-text token, `A: {query}`, a line break, `B: {document}`, a line break and the
    prompt, each tokenised by itself.
    """

    def __init__(self, tokenizer: Tokenizer, bos: Sequence[int], prompt: str) -> None:
        """Take over the tokenizer.

        Args:
            tokenizer: The model's tokenizer.
            bos: Its beginning-of-text token; empty for models without.
            prompt: The model's own prompt.
        """
        super().__init__(tokenizer)
        self._bos = list(bos)
        self._separator, self._prompt, self._mark = self._content(["\n", prompt, "B:"])

    def with_prompt(self, prompt: str) -> Self:
        """Return a tokenizer that ends pairs with another prompt."""
        other = copy.copy(self)
        (other._prompt,) = self._content([prompt])
        return other

    def first_id(self, text: str) -> int:
        """Return the first token of a text."""
        (ids,) = self._content([text])
        return ids[0]

    def pairs(self, pairs: Sequence[tuple[str, str]], max_length: int, overlap: int | None = None) -> PreparedInputs:
        """Tokenise (query, document) pairs; a query keeps at most three quarters, the document is made to fit.

        As in FlagEmbedding the prompt and a line break come on top of `max_length`: all that stands before them has
        at most `max_length` tokens and as many as they have.

        Args:
            pairs: Queries and documents.
            max_length: Most tokens of query and document.
            overlap: Tokens that two passages of a longer document share; `None` cuts its end off instead.
        """
        distinct = list(dict.fromkeys(text for query, document in pairs for text in (f"A: {query}", f"B: {document}")))
        content = dict(zip(distinct, self._content(distinct), strict=True))
        tail = [*self._separator, *self._prompt]
        query_room = max_length * 3 // 4
        cut: list[int] = []
        sequences, passages = [], []
        for index, (query, document) in enumerate(pairs):
            asked, read = content[f"A: {query}"], content[f"B: {document}"]
            head = [*self._bos, *asked[:query_room], *self._separator]
            room = max(min(max_length, max_length + len(tail) - len(head)), 0)
            parts = self._passages(read, room, overlap)
            if (overlap is None and len(read) > room) or len(asked) > query_room:
                cut.append(index)
            sequences += [_joined(head, part, tail) for part in parts]
            passages.append(len(parts))
        return PreparedInputs(sequences, passages, len(cut), cut[0] if cut else None)

    def _passages(self, ids: list[int], room: int, overlap: int | None) -> list[list[int]]:
        """Return the parts of a document; each begins with `B:`, as the whole does."""
        mark = self._mark if ids[: len(self._mark)] == self._mark and room > 2 * len(self._mark) else []
        if overlap is None or len(ids) <= room or not mark:
            return split_ids(ids, room, overlap)
        return [[*mark, *part] for part in split_ids(ids[len(mark) :], room - len(mark), overlap)]


def _joined(head: list[int], document: list[int], tail: list[int]) -> TokenSequence:
    types = [HEAD] * len(head) + [DOCUMENT] * len(document) + [PROMPT] * len(tail)
    return TokenSequence([*head, *document, *tail], types)
