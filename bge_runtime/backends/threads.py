"""How many threads a batch gets on the CPU: the cores that this process may use, less those that others keep busy.

torch's threads meet at a barrier behind every operation, and spin while they wait there. Where another process runs on
one of the cores, all wait for the thread on it: two processes with two threads each on two cores were measured at a
third of what they reach with one thread each. No fixed setting is right for both an idle and a shared machine.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["CoreShare", "usable_cores"]

LOOK_EVERY_S = 0.2  # the kernel counts in hundredths of a second
NEW_SHARE = 0.5  # of the newest look in the running mean
# Columns of /proc/stat that count as busy: user, nice, system, irq, softirq, steal; see proc(5).
BUSY = (1, 2, 3, 6, 7, 8)


def usable_cores(root: Path = Path("/")) -> int:
    """Return how many cores this process may use: its affinity, and its control group's quota rounded up.

    Args:
        root: Where `proc` and `sys` are.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [math.ceil(quota) for quota in _quotas(root)]
    return max(1, min([cores, *quotas]))


def _quotas(root: Path) -> Iterator[float]:
    """Yield the processor quotas of this process's control groups and those above them, in cores."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("" if not controllers else "cpu")
        # In a container the path may be the host's, and the files those of the container at the mount itself.
        folders = [mount, *(mount / part for part in _parts(path))]
        for folder in folders:
            quota = _quota_v2(folder) if not controllers else _quota_v1(folder)
            if quota is not None:
                yield quota


def _parts(path: str) -> list[str]:
    names = path.strip("/").split("/")
    return ["/".join(names[:count]) for count in range(1, len(names) + 1)]


def _quota_v2(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def _quota_v1(folder: Path) -> float | None:
    try:
        quota, period = (
            int((folder / f"cpu.cfs_{name}_us").read_text(encoding="utf-8")) for name in ("quota", "period")
        )
    except (OSError, ValueError):
        return None
    return quota / period if quota > 0 else None


class CoreShare:
    """Watches what other processes do on our cores, and says how many threads a batch should have.

    One worker thread uses it. Where the kernel does not tell (no `/proc/stat`), nobody is taken to be there.
    """

    def __init__(
        self,
        stat: Path = Path("/proc/stat"),
        clock: Callable[[], float] = time.monotonic,
        own_seconds: Callable[[], float] = time.process_time,
    ) -> None:
        """Begin to watch; the arguments are for tests."""
        self.cores = usable_cores()
        self._stat, self._clock, self._own_seconds = stat, clock, own_seconds
        self._affinity = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        self._others = 0.0
        self._looked_at = self._clock()
        self._seen = self._look()

    def threads(self) -> int:
        """Return how many threads the next batch should have, 1 at least."""
        elapsed = self._clock() - self._looked_at
        if self._seen is not None and elapsed >= LOOK_EVERY_S:
            now = self._look()
            if now is not None:
                others = max(0.0, now - self._seen) / elapsed
                self._others += NEW_SHARE * (others - self._others)
            self._seen, self._looked_at = now, self._clock()
        # With half a core gone, the thread on it holds up the others by as much as one thread less would.
        free = len(self._affinity) - self._others
        return max(1, min(self.cores, math.floor(free + 0.5))) if self._affinity else self.cores

    @contextmanager
    def held(self) -> Iterator[None]:
        """Compute with so many of torch's threads; the process's own setting is the most, and is left as it was."""
        import torch

        usual = torch.get_num_threads()
        wanted = min(usual, self.threads())
        if wanted == usual:
            yield
            return
        torch.set_num_threads(wanted)
        try:
            yield
        finally:
            torch.set_num_threads(usual)

    def _look(self) -> float | None:
        """Return the seconds that others have run on our cores since the machine started."""
        try:
            lines = self._stat.read_text(encoding="ascii").splitlines()
            rows = {line.split(" ", 1)[0]: line.split() for line in lines if line.startswith("cpu")}
            ticks = sum(int(rows[f"cpu{core}"][column]) for core in self._affinity for column in BUSY)
        except (OSError, KeyError, IndexError, ValueError):
            return None
        return ticks / os.sysconf("SC_CLK_TCK") - self._own_seconds()
