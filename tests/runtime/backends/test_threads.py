"""Threads by the cores that a process really has, and fewer while others keep them busy."""

from __future__ import annotations

import os

import pytest
import torch

from bge_runtime.backends.threads import CoreShare, usable_cores

TICKS = os.sysconf("SC_CLK_TCK")


class Machine:
    """A machine whose time, own work and other work are set by hand."""

    def __init__(self, tmp_path, monkeypatch, cores: int = 4) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
        self.cores, self.now, self.own, self.others = cores, 100.0, 0.0, 0.0
        self.stat = tmp_path / "stat"
        self._write()
        self.share = CoreShare(self.stat, lambda: self.now, lambda: self.own)

    def run(self, seconds: float, own: float, others: float) -> int:
        """Let so many cores be busy for some seconds, and return the threads of the next batch."""
        for _ in range(round(seconds / 0.25)):
            self.now, self.own, self.others = self.now + 0.25, self.own + 0.25 * own, self.others + 0.25 * others
            self._write()
            threads = self.share.threads()
        return threads

    def _write(self) -> None:
        busy = int((self.own + self.others) * TICKS / self.cores)
        rows = [f"cpu{core} {busy} 0 0 {int(self.now * TICKS)} 0 0 0 0 0 0" for core in range(self.cores)]
        # The sum comes first in the real file, and a core that is not ours may be as busy as it likes.
        self.stat.write_text("\n".join(["cpu  1 2 3", *rows, f"cpu{self.cores} {10**9} 0 0 0 0 0 0 0 0 0", "intr 5"]))


@pytest.fixture
def machine(tmp_path, monkeypatch):
    return Machine(tmp_path, monkeypatch)


def test_alone_a_batch_gets_all_cores(machine):
    assert machine.share.threads() == machine.cores == 4
    assert machine.run(3, own=4, others=0) == 4


def test_cores_that_others_keep_busy_are_left_to_them(machine):
    assert machine.run(3, own=2, others=2) == 2
    assert machine.run(3, own=1, others=3) == 1


def test_one_thread_is_left_on_a_crowded_machine(machine):
    assert machine.run(3, own=0.2, others=3.9) == 1


def test_the_cores_come_back_when_the_others_are_done(machine):
    machine.run(3, own=2, others=2)
    assert machine.run(3, own=4, others=0) == 4


def test_a_little_work_of_others_takes_nothing_away(machine):
    assert machine.run(3, own=3.6, others=0.3) == 4


def test_a_machine_that_does_not_tell_is_taken_to_be_ours(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    share = CoreShare(tmp_path / "missing")
    assert share.threads() == 2


def test_batches_compute_with_that_many_and_leave_torchs_setting_alone(machine):
    usual = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with machine.share.held():
            assert torch.get_num_threads() == 3  # what the user has set is the most
        machine.run(3, own=1, others=3)
        with machine.share.held():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(usual)


def group(root, cgroup: str, **files: str):
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    for path, content in files.items():
        file = root / "sys/fs/cgroup" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return root


@pytest.mark.parametrize(
    ("cgroup", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "max 100000\n"}, 8),
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/a/b\n", {"cpu.max": "max 100000", "a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 3),
        ("0::/../host\n", {"cpu.max": "50000 100000"}, 1),
        ("4:cpu,cpuacct:/x\n", {"cpu/x/cpu.cfs_quota_us": "400000", "cpu/x/cpu.cfs_period_us": "100000"}, 4),
        ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ("0::/\n", {"cpu.max": "unreadable"}, 8),
        ("3:memory:/x\n", {}, 8),
    ],
)
def test_the_quota_of_a_container_counts(tmp_path, monkeypatch, cgroup, files, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert usable_cores(group(tmp_path, cgroup, **files)) == cores


def test_the_affinity_of_a_process_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 3}, raising=False)
    assert usable_cores(tmp_path) == 2
