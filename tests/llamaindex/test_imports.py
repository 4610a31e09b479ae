"""What importing the package brings along."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files

import pytest
from llama_index.core.embeddings.loading import RECOGNIZED_EMBEDDINGS

import llamaindex_bge

HEAVY = ("torch", "transformers", "sentence_transformers", "langchain", "langchain_core", "langchain_bge")


@pytest.fixture(scope="module")
def imported() -> set[str]:
    code = "import sys, llamaindex_bge; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(result.stdout.split())


@pytest.mark.parametrize("module", HEAVY)
def test_import_leaves_heavy_modules_alone(imported: set[str], module: str) -> None:
    assert module not in imported


def test_public_names_are_sorted_and_there() -> None:
    assert llamaindex_bge.__all__ == sorted(llamaindex_bge.__all__)
    assert all(hasattr(llamaindex_bge, name) for name in llamaindex_bge.__all__)


def test_version_is_the_distributions() -> None:
    try:
        expected = version("bge-integrations")
    except PackageNotFoundError:
        expected = "0+unknown"
    assert llamaindex_bge.__version__ == expected


def test_package_is_typed() -> None:
    assert (files("llamaindex_bge") / "py.typed").is_file()


def test_saved_configurations_find_the_class() -> None:
    assert RECOGNIZED_EMBEDDINGS["BGEEmbedding"] is llamaindex_bge.BGEEmbedding
    assert RECOGNIZED_EMBEDDINGS["BGEMultiModalEmbedding"] is llamaindex_bge.BGEMultiModalEmbedding
