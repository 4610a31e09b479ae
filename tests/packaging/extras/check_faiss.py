"""Vectors go into a faiss index and come back."""

import sys

from faiss import IndexFlatIP

from bge_runtime import Embedder

vectors = Embedder(sys.argv[1]).encode_documents(["one", "two", "three"])
index = IndexFlatIP(vectors.shape[1])
index.add(vectors)
_, found = index.search(vectors[1:2], 1)
assert found[0, 0] == 1
