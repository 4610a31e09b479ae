"""Compare this project with FlagEmbedding and LM-Cocktail on the seeded checkpoints; exit status 1 where they differ.

    python -m tests.reference.check --python PYTHON_WITH_FLAGEMBEDDING [--label bge-m3 ...] [--write]

`--write` keeps an extract of FlagEmbedding's numbers in tests/data/flagembedding.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.reference.cases import BY_LABEL, Case, request_of

HERE = Path(__file__).parent
DATA = HERE.parent / "data" / "flagembedding"
TOLERANCE = 1e-4
MIX_TOLERANCE = 1e-6
DIGITS = 6


def main(arguments: Sequence[str] | None = None) -> int:
    """Write checkpoints, compute on both sides, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, required=True, help="interpreter of the environment with FlagEmbedding")
    parser.add_argument("--label", nargs="+", choices=BY_LABEL, default=list(BY_LABEL), help="cases to compare")
    parser.add_argument("--write", action="store_true", help="keep an extract of FlagEmbedding's numbers")
    options = parser.parse_args(arguments)
    cases = [BY_LABEL[label] for label in options.label]
    with tempfile.TemporaryDirectory(prefix="bge-reference-") as place:
        folders = place_checkpoints(Path(place), cases)
        result = ask_flagembedding(options.python, Path(place), folders)
        if options.write:
            for case in cases:
                keep(case, folders[case.label], result)
        status = compare(cases, result["answers"])
        return max(status, compare_mixes(options.python, Path(place)))


def place_checkpoints(place: Path, cases: Sequence[Case]) -> dict[str, Path]:
    """Fill a hub cache of this run's own and return each case's folder in it."""
    # The hub's client reads these once, when it is imported.
    os.environ |= {"HF_HOME": str(place), "HF_HUB_CACHE": str(place / "hub"), "HF_HUB_OFFLINE": "1"}
    os.environ["BGE_CACHE_DIR"] = str(place / "bge")
    from tests.checkpoints.hub_cache import BY_NAME, build_hub_cache
    from tests.runtime.references import snapshot_of

    cache = build_hub_cache(place / "hub", tuple(BY_NAME[name] for name in dict.fromkeys(each.model for each in cases)))
    return {case.label: snapshot_of(cache, case.model) for case in cases}


def ask_flagembedding(python: Path, place: Path, folders: dict[str, Path]) -> dict[str, Any]:
    """Run `compute.py` in its environment."""
    request, result = place / "request.json", place / "result.json"
    questions = [request_of(BY_LABEL[label], str(folder)) for label, folder in folders.items()]
    request.write_text(json.dumps(questions), encoding="utf-8")
    quiet = {**os.environ, "TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore"}
    subprocess.run([python, HERE / "compute.py", request, result], check=True, env=quiet)
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return found


def keep(case: Case, folder: Path, result: dict[str, Any]) -> None:
    """Write the extract of one case, with all that tells whether it still fits."""
    import torch

    from tests.reference.ours import extract, fingerprint

    DATA.mkdir(parents=True, exist_ok=True)
    content = {
        "made_by": {**result["versions"], "torch of the checkpoint": torch.__version__},
        "request": request_of(case)["digest"],
        "checkpoint": fingerprint(folder),
        "answer": _short(extract(case, result["answers"][case.label])),
    }
    (DATA / f"{case.label}.json").write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")


def compare(cases: Sequence[Case], answers: dict[str, Any]) -> int:
    """Print one line per kind of result; return the exit status."""
    from tests.reference.ours import answer, differences

    failures = 0
    print(f"\n{'model':46} {'kind':36} {'count':>5}  {'largest difference':>18}  ok")
    for case in cases:
        for name, count, difference in differences(answer(case), answers[case.label]):
            fine = difference <= TOLERANCE
            failures += not fine
            print(f"{case.label:46} {name:36} {count:5}  {difference:18.1e}  {'yes' if fine else 'NO'}", flush=True)
    print(f"\n{failures} of the results are more than {TOLERANCE:g} apart." if failures else "\nAll agree.")
    return int(bool(failures))


def compare_mixes(python: Path, place: Path) -> int:
    """Mix embedders and rerankers here and by LM-Cocktail; print how far the weights are apart."""
    from safetensors.torch import load_file

    from bge_runtime.training import mix
    from tests.checkpoints.hub_cache import Checkpoint, write_checkpoint

    shapes = {
        "encoder": {"name": "a/embedder", "family": "bert", "hidden": 32, "positions": 64, "max_length": 64},
        "reranker": {
            "name": "a/reranker",
            "family": "xlmr",
            "hidden": 128,
            "positions": 514,
            "head": 1,
            "modules": False,
        },
    }
    weights, failures = (0.5, 0.3, 0.2), 0
    print(f"\n{'LM-Cocktail':46} {'kind':36} {'count':>5}  {'largest difference':>18}  ok")
    for kind, shape in shapes.items():
        folders = [
            write_checkpoint(place / f"{kind}-{seed}", Checkpoint(seed=seed, **shape))  # type: ignore[arg-type]
            for seed in (1, 2, 3)
        ]
        pairs = [str(part) for pair in zip(weights, folders, strict=True) for part in pair]
        theirs = place / f"{kind}-theirs"
        subprocess.run([python, HERE / "mix.py", kind, theirs, *pairs], check=True, stdout=subprocess.DEVNULL)
        wanted = load_file(theirs / "model.safetensors")
        found = load_file(mix(folders, place / f"{kind}-ours", weights=weights) / "model.safetensors")
        difference = max(float((found[name] - wanted[name]).abs().max()) for name in wanted)
        fine = wanted.keys() == found.keys() and difference <= MIX_TOLERANCE
        failures += not fine
        print(
            f"{'mix of three':46} {kind:36} {len(wanted):5}  {difference:18.1e}  {'yes' if fine else 'NO'}", flush=True
        )
    return int(bool(failures))


def _short(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _short(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_short(each) for each in value]
    return round(value, DIGITS) if isinstance(value, float) else value


if __name__ == "__main__":
    sys.exit(main())
