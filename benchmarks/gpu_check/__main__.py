"""Check this machine's GPU: vectors, full memory, copies, speed; without one, what a CPU can show of the same.

    python -m benchmarks.gpu_check [--device cuda:0] [--out FOLDER] [--page-only]

Nothing is fetched: all weights are seeded and made here. What needs a package that is missing, and what does not fit
into the time, is named as left out. Takes at most nine minutes on a GPU, about three on two cores without one.
FOLDER gets gpu_check.json, and gpu_check.md and gpu_check.png, which are made of it. The exit status is 1 when a check
failed, 0 otherwise, also without a GPU.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

# Before anything reads them; the exports go into the folder of the run.
os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_PROGRESS_BARS="1", TRANSFORMERS_VERBOSITY="error")

from benchmarks.gpu_check import page
from benchmarks.gpu_check.sections import CPU_SECTIONS, GPU_SECTIONS, about, run_sections
from benchmarks.gpu_check.session import Session

ROOT = Path(__file__).resolve().parents[2]
NAME = "gpu_check.json"


def main(given: Sequence[str] | None = None) -> int:
    """Run everything and write results, page and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", help="cuda:0, mps or cpu; chosen unless given")
    parser.add_argument(
        "--out", type=Path, help="folder of the results; benchmarks/results, or .benchmarks without GPU"
    )
    parser.add_argument("--page-only", action="store_true", help="make page and picture of the results that are there")
    asked = parser.parse_args(given)

    from bge_runtime import choose_device

    device = choose_device(asked.device).device
    usual = ROOT / ".benchmarks" if device == "cpu" else ROOT / "benchmarks" / "results"
    file = (asked.out or usual) / NAME
    if asked.page_only:
        page.write(file)
        return 0
    with tempfile.TemporaryDirectory(prefix="bge-gpu-check-") as place:
        os.environ["BGE_CACHE_DIR"] = str(Path(place, "exports"))
        session = Session(device=device, place=Path(place), file=file)
        session.results = {**about(session), **session.results}
        import_module("sentence_transformers")  # takes long, and would do so in the first section that needs it
        print(
            f"on {session.results['device'].get('kind', device)}" if session.on_gpu else "no GPU here: the CPU's half"
        )
        sections = GPU_SECTIONS if session.on_gpu else CPU_SECTIONS
        run_sections(session, sections, lambda: page.write(file))
    for written in (file, *page.write(file)):
        print(written)
    failed = [each["name"] for each in session.results["checks"] if not each["passed"]]
    print(f"{len(session.results['checks']) - len(failed)} checks passed, {len(failed)} failed")
    for name in failed:
        print(f"FAILED: {name}")
    return 0 if session.passed else 1


if __name__ == "__main__":
    sys.exit(main())
