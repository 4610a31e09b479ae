"""Identities and cache keys are the same bytes for ever: indexes and caches in the field carry them.

The weights are made-up bytes, so that no version of torch can change them. `python -m
tests.runtime.test_golden_identities` prints what `tests/data/identities.json` holds; a difference there means that
users must fill their indexes anew.
"""

from __future__ import annotations

import inspect
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bge_runtime import Embedder, Reranker, TokenIndex, VectorCache, bind_index
from tests.checkpoints.hub_cache import BY_NAME, files_of, place_in_hub_cache

GOLDEN = Path(__file__).parents[1] / "data" / "identities.json"
EN, ZH, M3 = "BAAI/bge-small-en-v1.5", "BAAI/bge-small-zh-v1.5", "BAAI/bge-m3"
RERANKER, LAYERWISE = "BAAI/bge-reranker-base", "BAAI/bge-reranker-v2-minicpm-layerwise"
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
EMBEDDERS: dict[str, dict[str, Any]] = {
    "minilm": {"model": MINILM},
    "en": {"model": EN},
    "en, no instruction": {"model": EN, "query_instruction": ""},
    "en, document instruction": {"model": EN, "document_instruction": "passage: "},
    "en, legacy": {"model": EN, "legacy": True},
    "en, shorter": {"model": EN, "truncate_dim": 16, "max_length": 64, "normalize": False},
    "en, int8": {"model": EN, "precision": "int8"},
    "en, loading arguments": {"model": EN, "config_kwargs": {"hidden_act": "relu"}, "model_kwargs": {"dtype": "auto"}},
    "zh": {"model": ZH},
    "llm-embedder, task": {"model": "BAAI/llm-embedder", "task": "chat"},
    "m3": {"model": M3},
    "gemma2": {"model": "BAAI/bge-multilingual-gemma2"},
    "icl": {"model": "BAAI/bge-en-icl", "examples": [{"query": "a", "response": "b", "instruct": "c"}]},
}
RERANKERS: dict[str, dict[str, Any]] = {
    "base": {"model": RERANKER},
    "base, sigmoid": {"model": RERANKER, "normalize": True, "max_length": 128},
    "base, passages": {"model": RERANKER, "long_document": "max_passage", "passage_overlap": 32},
    "v2-m3": {"model": "BAAI/bge-reranker-v2-m3"},
    "gemma, prompt": {"model": "BAAI/bge-reranker-v2-gemma", "prompt": "Is B about A?"},
    "layerwise, 20": {"model": LAYERWISE, "cutoff_layers": 20},
    "lightweight": {"model": "BAAI/bge-reranker-v2.5-gemma2-lightweight", "compress_ratio": 4, "compress_layers": [8]},
    "late minilm": {"model": MINILM},
    "late en": {"model": EN},
    "late en, pooled": {"model": EN, "token_pooling": 2},
    "late m3": {"model": M3},
    "late m3, hybrid": {"model": M3, "mode": "hybrid", "weights": (0.5, 0.2, 0.3)},
}
LATE = [name for name in RERANKERS if name.startswith("late")]


class Recording(VectorCache):
    """Finds every text, so that nothing is computed, and notes under which identity it was asked for."""

    def __init__(self, numbers: list[float]) -> None:
        super().__init__()
        self.asked: list[str] = []
        self._numbers = np.array(numbers, np.float32)

    def get(self, identity: str, texts: Any) -> list[Any]:
        self.asked.append(identity)
        return [self._numbers for _ in texts]


