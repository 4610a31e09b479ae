"""The shape of the house: no circles, no long stairs, few calls on the way, public classes that may move inside."""

from __future__ import annotations

import ast
import pickle
from pathlib import Path

import pytest

import bge_runtime

ROOT = Path(bge_runtime.__file__).parents[1]
PACKAGES = ("bge_runtime", "langchain_bge", "llamaindex_bge")
LONGEST_CHAIN = 16


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(file): file for package in PACKAGES for file in (ROOT / package).rglob("*.py")}


def imported(node: ast.AST) -> set[str]:
    """The names of modules that a node imports at run time, inside functions too."""
    found: set[str] = set()
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import):
            found |= {alias.name for alias in child.names}
        elif isinstance(child, ast.ImportFrom) and child.module:
            submodules = {f"{child.module}.{alias.name}" for alias in child.names}
            found |= (submodules & FILES.keys()) or {child.module}
        found |= imported(child)
    return found


IMPORTS = {
    name: (imported(ast.parse(file.read_text(encoding="utf-8"))) & FILES.keys()) - {name}
    for name, file in FILES.items()
}


def longest_chain(name: str, above: tuple[str, ...] = ()) -> list[str]:
    """The longest way down from a module; fails on a circle."""
    if name in above:
        pytest.fail(f"circle: {' -> '.join((*above, name))}")
    if name not in CHAINS:
        below = [longest_chain(each, (*above, name)) for each in sorted(IMPORTS[name])]
        CHAINS[name] = [name, *max(below, key=len, default=[])]
    return CHAINS[name]


CHAINS: dict[str, list[str]] = {}


def test_no_module_imports_itself_on_a_detour() -> None:
    assert len(FILES) > 100
    for name in FILES:
        longest_chain(name)


def test_the_stairs_of_the_runtime_are_short() -> None:
    chain = max((longest_chain(name) for name in FILES if name.startswith("bge_runtime")), key=len)
    assert len(chain) <= LONGEST_CHAIN, " -> ".join(chain)


@pytest.mark.parametrize("name", bge_runtime.__all__)
def test_a_public_class_names_its_public_module(name: str) -> None:
    value = getattr(bge_runtime, name)
    if isinstance(value, type):
        assert value.__module__ == "bge_runtime"
        assert pickle.loads(pickle.dumps(value)) is value


@pytest.mark.parametrize(
    "value",
    [
        bge_runtime.Embedder("BAAI/bge-small-en-v1.5", max_length=64),
        bge_runtime.Reranker("BAAI/bge-reranker-base", normalize=True),
        bge_runtime.VectorCache(max_bytes=9),
        bge_runtime.get_spec("BAAI/bge-m3"),
        bge_runtime.TokenIndex("BAAI/bge-small-en-v1.5"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_pickle_names_no_inner_module(value: object) -> None:
    pickled = pickle.dumps(value)
    assert b"bge_runtime" in pickled
    assert not [name for name in FILES if name.startswith("bge_runtime.") and name.encode() in pickled]
    assert repr(pickle.loads(pickled)) == repr(value)
