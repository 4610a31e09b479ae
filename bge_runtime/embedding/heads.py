"""Embedders with several heads: dense, sparse and multi-vector from one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bge_runtime.backends import Output
from bge_runtime.backends.head_outputs import EncodedTexts, TextOutputs, unpack_outputs
from bge_runtime.embedding.instructions import Framed, Role
from bge_runtime.embedding.memo import Kind
from bge_runtime.embedding.settings import TextEncoder, unit_rows
from bge_runtime.engine.deadline import Deadline
from bge_runtime.engine.flow import Steps, arun, run
from bge_runtime.errors import ConfigurationError, ModelNotFoundError
from bge_runtime.inputs.checks import check_texts
from bge_runtime.loading.model import Rows
from bge_runtime.loading.store import STORE, LoadedModel
from bge_runtime.models.hub import HEADS, head_files

__all__ = ["MultiOutputEncoder"]

Outputs = Sequence[Literal["dense", "sparse", "multi_vector"]]


class MultiOutputEncoder(TextEncoder):
    """What makes vectors of several kinds of texts, where the model has heads for them."""

    def encode_all(
        self,
        texts: Iterable[str],
        *,
        role: Role = "document",
        outputs: Outputs | None = None,
        show_progress: bool | None = None,
    ) -> EncodedTexts:
        """Embed texts in several ways with one forward pass each.

        Args:
            texts: Any iterable of strings.
            role: `query` or `document`: whose instruction they get.
            outputs: Some of the model's `spec.outputs`; `None` is all of them.
            show_progress: Overrides the constructor's value.

        Returns:
            The vectors, each kind in input order.

        Raises:
            ConfigurationError: The model has no such output.
            ModelNotFoundError: The model's folder lacks the trained heads.
            InputError: Something is not a string, or too long with `truncation="error"`.
        """
        return run(self._encoded(texts, role, outputs, show_progress))

    async def aencode_all(
        self,
        texts: Iterable[str],
        *,
        role: Role = "document",
        outputs: Outputs | None = None,
        show_progress: bool | None = None,
    ) -> EncodedTexts:
        """Embed texts in several ways without blocking the event loop; see `encode_all`."""
        return await arun(self._encoded(texts, role, outputs, show_progress), STORE.pool)

    def encode_sparse(
        self, texts: Iterable[str], *, role: Role = "document", show_progress: bool | None = None
    ) -> list[dict[int, float]]:
        """Return the lexical weights of each text, token id to weight; see `EncodedTexts.sparse`.

        Texts that were embedded densely just before cost no forward pass, once `expect_sparse` was called.
        """
        return run(self._sparse(texts, role, show_progress))

    async def aencode_sparse(
        self, texts: Iterable[str], *, role: Role = "document", show_progress: bool | None = None
    ) -> list[dict[int, float]]:
        """Return lexical weights without blocking the event loop; see `encode_sparse`."""
        return await arun(self._sparse(texts, role, show_progress), STORE.pool)

    def expect_sparse(self) -> None:
        """Announce that sparse vectors of the texts that are embedded densely will be asked for.

        As long as this object lives, every embedder of the same model then computes both with one forward pass and
        remembers the other until it is asked for.

        Raises:
            ConfigurationError: The model is known to have no sparse output.
        """
        if self.source.known_spec is not None:
            self._check_known(("sparse",))
        STORE.expect_sparse(self, self._model_key)

    def sparse_tokens(self, sparse: Mapping[int, float]) -> dict[str, float]:
        """Return lexical weights by token, as the model's vocabulary writes it, in the order of `sparse`."""
        tokenizing = self._acquire().tokenizing
        return {tokenizing.token(token): weight for token, weight in sparse.items()}

    def output_steps(
        self,
        texts: Sequence[str],
        *,
        bulk: bool = False,
        overlap: int | None = None,
        deadline: Deadline | None = None,
    ) -> Steps[Rows]:
        """Body of the comparison of pairs: all outputs, `TextOutputs` with a dense vector of length 1.

        Args:
            texts: Checked texts.
            bulk: Whether interactive work goes first.
            overlap: Tokens shared by two passages of a text that is too long; `None` cuts it.
            deadline: When to stop.
        """
        self._check_outputs(("sparse", "multi_vector"))
        loaded = self._acquire()
        tokenize = partial(loaded.tokenizing.texts, overlap=overlap)
        rows = yield from self._rows(loaded, texts, tokenize, "all", bulk=bulk, show_progress=False, deadline=deadline)
        unpacked = (unpack_outputs(row) for row in rows.values)
        rows.values = [each._replace(dense=unit_rows(each.dense)) for each in unpacked]
        return rows

    @property
    def _model_key(self) -> tuple[str, str | None]:
        known = self.source.known_spec
        return known.id if known else self.model, self.source.revision

    def _check_known(self, outputs: Sequence[str]) -> None:
        for output in outputs:
            if output not in self.spec.outputs:
                raise ConfigurationError(
                    f"{self.model!r} has no output {output!r}; it has {', '.join(map(repr, self.spec.outputs))}. "
                    "BAAI/bge-m3 has 'dense', 'sparse' and 'multi_vector'."
                )

    def _check_outputs(self, outputs: Sequence[str]) -> None:
        self._check_known(outputs)
        if set(outputs) - {"dense"} and (missing := sorted(set(HEADS) - set(head_files(self.source.folder)))):
            raise ModelNotFoundError(
                f"The folder of {self.model!r} lacks the trained heads {', '.join(missing)} "
                f"(.safetensors or .pt). Fetch them again: bge download {self.model} --force"
            )

    def _encoded(
        self, texts: Iterable[str], role: Role, outputs: Outputs | None, show_progress: bool | None
    ) -> Steps[EncodedTexts]:
        wanted = tuple(self.spec.outputs if outputs is None else outputs)
        checked = check_texts(texts)
        self._check_outputs(wanted)
        if not set(wanted) - {"dense"}:
            dense = yield from self._vectors(checked, role, show_progress)
            return EncodedTexts(dense=dense if wanted else None)
        output: Output = "all" if "multi_vector" in wanted else "lexical"
        distinct = list(dict.fromkeys(checked))
        STORE.counters.add(texts=len(checked), duplicates=len(checked) - len(distinct))
        loaded = self._acquire()
        found = yield from self._heads(loaded, self._applied(distinct, role), role, output, show_progress)
        by_text = dict(zip(distinct, found, strict=True))
        rows = [by_text[text] for text in checked]
        return EncodedTexts(
            dense=self._scaled([row.dense for row in rows]) if "dense" in wanted else None,
            sparse=[row.sparse for row in rows] if "sparse" in wanted else None,
            multi_vector=[row.vectors for row in rows] if "multi_vector" in wanted else None,
        )

    def _sparse(self, texts: Iterable[str], role: Role, show_progress: bool | None) -> Steps[list[dict[int, float]]]:
        checked = check_texts(texts)
        self._check_outputs(("sparse",))
        distinct = list(dict.fromkeys(checked))
        STORE.counters.add(texts=len(checked), duplicates=len(checked) - len(distinct))
        found = yield from self._shared_pass(distinct, role, "sparse", show_progress)
        by_text = dict(zip(distinct, found, strict=True))
        return [dict(by_text[text]) for text in checked]

    def _computed(self, texts: Sequence[str], role: Role, show_progress: bool | None) -> Steps[NDArray[np.float32]]:
        if "sparse" not in self.spec.outputs or not STORE.expects_sparse(self._model_key):
            return (yield from super()._computed(texts, role, show_progress))
        found = yield from self._shared_pass(texts, role, "dense", show_progress)
        return self._scaled(found)

    def _shared_pass(
        self, texts: Sequence[str], role: Role, kind: Kind, show_progress: bool | None
    ) -> Steps[list[Any]]:
        """Return the dense rows, not normalised, or the sparse vectors; remember the other kind."""
        loaded = self._acquire()
        applied = self._applied(texts, role)
        found = loaded.memo.take(kind, self.max_length, applied)
        missing = [index for index, value in enumerate(found) if value is None]
        if missing:
            asked = [applied[index] for index in missing]
            rows = yield from self._heads(loaded, asked, role, "lexical", show_progress)
            views: dict[Kind, Callable[[TextOutputs], Any]] = {
                "dense": lambda row: row.dense,
                "sparse": lambda row: row.sparse,
            }
            other: Kind = "sparse" if kind == "dense" else "dense"
            if STORE.expects_sparse(self._model_key):
                loaded.memo.put(other, self.max_length, asked, [views[other](row) for row in rows])
            for index, row in zip(missing, rows, strict=True):
                found[index] = views[kind](row)
        return found

    def _heads(
        self, loaded: LoadedModel, texts: Sequence[str | Framed], role: Role, output: Output, show_progress: bool | None
    ) -> Steps[list[TextOutputs]]:
        rows = yield from self._rows(
            loaded, texts, loaded.tokenizing.texts, output, bulk=role == "document", show_progress=show_progress
        )
        self._note_truncation(rows.cut, len(texts))
        return [unpack_outputs(row) for row in rows.values]
