"""Pairs of query and document to raw scores, read together by a model that was trained for it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from bge_runtime.backends.base import LayerScore, Output
from bge_runtime.engine.deadline import Deadline
from bge_runtime.engine.flow import Flow
from bge_runtime.inputs.tokenizing import Tokenizing, TokenSequence
from bge_runtime.loading.runner import Runner, distinct
from bge_runtime.reranking.base import INTERACTIVE_PAIRS, Pairs, Scores
from bge_runtime.reranking.llm_options import LLMOptions
from bge_runtime.vectors.finite import check_finite, named
from bge_runtime.vectors.similarity import best_passages

__all__ = ["CrossEncoder"]


class CrossEncoder:
    """Scores pairs by a classification head, or by what an LLM reranker answers."""

    def __init__(self, runner: Runner, llm: LLMOptions, overlap: int | None) -> None:
        """Note how pairs are read.

        Args:
            runner: Runs the model.
            llm: What an LLM reranker is to do.
            overlap: Tokens shared by two passages of a long document, whose best passage counts; `None` cuts it.
        """
        self._runner = runner
        self._llm = llm
        self._overlap = overlap

    def warm_up(self) -> None:
        """Load the weights."""
        self._runner.hold()

    def close(self) -> None:
        """Do nothing: the weights are the reranker's own."""

    def scores(self, pairs: Pairs, show_progress: bool | None, deadline: Deadline | None) -> Flow[Scores]:
        """Return the raw logit of each pair; see `Scorer`."""
        columns = yield from self._columns(pairs, self._llm.output(self._runner.source.spec), show_progress, deadline)
        return columns[:, 0]

    def tokenize(self, pairs: Pairs) -> list[TokenSequence]:
        """Return what the model reads of each pair, cut."""
        return self._tokenizing.pairs(pairs, max_length=self._runner.max_length).sequences

    def layer_scores(self, pairs: Pairs, layers: Sequence[int]) -> Flow[Scores]:
        """Return the raw logits of each pair at several layers, float32 [pairs, layers]."""
        return self._columns(pairs, self._llm.output(self._runner.source.spec, layers), None, None)

    @property
    def _tokenizing(self) -> Tokenizing:
        tokenizing = self._runner.hold().tokenizing
        return tokenizing if self._llm.prompt is None else tokenizing.with_prompt(self._llm.prompt)

    def _columns(
        self, given: Pairs, output: Output, show_progress: bool | None, deadline: Deadline | None
    ) -> Flow[Scores]:
        pairs, places = distinct(given)
        rows = yield from self._runner.rows(
            pairs,
            partial(self._tokenizing.pairs, max_length=self._runner.max_length, overlap=self._overlap),
            output,
            bulk=len(pairs) > INTERACTIVE_PAIRS,
            show_progress=show_progress,
            deadline=deadline,
        )
        self._runner.note_truncation(rows, pairs)
        width = len(output.layers) if isinstance(output, LayerScore) else 1
        values = np.asarray(rows.values, dtype=np.float32).reshape(len(rows.values), width)
        owners = np.repeat(np.arange(len(rows.passages)), rows.passages)
        check_finite(values, self._runner.source.name, lambda index: _named(given, *pairs[owners[index]]))
        # NaN stays where a deadline came before the pair.
        scores = np.full((len(pairs), width), np.nan, dtype=np.float32)
        for column in range(width):
            best = best_passages(values[:, column], rows.passages)
            scores[: len(best), column] = best
        return scores[places]


def _named(given: Pairs, query: str, document: str) -> str:
    index = given.index((query, document))
    return f"{named('documents', index, document)} with {named('queries', index, query)}"
