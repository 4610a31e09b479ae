"""Jobs that wait for a worker, and how batches are formed from them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import InvalidStateError
from contextlib import suppress

from bge_runtime.engine.job import Input, Job, Output
from bge_runtime.locks import Promise

__all__ = ["Batch", "JobQueue"]

# Of each lane. Callers that come later wait until less is queued: enough for a GPU to be busy meanwhile, and little
# enough that tokenising ahead does not take the CPU from the batches.
MAX_QUEUED_TOKENS = 1_000_000
# A steady stream of queries must not starve an ingestion.
INTERACTIVE_BATCHES_IN_A_ROW = 16
# Where queries come, an ingestion works in small bites, so that the next query waits for a short batch only: this
# share of the usual tokens, until so many seconds have passed without a query.
BITE_SHARE = 32
BITES_AFTER_QUERY_S = 5.0


class Batch:
    """Inputs that go through one forward pass together."""

    def __init__(self, items: Sequence[tuple[Job, int]], queue_s: Sequence[float] = ()) -> None:
        """Note the inputs, and how long the jobs that begin with this batch have waited."""
        self.items = list(items)
        self.queue_s = list(queue_s)

    def __len__(self) -> int:
        """Return the number of inputs."""
        return len(self.items)

    @property
    def output(self) -> Output:
        """What all of its jobs ask for."""
        return self.items[0][0].output

    def inputs(self) -> tuple[list[Input], list[int]]:
        """Return the inputs and their lengths."""
        sequences, lengths = [], []
        for job, index in self.items:
            sequences.append(job.sequences[index])
            lengths.append(job.lengths[index])
        return sequences, lengths

    def by_job(self) -> dict[Job, list[int]]:
        """Return the indices of each job's inputs."""
        parts: dict[Job, list[int]] = {}
        for job, index in self.items:
            parts.setdefault(job, []).append(index)
        return parts


class _Lane:
    """Jobs of one priority, first come, first served."""

    def __init__(self) -> None:
        self.jobs: deque[Job] = deque()
        self.tokens = 0
        self.outside: list[Promise[None]] = []

    def append(self, job: Job) -> None:
        self.jobs.append(job)
        self.tokens += job.tokens

    def appendleft(self, job: Job) -> None:
        self.jobs.appendleft(job)
        self.tokens += job.tokens

    def popleft(self) -> Job:
        job = self.jobs.popleft()
        # Counted anew where it is known: a caller that was interrupted in `append` may have counted nothing.
        self.tokens = self.tokens - job.tokens if self.jobs else 0
        return job

    @property
    def full(self) -> bool:
        return self.tokens > MAX_QUEUED_TOKENS

    def let_in(self) -> None:
        """Wake those outside; each looks again before it comes in, so that they do not all come."""
        if self.outside and not self.full:
            outside, self.outside = self.outside, []
            for future in outside:
                with suppress(InvalidStateError):  # its caller went away
                    future.set_result(None)


