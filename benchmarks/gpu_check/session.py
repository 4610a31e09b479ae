"""What a run has in common: its device, its clock, and the results that its sections fill."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Session"]


@dataclass
class Session:
    """One run.

    Attributes:
        device: Where it runs: `cuda:0`, `mps` or `cpu`.
        place: Folder for checkpoints; gone after the run.
        file: Where the results go.
        section: The section that runs.
        ends: When that section is to end, on the clock of `time.monotonic`.
        results: Everything that was found; see `main`.
    """

    device: str
    place: Path
    file: Path
    section: str = ""
    ends: float = math.inf
    results: dict[str, Any] = field(default_factory=lambda: {"sections": [], "checks": [], "speed": [], "left_out": []})
    started: float = field(default_factory=time.monotonic)

    @property
    def on_gpu(self) -> bool:
        """Whether there is more than a processor."""
        return self.device != "cpu"

    @property
    def left_s(self) -> float:
        """Seconds that the section has left."""
        return self.ends - time.monotonic()

    @property
    def passed(self) -> bool:
        """Whether nothing has failed."""
        return all(each["passed"] for each in self.results["checks"]) and all(
            each["state"] in ("done", "left out") for each in self.results["sections"]
        )

    def note(self, text: str) -> None:
        """Show what is going on."""
        print(f"{time.monotonic() - self.started:6.1f} s  {self.section}: {text}", flush=True)

    def check(
        self, name: str, value: float, *, least: float | None = None, most: float | None = None, **about: Any
    ) -> bool:
        """Compare what was found with a bound; what is not a number is never within it.

        Args:
            name: What is checked.
            value: What was found.
            least: The lowest value that passes.
            most: The highest.
            **about: What else is told of it: parts of the name, for tables.

        Returns:
            Whether it passed.
        """
        passed = math.isfinite(value) and (least is None or value >= least) and (most is None or value <= most)
        bound = {"least": least} if most is None else {"most": most}
        entry = {"section": self.section, "name": name, "passed": passed, **bound, **about}
        if math.isfinite(value):  # JSON knows no other numbers
            entry["value"] = float(f"{value:.9g}")
        self.results["checks"].append(entry)
        if not passed:
            self.note(f"FAILED: {name}: {value} ({next(iter(bound))} {next(iter(bound.values()))})")
        return passed

    def expect(self, name: str, passed: bool, told: str = "", **about: Any) -> bool:
        """Note a check without a number; `told` says what was found."""
        entry = {"section": self.section, "name": name, "passed": passed, **({"told": told} if told else {}), **about}
        self.results["checks"].append(entry)
        if not passed:
            self.note(f"FAILED: {name}: {told or 'not so'}")
        return passed

    def fail(self, name: str, error: BaseException, **about: Any) -> None:
        """Note that a check came to no result."""
        self.expect(name, False, in_short(error), **about)

    def leave_out(self, what: str, reason: str) -> None:
        """Note what was not measured."""
        self.results["left_out"].append({"section": self.section, "what": what, "reason": reason})
        self.note(f"left out: {what}: {reason}")

    def has_time(self, what: str, seconds: float) -> bool:
        """Return whether something that takes so long still fits; note it as left out if not."""
        if self.left_s >= seconds:
            return True
        self.leave_out(what, "the time was up")
        return False

    def save(self) -> None:
        """Write the results as they are."""
        self.results["seconds"] = round(time.monotonic() - self.started, 1)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.results, indent=1, allow_nan=False)
        self.file.write_text(text + "\n", encoding="utf-8")


def in_short(error: BaseException) -> str:
    """Return an error on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
