"""Whose classes `test_defects*.py` examine: ours, or with BGE_TESTS_INCUMBENT=1 those that LlamaIndex ships.

The test bodies are the same for both; only construction, and how the forward pass is watched, differ.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.checkpoints.hub_cache import commit_of

__all__ = [
    "EMBEDDER",
    "RERANKER",
    "Subjects",
    "choose_subjects",
    "cls_vectors",
    "last_vector",
    "no_waiting",
    "snapshot",
]

INCUMBENT = bool(os.environ.get("BGE_TESTS_INCUMBENT"))
EMBEDDER = "BAAI/bge-small-en-v1.5"
RERANKER = "BAAI/bge-reranker-base"


class Subjects(ABC):
    """Builds the classes under examination."""

    packages: tuple[str, ...]

    @abstractmethod
    def embedding(self, model: str = EMBEDDER, **options: Any) -> Any:
        """An embedding; options are named as HuggingFaceEmbedding and BaseEmbedding name them."""

    @abstractmethod
    def reranker(
        self, model: str = RERANKER, *, like: Literal["package", "core", "flag"] = "package", **options: Any
    ) -> Any:
        """A reranker; `like` names the incumbent class that has the defect."""

    @abstractmethod
    def counting(self, patch: pytest.MonkeyPatch) -> Callable[[], tuple[int, int]]:
        """Return a function that says how many forward passes and how many inputs there were since."""

    @abstractmethod
    def break_forward(self, patch: pytest.MonkeyPatch) -> list[int]:
        """Let every forward pass raise RuntimeError("device lost"); the list grows with each attempt."""

    @abstractmethod
    def count_tokens(self, embedding: Any, texts: list[str]) -> Any:
        """Count the tokens of uncut texts."""


class Ours(Subjects):
    packages = ("llamaindex_bge",)

    def embedding(self, model: str = EMBEDDER, **options: Any) -> Any:
        from llamaindex_bge import BGEEmbedding

        return BGEEmbedding(model, **options)

    def reranker(
        self, model: str = RERANKER, *, like: Literal["package", "core", "flag"] = "package", **options: Any
    ) -> Any:
        from llamaindex_bge import BGERerank

        return BGERerank(model, **options)

    def counting(self, patch: pytest.MonkeyPatch) -> Callable[[], tuple[int, int]]:
        import bge_runtime

        before = bge_runtime.stats()
        names = ("batches", "inputs")
        return lambda: tuple(int(bge_runtime.stats()[name] - before[name]) for name in names)  # type: ignore[return-value]

    def break_forward(self, patch: pytest.MonkeyPatch) -> list[int]:
        from bge_runtime.backends.registry import backend_names, find_backend

        modules = [import_module(find_backend(name).module) for name in backend_names()]
        return _broken(patch, [each for module in modules for each in _classes_with_forward(module)])

    def count_tokens(self, embedding: Any, texts: list[str]) -> Any:
        return embedding.embedder.count_tokens(texts)


class Incumbents(Subjects):
    packages = (
        "llama_index.embeddings.huggingface",
        "llama_index.postprocessor.sbert_rerank",
        "llama_index.postprocessor.flag_embedding_reranker",
    )

    def __init__(self, hub_cache: Path) -> None:
        self._cache = str(hub_cache)

    def embedding(self, model: str = EMBEDDER, **options: Any) -> Any:
        from llama_index.embeddings.huggingface import HuggingFaceEmbedding

        return HuggingFaceEmbedding(model, **{"cache_folder": self._cache, "device": "cpu", **options})

    def reranker(
        self, model: str = RERANKER, *, like: Literal["package", "core", "flag"] = "package", **options: Any
    ) -> Any:
        if like == "flag":
            from llama_index.postprocessor.flag_embedding_reranker import FlagEmbeddingReranker as Reranker
        elif like == "core":
            from llama_index.core.postprocessor import SentenceTransformerRerank as Reranker
        else:
            from llama_index.postprocessor.sbert_rerank import SentenceTransformerRerank as Reranker
        return Reranker(model=model, **options)

    def counting(self, patch: pytest.MonkeyPatch) -> Callable[[], tuple[int, int]]:
        sizes: list[int] = []
        for kind in _model_classes():
            patch.setattr(kind, "forward", _counted(kind.forward, sizes))
        return lambda: (len(sizes), sum(sizes))

    def break_forward(self, patch: pytest.MonkeyPatch) -> list[int]:
        return _broken(patch, _model_classes())

    def count_tokens(self, embedding: Any, texts: list[str]) -> Any:
        return embedding._model.tokenizer(texts, truncation=False, padding=False)


def choose_subjects(hub_cache: Path) -> Subjects:
    return Incumbents(hub_cache) if INCUMBENT else Ours()


def snapshot(hub_cache: Path, model: str) -> Path:
    """Folder of a model in the hub cache."""
    return hub_cache / f"models--{model.replace('/', '--')}" / "snapshots" / commit_of(model)


def cls_vectors(folder: Path, texts: list[str]) -> Any:
    """What plain transformers make of the texts: the first token's state, with length 1."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder).eval()
    batch = AutoTokenizer.from_pretrained(folder)(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        states = model(**batch).last_hidden_state[:, 0]
    return torch.nn.functional.normalize(states).numpy()


def last_vector(folder: Path, text: str) -> Any:
    """What plain transformers make of a text: the last token's state, with length 1."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        states = model(**AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")).last_hidden_state
    return torch.nn.functional.normalize(states[0, -1], dim=0).numpy()


@contextmanager
def no_waiting(patch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Make sleeping instant and note how long it would have been."""
    waits: list[float] = []
    with patch.context() as inner:
        inner.setattr("time.sleep", waits.append)
        yield waits


def _model_classes() -> list[Any]:
    from transformers import BertModel, XLMRobertaForSequenceClassification

    return [BertModel, XLMRobertaForSequenceClassification]


def _classes_with_forward(module: Any) -> list[Any]:
    own = [each for each in vars(module).values() if getattr(each, "__module__", "") == module.__name__]
    return [each for each in own if isinstance(each, type) and hasattr(each, "forward")]


def _counted(forward: Callable[..., Any], sizes: list[int]) -> Callable[..., Any]:
    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        sizes.append(len(ids))
        return forward(self, *args, **kwargs)

    return counted


def _broken(patch: pytest.MonkeyPatch, kinds: list[Any]) -> list[int]:
    attempts: list[int] = []

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        attempts.append(1)
        raise RuntimeError("device lost")

    for kind in kinds:
        patch.setattr(kind, "forward", forward)
    return attempts
