"""What every LangChain test may ask for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document

from tests.langchain.subjects import Subjects, choose_subjects

EMBEDDER = "BAAI/bge-small-en-v1.5"
RERANKER = "BAAI/bge-reranker-base"
QUERY = "What is a panda?"


class Runs(BaseCallbackHandler):
    """Keeps what a tracer would see: one row per run, with its parent, its end and its error."""

    run_inline = True  # on the event loop's own thread, so that rows appear in order

    def __init__(self) -> None:
        self.rows: dict[UUID, dict[str, Any]] = {}

    def on_retriever_start(self, serialized: Any, query: str, *, run_id: UUID, **facts: Any) -> None:
        self.rows[run_id] = {"kind": "retriever", "query": query, **facts}

    def on_retriever_end(self, documents: Any, *, run_id: UUID, **facts: Any) -> None:
        self.rows[run_id]["documents"] = documents

    def on_retriever_error(self, error: BaseException, *, run_id: UUID, **facts: Any) -> None:
        self.rows[run_id]["error"] = error

    def on_chain_start(self, serialized: Any, inputs: Any, *, run_id: UUID, **facts: Any) -> None:
        self.rows[run_id] = {"kind": "chain", **facts}

    def named(self, name: str) -> list[dict[str, Any]]:
        return [row for row in self.rows.values() if row.get("name") == name]


class RefusingExecutor(Executor):
    """Stands in for the event loop's threads where nothing may use them."""

    def submit(self, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the event loop's default executor was used")


@pytest.fixture
def runs() -> Runs:
    return Runs()


@pytest.fixture
def documents() -> list[Document]:
    texts = ["the dog slept in the garden", "The giant panda is a bear", "Paris is the capital of France", "cat"]
    return [
        Document(id=f"id-{number}", page_content=text, metadata={"source": {"page": number}})
        for number, text in enumerate(texts)
    ]


@pytest.fixture
def subjects(hub_cache: Path) -> Subjects:
    return choose_subjects()


@pytest.fixture
async def no_default_executor() -> None:
    """The running event loop has no threads to lend."""
    loop = asyncio.get_running_loop()
    # set_default_executor() takes thread pools only.
    loop._default_executor = RefusingExecutor()  # type: ignore[attr-defined]


@pytest.fixture
def same() -> Callable[[Any, Any], bool]:
    """Tell whether two lists of vectors or scores agree within float32's noise."""
    import numpy as np

    return lambda left, right: np.allclose(np.asarray(left), np.asarray(right), atol=1e-5)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "defect(number): number of the defect in DEFECTS.md")
