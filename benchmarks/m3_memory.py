"""Memory that hybrid scores of many pairs take beyond the loaded model (Linux).

A seeded bge-m3 of two layers (hidden size 1024, its three heads) scores pairs of distinct queries and distinct
documents of 512 tokens in float32 on the processor. Exit status 1 when the peak is 1 GiB or more over what the
process held once the weights were loaded.

    python -m benchmarks.m3_memory [--pairs 2000] [--text english|chinese] [--flagembedding PYTHON]

`--flagembedding` names the interpreter of an environment with FlagEmbedding (`make reference-check` builds
.reference/bin/python) and runs its `compute_score`, with its own batch size, on the same pairs for comparison.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

MODEL = "BAAI/bge-m3"
WEIGHTS = (0.4, 0.2, 0.4)
LIMIT_MIB = 1024
DOCUMENT_TOKENS, QUERY_TOKENS = 512, 16
ROOT = Path(__file__).resolve().parents[1]


def make_pairs(count: int, text: str) -> list[tuple[str, str]]:
    """Return pairs of texts that the small vocabulary reads word by word, all distinct.

    In Chinese a token is one character, so that estimates of tokens from the length of a text are at their lowest.
    """
    from tests.checkpoints.encoder_tokenizers import CHINESE, FULL_WIDTH, vocabulary

    if text == "chinese":
        words, between = sorted(set(CHINESE) - set(FULL_WIDTH) - set("\n")), ""
    else:
        words = [piece[1:] for piece in vocabulary("xlmr") if piece.startswith("▁") and len(piece) > 3]
        between = " "
    dice = random.Random(0)
    # A document is as much too long as may be needed; its end is cut.
    return [
        (
            between.join(dice.choices(words, k=QUERY_TOKENS)),
            between.join(dice.choices(words, k=DOCUMENT_TOKENS + 8)),
        )
        for _ in range(count)
    ]


def score_ours(folder: str, pairs: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Score with this project."""
    from bge_runtime import Reranker

    reranker = Reranker(
        folder,
        base_model=MODEL,
        mode="hybrid",
        weights=WEIGHTS,
        max_length=DOCUMENT_TOKENS,
        truncation="silent",
        device="cpu",
    )
    reranker.warm_up()
    return measured(lambda: reranker.score_pairs([(one, two) for one, two in pairs], show_progress=True).tolist())


def score_theirs(folder: str, pairs: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Score with FlagEmbedding; runs in its environment."""
    from FlagEmbedding import BGEM3FlagModel

    model = BGEM3FlagModel(folder, use_fp16=False, devices=["cpu"])
    lengths = {"max_query_length": DOCUMENT_TOKENS, "max_passage_length": DOCUMENT_TOKENS}
    return measured(
        lambda: model.compute_score(
            [(one, two) for one, two in pairs], weights_for_different_modes=list(WEIGHTS), **lengths
        )["colbert+sparse+dense"]
    )


def measured(work: Callable[[], list[float]]) -> dict[str, Any]:
    """Run `work`; return its scores, the MiB of resident memory before it, and the MiB of its peak over that."""
    gc.collect()
    # Makes the kernel count the peak anew; see proc(5).
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = resident_mib("VmRSS")
    scores = work()
    return {"scores": scores, "loaded_mib": before, "peak_mib": resident_mib("VmHWM") - before}


def resident_mib(field: str) -> float:
    """Return a size of this process: `VmRSS` is what it holds, `VmHWM` the most it held."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = (line for line in status.splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) / 1024


def run(python: Path | str, side: str, folder: Path, pairs: Path) -> dict[str, Any]:
    """Score in a process of its own; one that is killed for its memory is a result, too."""
    result = pairs.with_name(f"{side}.json")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "PYTHONPATH": str(ROOT)}
    command = [python, __file__, "--score", side, folder, pairs, result]
    status = subprocess.run(command, env=environment).returncode
    if status:
        print(f"{side}: the process ended with status {status}")
        return {}
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    print(f"{side:18} {found['loaded_mib']:6.0f} MiB loaded, {found['peak_mib']:6.0f} MiB more at the peak", flush=True)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--text", choices=("english", "chinese"), default="english")
    parser.add_argument("--flagembedding", type=Path, help="interpreter of an environment with FlagEmbedding")
    parser.add_argument("--score", nargs=4, help=argparse.SUPPRESS)  # side, folder, pairs, result: what `run` starts
    options = parser.parse_args(arguments)
    if options.score:
        side, folder, file, result = options.score
        found = SIDES[side](folder, json.loads(Path(file).read_text(encoding="utf-8")))
        Path(result).write_text(json.dumps(found), encoding="utf-8")
        return 0
    from tests.checkpoints.hub_cache import BY_NAME, write_checkpoint

    with tempfile.TemporaryDirectory(prefix="bge-m3-memory-") as place:
        folder = write_checkpoint(Path(place, "bge-m3"), BY_NAME[MODEL])
        file = Path(place, "pairs.json")
        file.write_text(json.dumps(make_pairs(options.pairs, options.text)), encoding="utf-8")
        ours = run(sys.executable, OURS, folder, file)
        if ours and options.flagembedding and (theirs := run(options.flagembedding, THEIRS, folder, file)):
            apart = max(abs(a - b) for a, b in zip(ours["scores"], theirs["scores"], strict=True))
            print(f"largest difference of a score: {apart:.1e}")
    if not ours or ours["peak_mib"] >= LIMIT_MIB:
        print(f"TOO MUCH: at most {LIMIT_MIB} MiB over the loaded model are stated", file=sys.stderr)
        return 1
    return 0


OURS, THEIRS = "bge-integrations", "FlagEmbedding"
SIDES = {OURS: score_ours, THEIRS: score_theirs}

if __name__ == "__main__":
    sys.exit(main())
