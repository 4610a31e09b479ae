"""Vectors go into a Qdrant collection in memory and come back."""

import sys

from qdrant_client import QdrantClient, models

from bge_runtime import Embedder

embedder = Embedder(sys.argv[1])
texts = ["one", "two", "three"]
client = QdrantClient(":memory:")
size = embedder.dimension
client.create_collection("texts", models.VectorParams(size=size, distance=models.Distance.COSINE))
vectors = embedder.encode_documents(texts)
points = [models.PointStruct(id=at, vector=vector.tolist()) for at, vector in enumerate(vectors)]
client.upsert("texts", points)
hit = client.query_points("texts", query=vectors[1].tolist(), limit=1).points[0]
assert hit.id == 1
