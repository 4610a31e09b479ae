"""What a run writes into the metadata of nodes: on copies, in place of what an earlier run wrote."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from llama_index.core.schema import BaseNode

__all__ = ["PARTIAL", "RETRIEVAL_SCORE", "annotated"]

RETRIEVAL_SCORE = "retrieval_score"
PARTIAL = "partial_ranking"
EXCLUDED = ("excluded_embed_metadata_keys", "excluded_llm_metadata_keys")


def annotated(node: BaseNode, notes: Mapping[str, Any]) -> BaseNode:
    """Return a copy that shares nothing that can change with the node.

    The notes are in its metadata, but not in the text that models read. `partial_ranking` is there only where it is
    among them; `retrieval_score` stays, since the figure of the retrieval outlives two rerankers in a row.
    """
    # What an IndexNode stands for is a reference: a whole query engine, perhaps.
    referred = getattr(node, "obj", None)
    try:
        copy = deepcopy(node, {id(referred): referred})
    except Exception:  # noqa: BLE001 - a lock or an open file in the metadata: what cannot be copied is shared
        copy = node.model_copy()
    stale = {PARTIAL, *notes}
    kept = {key: value for key, value in copy.metadata.items() if key not in stale}
    hidden = {keys: [*(key for key in getattr(copy, keys) if key not in stale), *notes] for keys in EXCLUDED}
    return copy.model_copy(update={"metadata": {**kept, **notes}, **hidden})