def golden(cache: Path, scratch: Path) -> dict[str, Any]:
    """Compute every identity and key that may be stored somewhere."""
    names = {each["model"] for each in (*EMBEDDERS.values(), *RERANKERS.values())} - {MINILM}
    for name in names:
        weights = (".safetensors", ".bin", ".pt")
        files = files_of(BY_NAME[name])
        place_in_hub_cache(
            cache, name, {path: path.encode() if path.endswith(weights) else held for path, held in files.items()}
        )
    found: dict[str, Any] = {}
    for label, options in EMBEDDERS.items():
        embedder = Embedder(**options, cache_folder=str(cache))
        found[f"embedder {label}"] = [embedder.identity, embedder.document_identity, embedder.token_identity]
        asking = Embedder(**options, cache_folder=str(cache), vector_cache=(seen := Recording([1.0] * 8)))
        asking.encode_queries(["a"])
        asking.encode_documents(["a"])
        found[f"cache {label}"] = seen.asked
    found["outputs m3"] = Embedder(M3, cache_folder=str(cache)).output_identity
    for label, options in RERANKERS.items():
        found[f"reranker {label}"] = Reranker(**options, cache_folder=str(cache)).identity
    for label in LATE:
        options = {**RERANKERS[label], "cache_folder": str(cache)}
        numbers = [0, 1, 1, 1] if options.get("mode") else [1, 1]
        Reranker(**options, vector_cache=(seen := Recording(numbers))).score("a", ["b"])
        found[f"cache {label}"] = seen.asked
        if not options.get("mode"):
            index = TokenIndex(Reranker(**options))
            index.save(scratch / label)
            found[f"token index {label}"] = _record(scratch / label)
    bind_index(scratch / "bound", Embedder(EN, cache_folder=str(cache)))
    found["bound index"] = json.loads((scratch / "bound" / "bge-index.json").read_text(encoding="utf-8"))
    found["key in a cache file"] = _stored_key(scratch / "vectors.db")
    for kind in (Embedder, Reranker):
        found[f"arguments of {kind.__name__}"] = {
            name: repr(each.default) for name, each in inspect.signature(kind).parameters.items()
        }
    return {**found, **_frameworks(cache)}


def _record(folder: Path) -> dict[str, str]:
    """Return what the header of the saved index says."""
    (file,) = folder.iterdir()
    content = file.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return dict(sorted(header["__metadata__"].items()))


def _stored_key(file: Path) -> list[str]:
    import sqlite3

    cache = VectorCache(file)
    cache.put("identity", ["text"], [np.ones(2, np.float32)])
    cache.close()
    connection = sqlite3.connect(file)
    (table,) = connection.execute(
        "select name from sqlite_master where type = 'table' and name like 'vector%'"
    ).fetchone()
    keys = [row[0].hex() for row in connection.execute(f"select key from {table}")]
    connection.close()
    return keys


def _frameworks(cache: Path) -> dict[str, Any]:
    from langchain_core.load import dumpd
    from llama_index.core.storage.kvstore import SimpleKVStore

    import langchain_bge
    import llamaindex_bge
    from langchain_bge import BGEEmbeddings
    from llamaindex_bge import BGEEmbedding

    found: dict[str, Any] = {}
    for label, options in EMBEDDERS.items():
        options = {**options, "cache_folder": str(cache)}
        model = options.pop("model")
        ours = BGEEmbeddings(model, **options)
        found[f"langchain {label}"] = [ours.cache_namespace("query"), ours.cache_namespace("document")]
        if "document_instruction" in options:
            options["text_instruction"] = options.pop("document_instruction")
        dump = BGEEmbedding(model, **options).to_dict()
        found[f"llamaindex {label}"] = json.loads(json.dumps(dump))
    for label, made in {
        "langchain embeddings": BGEEmbeddings(EN, embed_instruction="passage: ", batch_size=3),
        "langchain reranker": langchain_bge.BGERerank(M3, mode="hybrid", top_k=5),
        "langchain cross encoder": langchain_bge.BGECrossEncoder(RERANKER),
    }.items():
        found[f"dump {label}"] = dumpd(made)["kwargs"]
    found["dump llamaindex reranker"] = llamaindex_bge.BGERerank(model=M3, mode="hybrid", top_n=5).to_dict()
    store = SimpleKVStore()
    computed = Embedder(EN, cache_folder=str(cache), vector_cache=Recording([1.0]))
    BGEEmbedding(embedder=computed, embeddings_cache=store).get_text_embedding("a")
    found["llamaindex key"] = store.to_dict()
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return golden(tmp_path_factory.mktemp("hub"), tmp_path_factory.mktemp("indexes"))


def test_nothing_is_left_out(found: dict[str, Any]) -> None:
    assert found.keys() == json.loads(GOLDEN.read_text(encoding="utf-8")).keys()


@pytest.mark.parametrize("name", json.loads(GOLDEN.read_text(encoding="utf-8")))
def test_what_the_field_carries_stays_the_same(found: dict[str, Any], name: str) -> None:
    assert found[name] == json.loads(GOLDEN.read_text(encoding="utf-8"))[name]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        sys.stdout.write(json.dumps(golden(Path(one), Path(two)), indent=1, ensure_ascii=False))
