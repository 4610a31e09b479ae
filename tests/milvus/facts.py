"""What Milvus is filled with in both frameworks, and the scores that a search of it must give."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

from bge_runtime import Embedder

__all__ = ["FACTS", "M3", "QUERY", "WITHOUT_WEIGHTS", "Scores", "lite_file", "release"]

M3 = "BAAI/bge-m3"
QUERY = "the dog slept in the garden"
WITHOUT_WEIGHTS = "boils"  # for the seeded checkpoint; with the real one, a text of unknown characters
FACTS = {
    "panda": ("The giant panda is a bear species endemic to China.", "animals"),
    "dog": ("the dog slept in the garden while the cat sat on the mat", "animals"),
    "paris": ("Paris is the capital of France and it eats the garden", "cities"),
    "berlin": ("Berlin is the capital of Germany", "cities"),
    "fox": ("The quick brown fox jumps over the lazy dog", "animals"),
    "blank": ("", "none"),
}


class Scores(NamedTuple):
    """Scores by name: dense of all documents, lexical of those that share a token with the query."""

    dense: dict[str, float]
    lexical: dict[str, float]

    @classmethod
    def of(cls, query: str, names: list[str]) -> Scores:
        """Compute them without a store, and without the classes under test."""
        embedder = Embedder(M3)
        asked = embedder.encode_all([query], role="query", outputs=("dense", "sparse"))
        found = embedder.encode_all([FACTS[name][0] for name in names], outputs=("dense", "sparse"))
        lexical = [sum(asked.sparse[0].get(token, 0) * weight for token, weight in row.items()) for row in found.sparse]
        return cls(
            dict(zip(names, (found.dense @ asked.dense[0]).tolist(), strict=True)),
            {name: score for name, score in zip(names, lexical, strict=True) if score > 0},
        )

    def by_rank(self) -> dict[str, float]:
        """Reciprocal rank fusion with k = 60."""
        fused = dict.fromkeys(self.dense, 0.0)
        for scores in self:
            for rank, name in enumerate(sorted(scores, key=lambda each: -scores[each]), start=1):
                fused[name] += 1 / (60 + rank)
        return fused

    def by_weight(self, dense: float, lexical: float) -> dict[str, float]:
        """Milvus' weighted sum: inner products are brought to the interval from 0 to 1 by an arc tangent."""
        parts = ((dense, self.dense), (lexical, self.lexical))
        return {
            name: sum(weight * (0.5 + math.atan(scores[name]) / math.pi) for weight, scores in parts if name in scores)
            for name in self.dense
        }


def lite_file(folder: Path) -> str:
    """Name of the file that Milvus Lite keeps in a folder."""
    return str(folder / "milvus.db")


def release(folder: Path) -> None:
    """Stop the server thread of the file, so that another process may open it."""
    from milvus_lite.server_manager import server_manager_instance

    server_manager_instance.release_server(lite_file(folder))