class JobQueue:
    """Two lanes, interactive and bulk. Nothing here is locked: the engine's lock guards it."""

    def __init__(self) -> None:
        """Start empty."""
        self._interactive, self._bulk = _Lane(), _Lane()
        self._in_a_row = 0
        self._cancelled = 0
        # No query has come yet, so an ingestion that starts first works in full batches.
        self._interactive_at = -BITES_AFTER_QUERY_S

    def __len__(self) -> int:
        """Return the number of jobs."""
        return len(self._interactive.jobs) + len(self._bulk.jobs)

    def waiting(self, *, bulk: bool) -> bool:
        """Whether any job waits; with `bulk=False`, any interactive one."""
        return bool(self._interactive.jobs or (bulk and self._bulk.jobs))

    def add(self, job: Job) -> None:
        """Take in a job, whatever is queued already."""
        if not job.bulk:
            self._interactive_at = time.monotonic()
        self._lane(job.bulk).append(job)

    def add_again(self, job: Job) -> None:
        """Take back a job some of whose inputs must be computed once more; it goes first."""
        lane = self._lane(job.bulk)
        if job not in lane.jobs:
            lane.appendleft(job)

    def room(self, bulk: bool) -> Promise[None] | None:
        """Return `None` if there is room for more of this priority, else what resolves when there may be."""
        lane = self._lane(bulk)
        if not lane.full:
            return None
        lane.outside.append(Promise())
        return lane.outside[-1]

    def take_cancelled(self) -> int:
        """Return how many inputs were dropped since the last call."""
        cancelled, self._cancelled = self._cancelled, 0
        return cancelled

    def clear(self) -> list[Job]:
        """Remove and return all jobs, and wake all callers outside."""
        jobs: list[Job] = []
        for lane in (self._interactive, self._bulk):
            jobs += lane.jobs
            lane.jobs.clear()
            lane.tokens = 0
            lane.let_in()
        return jobs

    def take_batch(self, *, pads: bool, most_tokens: int | None, bulk: bool = True) -> Batch | None:
        """Take the inputs of the next batch; finished and cancelled jobs leave the queue on the way.

        Args:
            pads: Whether an input costs as much as the longest of its batch.
            most_tokens: Tokens known to fit into memory; `None` for no limit but the jobs' own.
            bulk: Whether bulk jobs may be taken.

        Returns:
            A batch, or `None` if all that stood before it turned out to be finished or cancelled.
        """
        lane = self._next_lane() if bulk else self._interactive
        bites = lane is self._bulk and time.monotonic() - self._interactive_at < BITES_AFTER_QUERY_S
        filling = _Filling(pads, most_tokens, BITE_SHARE if bites else 1)
        passed: list[Job] = []
        while lane.jobs:
            job = lane.popleft()
            if job.waiting and not filling.fits_kind(job):
                passed.append(job)
                continue
            filling.take_from(job)
            if job.waiting:  # first come, first served: nobody overtakes a job that did not fit
                passed.append(job)
                break
            self._cancelled += job.cancelled_inputs
        self._put_back(lane, passed, filling.head)
        lane.let_in()
        return Batch(filling.items, filling.queue_s) if filling.items else None

    def _put_back(self, lane: _Lane, passed: list[Job], head: Job | None) -> None:
        if lane is self._bulk and passed and passed[0] is head:  # callers take turns
            lane.append(passed.pop(0))
        for job in reversed(passed):
            lane.appendleft(job)

    def _next_lane(self) -> _Lane:
        if not self._bulk.jobs:
            self._in_a_row = 0
            return self._interactive
        if not self._interactive.jobs or self._in_a_row >= INTERACTIVE_BATCHES_IN_A_ROW:
            self._in_a_row = 0
            return self._bulk
        self._in_a_row += 1
        return self._interactive

    def _lane(self, bulk: bool) -> _Lane:
        return self._bulk if bulk else self._interactive


class _Filling:
    """A batch that grows until the next input would not fit."""

    def __init__(self, pads: bool, most_tokens: int | None, share: int) -> None:
        self.head: Job | None = None
        self.items: list[tuple[Job, int]] = []
        self.queue_s: list[float] = []
        self._pads = pads
        self._most_tokens = most_tokens
        self._share = share
        self._longest = self._total = 0

    def fits_kind(self, job: Job) -> bool:
        """Whether the job may share this batch, whose first job decides."""
        # A batch has one output and one limit; a job that differs waits for a batch of its own kind.
        return self.head is None or (job.output, job.batch_size) == (self.head.output, self.head.batch_size)

    def take_from(self, job: Job) -> None:
        """Take as many inputs as fit."""
        while job.waiting and self._fits(job, length := job.next_length()):
            self.head = self.head or job
            if not job.started:
                self.queue_s.append(time.perf_counter() - job.queued_at)
            self._longest = max(self._longest, length)
            self._total += length
            self.items.append((job, job.take()))

    def _fits(self, job: Job, length: int) -> bool:
        if self.head is None:  # a single input is always a batch
            return True
        count = len(self.items) + 1
        cost = count * max(self._longest, length) if self._pads else self._total + length
        wanted = self.head.batch_tokens // self._share
        budget = min(wanted, self._most_tokens or wanted)
        return cost <= budget and (job.batch_size is None or count <= job.batch_size)
