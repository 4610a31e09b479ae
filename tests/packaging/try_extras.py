"""Install the wheel with each extra in an empty environment of its own and try it.

    python -m tests.packaging.try_extras [--torch torch==2.13.0] [EXTRA ...]

Without names: every extra of pyproject.toml, and the wheel without any ("none"). Exit status 1 if one fails.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.packaging.project import ROOT, extras

CHECKS = Path(__file__).resolve().parent / "extras"
NONE, ALL = "none", "all"
WORDS = (
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "one",
    "two",
    "three",
    "words",
    "heart",
    "blood",
    "pumps",
)


def build_wheel(folder: Path) -> Path:
    """Build the wheel once."""
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return next(folder.glob("*.whl"))


def write_constraints(folder: Path) -> Path:
    """Write the versions of the lock, without hashes: as a user's own constraints would stand beside the wheel."""
    lock = (ROOT / "locks" / "extras.txt").read_text(encoding="utf-8")
    pinned = [line.removesuffix(" \\") for line in lock.splitlines() if line[:1].isalnum()]
    file = folder / "constraints.txt"
    file.write_text("\n".join(pinned), encoding="utf-8")
    return file


def write_tiny_model(folder: Path) -> None:
    """Write a BERT of random weights, so that every extra has something to run."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.manual_seed(0)
    source = folder / "source"
    source.mkdir()
    (source / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    BertTokenizer(str(source / "vocab.txt"), model_max_length=64).save_pretrained(source)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(vocab_size=len(WORDS), max_position_embeddings=64, **sizes)
    BertModel(config).save_pretrained(source)
    SentenceTransformer(
        modules=[Transformer(str(source)), Pooling(32, pooling_mode="cls"), Normalize()], device="cpu"
    ).save(str(folder / "tiny"))


def checks(extra: str) -> list[Path]:
    """Return the scripts that try an extra; `all` must satisfy every one."""
    names = [name for name in extras() if name != ALL] if extra == ALL else [extra]
    return [CHECKS / f"check_{name}.py" for name in names]


def try_extra(extra: str, wheel: Path, torch: str, model: Path, constraints: Path) -> None:
    """Install one extra in an empty environment and run its check there.

    Raises:
        subprocess.CalledProcessError: The installation or the check failed.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        venv.create(place, with_pip=True)
        python = Path(place) / ("Scripts" if sys.platform == "win32" else "bin") / "python"
        pip = [python, "-m", "pip"]
        install = [*pip, "install", "--quiet", "--no-compile", "--disable-pip-version-check", "-c", constraints]
        subprocess.run([*install, "--upgrade", "pip"], check=True)
        subprocess.run([*install, torch], check=True)
        subprocess.run([*install, str(wheel) if extra == NONE else f"{wheel}[{extra}]"], check=True)
        subprocess.run([*pip, "check"], check=True, stdout=subprocess.DEVNULL)
        settings = {**os.environ, "HF_HOME": f"{place}/hub", "XDG_CACHE_HOME": f"{place}/cache"}
        for script in checks(extra):
            # -I keeps the source tree and the caller's PYTHONPATH out: only the wheel is tried.
            subprocess.run([python, "-I", script, model], check=True, cwd=place, env=settings)


def main() -> int:
    """Try the extras that were named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="EXTRA", help="default: all of them")
    parser.add_argument("--torch", default="torch", help="requirement that is installed first")
    options = parser.parse_args()
    known = [NONE, *extras()]
    unknown = sorted(set(options.names) - set(known))
    if unknown:
        parser.error(f"no such extra: {', '.join(unknown)}; there are {', '.join(known)}")
    with tempfile.TemporaryDirectory() as folder:
        wheel = build_wheel(Path(folder))
        write_tiny_model(Path(folder))
        constraints = write_constraints(Path(folder))

        def is_right(extra: str) -> bool:
            started = time.monotonic()
            try:
                try_extra(extra, wheel, options.torch, Path(folder) / "tiny", constraints)
            except subprocess.CalledProcessError as error:
                print(f"{extra}: FAILED ({error})", flush=True)
                return False
            print(f"{extra}: ok, {time.monotonic() - started:.0f} s", flush=True)
            return True

        names = options.names or known
        # Two at a time: most of it is downloading and unpacking.
        with ThreadPoolExecutor(2) as pool:
            failed = [extra for extra, right in zip(names, pool.map(is_right, names), strict=True) if not right]
    print(f"{len(failed)} failed: {', '.join(failed)}" if failed else "every extra installs alone and works")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
