"""LlamaIndex's `SimilarityPostprocessor`, on probabilities."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from llama_index.core.bridge.pydantic import ConfigDict, Field, PrivateAttr, ValidationError, field_validator
from llama_index.core.callbacks import CallbackManager
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore, QueryBundle

from bge_runtime import ConfigurationError, InputError, ScoreCalibrator
from bge_runtime.fields import Calibrator, check_items, plain
from llamaindex_bge.embeddings import BGEEmbedding
from llamaindex_bge.notes import annotated

__all__ = ["BGESimilarityPostprocessor"]

COSINE_SLACK = 1e-3  # what rounding adds to a cosine


class BGESimilarityPostprocessor(BaseNodePostprocessor):
    """Turn the cosines of retrieved nodes into probabilities of being relevant, and keep those above a cutoff.

    In the place of LlamaIndex's `SimilarityPostprocessor`, behind a retriever whose scores are cosines, such as that
    of a `VectorStoreIndex` with the default store. Returns copies in the order that comes in.

    Args:
        calibrator: A `bge_runtime.ScoreCalibrator` that was fitted on the cosines of `embed_model`, or the path of its
            file.
        embed_model: What fills and queries the index.
        similarity_cutoff: Lowest probability to keep; `None` keeps all.
        callback_manager: As every postprocessor takes one.

    Raises:
        ConfigurationError: An argument has a value that is not allowed, or, at the first call, the calibrator was
            fitted on something else than `embed_model`.

    Examples:
        ```python
        from llamaindex_bge import BGEEmbedding, BGESimilarityPostprocessor

        embed_model = BGEEmbedding(model_name="BAAI/bge-small-en-v1.5")
        keep = BGESimilarityPostprocessor(calibrator="calibrator.json", embed_model=embed_model, similarity_cutoff=0.5)
        ```
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    similarity_cutoff: float | None = Field(
        default=None, ge=0, le=1, description="Lowest probability to keep; None keeps all."
    )
    calibrator: Calibrator
    embed_model: BGEEmbedding = Field(description="What fills and queries the index.")

    _used: ScoreCalibrator = PrivateAttr()

    def __init__(
        self,
        *,
        calibrator: ScoreCalibrator | str | os.PathLike[str] | Mapping[str, Any],
        embed_model: BGEEmbedding | Mapping[str, Any],
        similarity_cutoff: float | None = None,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        """Check the options and read the calibrator; load nothing."""
        services = {} if callback_manager is None else {"callback_manager": callback_manager}
        try:
            super().__init__(
                calibrator=plain("calibrator", calibrator),
                embed_model=embed_model,
                similarity_cutoff=similarity_cutoff,
                **services,
            )
        except ValidationError as error:
            raise ConfigurationError.from_validation("BGESimilarityPostprocessor", error.errors()) from error
        if self.calibrator is None:
            raise ConfigurationError(
                "BGESimilarityPostprocessor got calibrator=None. Pass a ScoreCalibrator, or the path of its file."
            )
        self._used = ScoreCalibrator.of(self.calibrator)

    @classmethod
    def class_name(cls) -> str:
        """Return the name that dumps carry."""
        return "BGESimilarityPostprocessor"

    @field_validator("embed_model", mode="before")
    @classmethod
    def _from_dump(cls, value: Any) -> Any:
        return BGEEmbedding.from_dict(dict(value)) if isinstance(value, Mapping) else value

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        self._used.check(self.embed_model.embedder)
        cosines = [_cosine(index, node) for index, node in enumerate(check_items(nodes, "nodes", "NodeWithScore"))]
        # In float32, as rerankers give theirs, and as the thresholds of calibrators are noted.
        found = self._used.probabilities(np.asarray(cosines, np.float32)).astype(np.float32)
        cutoff = -1.0 if self.similarity_cutoff is None else self.similarity_cutoff
        return [
            NodeWithScore(node=annotated(node.node, {}), score=float(probability))
            for node, probability in zip(nodes, found, strict=True)
            if probability >= np.float32(cutoff)
        ]


def _cosine(index: int, node: Any) -> float:
    if not isinstance(node, NodeWithScore):
        raise InputError(f"nodes[{index}] is {type(node).__name__}; pass NodeWithScore(node=..., score=...).")
    if node.score is None or not abs(node.score) <= 1 + COSINE_SLACK:
        raise InputError(
            f"nodes[{index}] has the score {node.score!r}, which is no cosine. Put BGESimilarityPostprocessor directly "
            "behind a retriever that gives cosines, before any reranker."
        )
    return node.score
