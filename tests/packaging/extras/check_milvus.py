"""pymilvus imports beside the runtime; a server would be needed for more."""

import sys

from pymilvus import DataType, MilvusClient

from bge_runtime import Embedder

schema = MilvusClient.create_schema()
schema.add_field("id", DataType.INT64, is_primary=True)
schema.add_field("vector", DataType.FLOAT_VECTOR, dim=Embedder(sys.argv[1]).dimension)
schema.verify()
