"""Processes that compute: workers that live through the run, and scripts that are timed from their start."""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from pathlib import Path
from typing import Any

from benchmarks.contestants import Contestant

__all__ = ["ROOT", "Unavailable", "WorkerProcess", "busy_s", "environment_problem", "python_of", "time_script"]

ROOT = Path(__file__).resolve().parents[1]
PLACE = ROOT / ".benchmarks"
TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


class Unavailable(Exception):
    """A contestant cannot run; the message is the reason."""


def python_of(library: str, venvs: Path) -> Path:
    """Return the interpreter of a library's environment.

    Raises:
        Unavailable: It is not there; the message ends with what pip said.
    """
    python = venvs / library / "bin" / "python"
    if python.exists():
        return python
    raise Unavailable(environment_problem(library, venvs))


def environment_problem(library: str, venvs: Path) -> str:
    """Say why an environment is missing."""
    log = venvs / f"{library}.log"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    said = next((line for line in reversed(lines) if "ERROR" in line), "it was not built")
    return f"no environment for {library}: {said}"


def _settings() -> dict[str, str]:
    quiet = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
    return {**os.environ, **quiet, "BGE_CACHE_DIR": str(PLACE / "exports"), "PYTHONPATH": str(ROOT)}


class WorkerProcess:
    """A worker of one library; see worker.py for what it answers."""

    def __init__(self, contestant: Contestant, venvs: Path, checkpoints: Path, log: Path) -> None:
        """Start it and wait for its versions."""
        command = [str(python_of(contestant.library, venvs)), "-m", "benchmarks.worker"]
        command += ["--library", contestant.library, "--checkpoints", str(checkpoints)]
        command += ["--backend", contestant.backend, "--precision", contestant.precision]
        self._log = log.open("ab")
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=_settings(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log
        )
        self.versions: str = self._read(120)["versions"]

    def ask(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Send a request and return the answer.

        It comes with `wall_s` and `foreign_cpu_s`: what all other processes computed meanwhile.

        Raises:
            Unavailable: The contestant cannot do it, died, or took too long (and was stopped).
        """
        before, started = busy_s() - self._cpu_s(), time.perf_counter()
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise Unavailable(f"its process ended ({error})") from error
        answer = self._read(timeout_s)
        if "reason" in answer:
            raise Unavailable(answer["reason"])
        foreign = max(0.0, busy_s() - self._cpu_s() - before)
        return {**answer, "wall_s": time.perf_counter() - started, "foreign_cpu_s": round(foreign, 2)}

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()

    def _read(self, timeout_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], timeout_s)
        line = self._process.stdout.readline() if ready else b""
        if not line:
            self._process.kill()
            code = self._process.wait()
            raise Unavailable(
                f"its process ended with status {code}" if ready else f"no answer within {timeout_s:.0f} s"
            )
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _cpu_s(self) -> float:
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text(encoding="ascii").rpartition(") ")[2].split()
        except OSError:
            return 0.0
        return sum(map(int, fields[11:15])) / TICKS


def busy_s() -> float:
    """Return the seconds that all processors have computed so far; 0 where the kernel does not say."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    fields = list(map(int, stat.read_text(encoding="ascii").splitlines()[0].split()[1:9]))
    return (sum(fields) - fields[3] - fields[4]) / TICKS


def time_script(python: Path, code: str, timeout_s: float = 180) -> tuple[float, str]:
    """Run a script in a fresh process; return the seconds until its first line, and that line.

    Raises:
        Unavailable: It printed nothing; the message is the last line of its standard error.
    """
    started = time.perf_counter()
    process = subprocess.Popen(
        [str(python), "-c", code],
        cwd=PLACE,
        env=_settings(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], timeout_s)
    line = process.stdout.readline() if ready else b""
    seconds = time.perf_counter() - started
    if not ready:
        process.kill()
    _, said = process.communicate()
    if not line:
        lines = said.decode(errors="replace").split("\n") if ready else [f"no answer within {timeout_s:.0f} s"]
        raise Unavailable(next((each.strip()[:300] for each in reversed(lines) if each.strip()), "it printed nothing"))
    return seconds, line.decode().strip()
