"""What every LlamaIndex test may ask for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.callbacks import CallbackManager
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from pydantic import Field

from tests.llamaindex.subjects import EMBEDDER, RERANKER, Subjects, choose_subjects

__all__ = ["EMBEDDER", "EN", "RERANKER", "Callbacks", "Recorder"]

EN = "Represent this sentence for searching relevant passages: "


class Recorder(BaseEventHandler):
    """Keeps every event of LlamaIndex's instrumentation."""

    seen: list[Any] = Field(default_factory=list)

    @classmethod
    def class_name(cls) -> str:
        return "Recorder"

    def handle(self, event: Any, **kwargs: Any) -> None:
        self.seen.append(event)

    def named(self, *names: str) -> list[Any]:
        return [event for event in self.seen if event.class_name() in names]


class Callbacks(BaseCallbackHandler):
    """Keeps the starts and ends of callback events."""

    def __init__(self) -> None:
        super().__init__([], [])
        self.seen: list[tuple[str, str, str, dict[str, Any]]] = []

    def on_event_start(
        self, event_type: Any, payload: Any = None, event_id: str = "", parent_id: str = "", **kwargs: Any
    ) -> str:
        self.seen.append(("start", event_type.value, event_id, payload or {}))
        return event_id

    def on_event_end(self, event_type: Any, payload: Any = None, event_id: str = "", **kwargs: Any) -> None:
        self.seen.append(("end", event_type.value, event_id, payload or {}))

    def start_trace(self, trace_id: str | None = None) -> None:
        """Traces are not what is tested."""

    def end_trace(self, trace_id: str | None = None, trace_map: Any = None) -> None:
        """Traces are not what is tested."""

    def manager(self) -> CallbackManager:
        return CallbackManager([self])

    def balanced(self) -> bool:
        started = [event_id for kind, _, event_id, _ in self.seen if kind == "start"]
        ended = [event_id for kind, _, event_id, _ in self.seen if kind == "end"]
        return bool(started) and sorted(started) == sorted(ended)


@pytest.fixture
def events() -> Iterator[Recorder]:
    """The instrumentation events of the test."""
    recorder = Recorder()
    root = get_dispatcher()
    root.add_event_handler(recorder)
    yield recorder
    root.event_handlers.remove(recorder)


@pytest.fixture
def callbacks() -> Callbacks:
    """A callback handler; pass `callbacks.manager()`."""
    return Callbacks()


@pytest.fixture
def subjects(hub_cache: Path) -> Subjects:
    """The classes whose defects are examined."""
    return choose_subjects(hub_cache)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "defect(number): section and number of the defect in DEFECTS.md")
