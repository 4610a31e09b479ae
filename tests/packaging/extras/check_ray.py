"""A cluster of one machine writes a part, and a run without it finds it finished."""

import sys
import tempfile
from pathlib import Path

from bge_runtime import Embedder
from bge_runtime.bulk import embed_to_parquet

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        texts = Path(folder) / "texts.txt"
        texts.write_text("The heart pumps blood.\nLungs take up oxygen.\n")
        out = Path(folder) / "out"
        assert embed_to_parquet(texts, out, Embedder(sys.argv[1]), ray="local").computed == 2
        assert not embed_to_parquet(texts, out, Embedder(sys.argv[1])).changed
