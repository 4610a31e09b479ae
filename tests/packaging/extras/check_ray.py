"""Ray Data maps a batch of texts to vectors."""

import os
import sys

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray


def embed(batch):
    """Add the vectors of a batch of texts."""
    from bge_runtime import Embedder

    batch["vector"] = Embedder(sys_argv_model).encode_documents(batch["text"].tolist())
    return batch


sys_argv_model = sys.argv[1]
ray.init(num_cpus=1, include_dashboard=False, logging_level="error")
rows = ray.data.from_items([{"text": "one"}, {"text": "two"}]).map_batches(embed).take_all()
assert len(rows) == 2
assert len(rows[0]["vector"]) == 32
ray.shutdown()
