"""Ingest with worker processes and a vector cache on disk: what was computed once is never computed again.

LlamaIndex splits and embeds in two processes that share one cache file. The second run, in this process, finds
every vector there; after a change it computes only the chunk that changed.
"""

import argparse
import tempfile
from pathlib import Path

from corpus import read_passages
from llama_index.core import Document
from llama_index.core.ingestion import IngestionPipeline

import bge_runtime
from llamaindex_bge import BGEEmbedding, BGETokenSplitter


def ingest(passages, model, cache, workers=None):
    """Return the nodes, each with its vector."""
    embed_model = BGEEmbedding(model, vector_cache=cache)
    pipeline = IngestionPipeline(transformations=[BGETokenSplitter(embed_model), embed_model], disable_cache=True)
    documents = [Document(id_=name, text=text) for name, text in passages.items()]
    return pipeline.run(documents=documents, num_workers=workers)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=bge_runtime.DEFAULT_OFFLINE_MODEL)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()

    passages = read_passages()
    with tempfile.TemporaryDirectory() as folder:
        cache = bge_runtime.VectorCache(Path(folder) / "vectors.sqlite")
        first = ingest(passages, options.model, cache, workers=options.workers)
        print(f"{options.workers} workers: {len(first)} chunks, {cache.stats.entries} vectors stored")

        before = bge_runtime.stats()["inputs"]
        again = ingest(passages, options.model, cache)
        same = [node.embedding for node in again] == [node.embedding for node in first]
        print(f"again: {bge_runtime.stats()['inputs'] - before:.0f} computed, same vectors: {'yes' if same else 'no'}")

        passages["a12p00"] += " Its name was coined by Antoine Lavoisier."
        ingest(passages, options.model, cache)
        print(f"one passage changed: {bge_runtime.stats()['inputs'] - before:.0f} computed")
        cache.close()


if __name__ == "__main__":
    main()
