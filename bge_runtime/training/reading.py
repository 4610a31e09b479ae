"""What training reads of a text: exactly what inference reads of it, as token ids made by the runtime."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from bge_runtime import Embedder, Reranker, TokenSequence

__all__ = ["LABEL", "LINE", "Columns", "Pairs", "Texts", "pad_id", "padded"]

LABEL = "label"
LINE = "line"


class Texts:
    """Token ids of an embedder's texts, all of them made ahead, so that its weights need not stay in memory."""

    def __init__(self, embedder: Embedder, pad_id: int) -> None:
        """Take the embedder that says how texts are read."""
        self._embedder = embedder
        self._pad_id = pad_id
        self._known: dict[tuple[str, str], TokenSequence] = {}

    def add(self, texts: Iterable[str], role: Any) -> None:
        """Tokenise texts in a role, `query` or `document`."""
        new = [text for text in dict.fromkeys(texts) if (role, text) not in self._known]
        for text, sequence in zip(new, self._embedder.tokenize(new, role=role), strict=True):
            self._known[role, text] = sequence

    def length(self, text: str, role: str) -> int:
        """Return how many tokens a text has."""
        return self._known[role, text].length

    def features(self, texts: Sequence[str], role: str) -> dict[str, torch.Tensor]:
        """Return a batch of texts, padded to the longest."""
        return padded([self._known[role, text] for text in texts], self._pad_id)


class Pairs:
    """Token ids of a reranker's pairs, made ahead; stands in the place of a cross-encoder's `preprocess`."""

    def __init__(self, reranker: Reranker, pad_id: int, *, pad_left: bool = False) -> None:
        """Take the reranker that says how pairs are read."""
        self._reranker = reranker
        self._pad_id = pad_id
        self._pad_left = pad_left
        self._known: dict[tuple[str, str], TokenSequence] = {}

    def add(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Tokenise (query, document) pairs."""
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self._known]
        for pair, sequence in zip(new, self._reranker.tokenize(new), strict=True):
            self._known[pair] = sequence

    def __call__(self, pairs: Sequence[Sequence[str]], prompt: object = None, task: object = None) -> dict[str, Any]:
        """Return a batch of pairs, padded; the two further arguments are sentence-transformers' own."""
        sequences = [self._known[pair[0], pair[1]] for pair in pairs]
        return padded(sequences, self._pad_id, pad_left=self._pad_left)


class Columns:
    """Makes a batch of rows: the token ids of each column of text, labels, and the lines that they come from.

    Attributes:
        valid_label_columns: What sentence-transformers asks a collator for.
    """

    def __init__(self, texts: Texts) -> None:
        """Take the token ids."""
        self.valid_label_columns = [LABEL]
        self._texts = texts

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return the features of each column, the first one's as queries, under the column's name."""
        batch: dict[str, torch.Tensor] = {LINE: torch.tensor([row[LINE] for row in rows])}
        if LABEL in rows[0]:
            batch[LABEL] = torch.tensor([row[LABEL] for row in rows], dtype=torch.float32)
        columns = [name for name in rows[0] if name not in (LINE, LABEL)]
        for at, column in enumerate(columns):
            role = "query" if at == 0 else "document"
            found = self._texts.features([row[column] for row in rows], role)
            batch |= {f"{column}_{name}": value for name, value in found.items()}
        return batch


def pad_id(model: Any) -> int:
    """Return what a model's tokenizer fills up with."""
    return int(model.tokenizer.pad_token_id or 0)


def padded(sequences: Sequence[TokenSequence], pad_id: int, *, pad_left: bool = False) -> dict[str, torch.Tensor]:
    """Return sequences as tensors int64 of shape (n, longest); segment ids only where a model may tell them apart."""
    longest = max(max(each.length for each in sequences), 1)
    ids = torch.full((len(sequences), longest), pad_id)
    mask = torch.zeros((len(sequences), longest), dtype=torch.int64)
    types = torch.zeros((len(sequences), longest), dtype=torch.int64)
    for row, each in enumerate(sequences):
        place = slice(longest - each.length, longest) if pad_left else slice(0, each.length)
        ids[row, place] = torch.tensor(list(each.ids), dtype=torch.int64)
        mask[row, place] = 1
        types[row, place] = torch.tensor(list(each.type_ids), dtype=torch.int64)
    features = {"input_ids": ids, "attention_mask": mask}
    return features | ({"token_type_ids": types} if bool(types.any()) else {})
