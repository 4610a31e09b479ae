"""What importing costs, and that no package needs what it should not."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import bge_runtime

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "sentence_transformers", "numpy", "huggingface_hub", "tokenizers", "pydantic")


def python(*arguments):
    """Run the interpreter on the source tree."""
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_importing_the_runtime_imports_nothing_heavy():
    done = python("-c", "import sys, bge_runtime; print(*sys.modules)")
    modules = done.stdout.split()
    assert "bge_runtime.errors" in modules
    assert [name for name in HEAVY if name in modules] == []


def test_importing_the_runtime_takes_less_than_150_milliseconds():
    fastest = min(_import_seconds() for _ in range(3))
    assert fastest < 0.15


def test_the_model_table_can_be_read_without_torch():
    script = (
        "import sys, bge_runtime\n"
        "bge_runtime.get_spec('bge-m3'), bge_runtime.list_models()\n"
        "assert 'torch' not in sys.modules, 'torch'"
    )
    done = python("-c", script)
    assert done.returncode == 0, done.stderr


def test_constructing_imports_no_torch():
    script = (
        "import sys, bge_runtime\n"
        "print(bge_runtime.Embedder('bge-m3').dimension, bge_runtime.Reranker().max_length)\n"
        "assert 'torch' not in sys.modules, 'torch'"
    )
    done = python("-c", script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1024", "512"]


@pytest.mark.parametrize(
    ("package", "absent"),
    [
        ("bge_runtime", ("langchain_core", "llama_index", "pydantic")),
        ("langchain_bge", ("llama_index", "langchain_classic", "langchain_community")),
        ("llamaindex_bge", ("langchain_core", "langchain")),
    ],
)
def test_a_package_imports_where_the_other_framework_is_absent(package, absent):
    script = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({absent!r}))\n"
        f"import {package}\n"
        f"print([getattr({package}, name) for name in {package}.__all__] != [])"
    )
    done = python("-c", script)
    assert done.stdout.split() == ["True"], done.stderr


def test_every_public_name_exists_and_is_listed_once():
    assert len(set(bge_runtime.__all__)) == len(bge_runtime.__all__)
    assert all(getattr(bge_runtime, name) is not None for name in bge_runtime.__all__)
    assert set(bge_runtime.__all__) <= set(dir(bge_runtime))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = bge_runtime.nonsense


def _import_seconds():
    done = python("-X", "importtime", "-c", "import bge_runtime")
    (line,) = re.findall(r"\|\s*(\d+) \| bge_runtime\n", done.stderr)
    return int(line) / 1e6
