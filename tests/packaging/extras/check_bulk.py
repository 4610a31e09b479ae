"""`bge embed` writes a part of Parquet, and a second run finds it finished."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet as pq

with tempfile.TemporaryDirectory() as folder:
    texts = Path(folder) / "texts.jsonl"
    texts.write_text('{"id": "a", "text": "The heart pumps blood."}\n{"id": "b", "text": "Lungs take up oxygen."}\n')
    out = Path(folder) / "out"
    command = [Path(sys.executable).parent / "bge", "embed", texts, "--out", out, "--model", sys.argv[1], "--json"]
    for computed in (2, 0):
        told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        assert told["computed"] == computed, told
    assert pq.read_table(out / "part-00000.parquet").column("id").to_pylist() == ["a", "b"]
