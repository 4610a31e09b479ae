"""What importing the package brings along, and what it can do without."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files

import pytest

import langchain_bge

HEAVY = ("torch", "transformers", "sentence_transformers", "llama_index", "llamaindex_bge", "langchain_community")
WITHOUT_CROSS_ENCODERS = """
import sys
sys.modules["langchain_core.cross_encoders"] = None
from langchain_bge import BGECrossEncoder, BGERerank
print(BGECrossEncoder().score([]), BGERerank().compress_documents([], "q"))
"""


def run_python(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def imported() -> set[str]:
    return set(run_python("import sys, langchain_bge; print(*sys.modules)").split())


@pytest.mark.parametrize("module", HEAVY)
def test_import_leaves_heavy_modules_alone(imported: set[str], module: str) -> None:
    assert module not in imported


def test_constructing_and_showing_leave_torch_alone() -> None:
    # By name: LangChain's older splitters, which a star would bring in, import sentence-transformers.
    code = "import sys; from langchain_bge import BGECrossEncoder, BGEEmbeddings, BGERerank"
    used = "BGEEmbeddings().model_dump(); repr(BGERerank()); BGECrossEncoder()"
    assert run_python(f"{code}; {used}; print('torch' in sys.modules)") == "False\n"


def test_an_older_langchain_core_has_no_cross_encoder_interface_and_loses_nothing_else() -> None:
    assert run_python(WITHOUT_CROSS_ENCODERS) == "[] []\n"


def test_public_names_are_sorted_and_there() -> None:
    assert langchain_bge.__all__ == sorted(langchain_bge.__all__)
    assert all(hasattr(langchain_bge, name) for name in langchain_bge.__all__)


def test_version_is_the_distributions() -> None:
    try:
        expected = version("bge-integrations")
    except PackageNotFoundError:
        expected = "0+unknown"
    assert langchain_bge.__version__ == expected


def test_package_is_typed() -> None:
    assert (files("langchain_bge") / "py.typed").is_file()
