"""A linear map of query vectors, trained against document vectors that stay as they are."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from bge_runtime.errors import ModelNotFoundError, public
from bge_runtime.vectors.similarity import unit_rows

__all__ = ["QUERY_MAP", "QueryMap"]

# Beside a model's weights; a folder without it has none.
QUERY_MAP = "query_map.safetensors"
WEIGHT = "weight"


@public
@dataclass(frozen=True, slots=True, eq=False)
class QueryMap:
    """What is done to a query's vector after pooling.

    Attributes:
        weight: Array float32 of shape (dimension, dimension); a unit vector q becomes `weight @ q`.
    """

    weight: NDArray[np.float32]

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Return the map of a model's folder; `None` where there is none.

        Raises:
            ModelNotFoundError: The file is damaged, or its numbers are no map.
        """
        file = folder / QUERY_MAP
        if not os.path.isfile(file):
            return None
        from safetensors.numpy import load_file

        try:
            weight = np.asarray(load_file(file)[WEIGHT], np.float32)
        except Exception as error:  # the reader has error classes of its own
            raise ModelNotFoundError(
                f"{str(file)!r} cannot be read ({type(error).__name__}: {error}). Copy the model's folder again."
            ) from error
        if weight.ndim != 2 or weight.shape[0] != weight.shape[1] or not np.isfinite(weight).all():
            raise ModelNotFoundError(
                f"{str(file)!r} holds {weight.shape} numbers, not all of them finite or not a square. Copy the model's "
                "folder again, or take the file away to use the model without it."
            )
        return cls(weight)

    def write(self, folder: Path) -> None:
        """Write the map into a model's folder."""
        from safetensors.numpy import save_file

        save_file({WEIGHT: np.ascontiguousarray(self.weight, np.float32)}, folder / QUERY_MAP)

    def apply(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the rows as queries: of any length before, and not of length 1 after."""
        return np.asarray(unit_rows(rows) @ self.weight.T, np.float32)
