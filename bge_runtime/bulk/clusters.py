"""Parts computed on a Ray cluster: one worker per device, each of which writes whole parts by itself."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_runtime import BackendError, BGEError, Embedder, quantization_ranges
from bge_runtime.bulk.manifest import Manifest, PartRecord
from bge_runtime.bulk.parts import Layout, PartFile
from bge_runtime.bulk.sources import Row, Source
from bge_runtime.ray_cluster import connected

__all__ = ["Job", "compute_on_ray"]

# A part whose workers die so often kills them.
MOST_DEATHS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What a worker needs to know; it is sent to each of them.

    Attributes:
        folder: Where parts are written; every worker sees it under this path.
        source: The input; likewise.
        embedder: What embeds, as options.
        manifest: As it was when the workers were started, with the ranges of `int8`.
        blocks: Embeds rows call by call, as a run on one machine does.
    """

    folder: Path
    source: Source
    embedder: Embedder
    manifest: Manifest
    blocks: Callable[..., Iterator[Any]]


class PartWorker:
    """Computes parts, one at a time, on the device that it was given."""

    def __init__(self, job: Job) -> None:
        """Load the model."""
        self._job = job
        self._embedder = job.embedder.warm_up()

    def ranges(self, part: int) -> NDArray[np.float32]:
        """Return the ranges of the first texts of a part."""
        _, encoded = next(self._job.blocks(self._embedder, self._rows(part), self._job.manifest.settings))
        return quantization_ranges(encoded.dense)

    def compute(self, part: int, ranges: NDArray[np.float32] | None) -> PartRecord:
        """Embed a part, and put it in place."""
        job, settings = self._job, self._job.manifest.settings
        layout = Layout(settings.outputs, settings.format, settings.dimension)
        rows = self._rows(part)
        file = PartFile(job.folder, job.manifest, part)
        truncated = self._embedder.truncated_count
        try:
            for ids, encoded in job.blocks(self._embedder, rows, settings):
                file.add(layout.table(ids, encoded, ranges))
        except BaseException:
            file.abandon()
            raise
        return file.finish(self._embedder.truncated_count - truncated)

    def _rows(self, part: int) -> list[Row]:
        manifest = self._job.manifest
        counts = [file.rows for file in manifest.files]
        return list(islice(self._job.source.rows(manifest.first_row_of(part), counts), manifest.rows_of(part)))


def compute_on_ray(
    address: str,
    job: Job,
    missing: Sequence[int],
    *,
    on_ranges: Callable[[NDArray[np.float32]], object],
    on_part: Callable[[int, PartRecord], object],
    on_lost: Callable[[int], object],
) -> None:
    """Have parts computed by the workers of a cluster, in any order.

    Args:
        address: Of the cluster, as `ray.init` takes it: `auto`, `local`, `ray://HOST:PORT`.
        job: What is computed.
        missing: Which parts.
        on_ranges: Called with the ranges of `int8` before a part is written.
        on_part: Called when a part is in place.
        on_lost: Called when a worker died with a part, which another one then computes.

    Raises:
        ConfigurationError: There is no cluster at the address.
        BackendError: A part ended several workers.
        BGEError: What a worker met.
    """
    with connected(address, log_to_driver=False) as ray:
        pool = _Pool(ray, job, len(missing), on_lost)
        ranges = job.manifest.ranges
        if job.manifest.settings.format == "int8" and ranges is None:
            (_, ranges), *_ = pool.results("ranges", missing[:1])
            on_ranges(ranges)
        for part, record in pool.results("compute", missing, ranges):
            on_part(part, record)


class _Pool:
    """The workers: one per GPU of the cluster, or one per machine where there is none."""

    def __init__(self, ray: Any, job: Job, parts: int, on_lost: Callable[[int], object]) -> None:
        self._ray = ray
        self._job = ray.put(job)
        self._on_lost = on_lost
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = int(sum(each.get("GPU", 0) for each in machines))
        cores = 1 if gpus else int(min(each.get("CPU", 1) for each in machines)) or 1
        self._make = ray.remote(PartWorker).options(
            num_cpus=cores, num_gpus=1 if gpus else 0, scheduling_strategy="SPREAD"
        )
        self._workers = [self._make.remote(self._job) for _ in range(min(gpus or len(machines), parts))]

    def results(self, method: str, parts: Sequence[int], *arguments: Any) -> Iterator[tuple[int, Any]]:
        """Yield parts with what a method gave for them, as they come."""
        waiting, idle = deque(parts), deque(range(len(self._workers)))
        running: dict[Any, tuple[int, int]] = {}
        deaths: Counter[int] = Counter()
        while waiting or running:
            while waiting and idle:
                worker, part = idle.popleft(), waiting.popleft()
                running[getattr(self._workers[worker], method).remote(part, *arguments)] = worker, part
            (ended,), _ = self._ray.wait(list(running), num_returns=1)
            worker, part = running.pop(ended)
            try:
                found = self._ray.get(ended)
            except self._ray.exceptions.RayActorError as error:
                deaths[part] += 1
                if deaths[part] == MOST_DEATHS:
                    raise BackendError(f"Part {part} ended {MOST_DEATHS} workers; the last: {error}") from error
                self._on_lost(part)
                self._workers[worker] = self._make.remote(self._job)
                idle.append(worker)
                waiting.appendleft(part)
            except self._ray.exceptions.RayTaskError as error:
                raise (error.cause if isinstance(error.cause, BGEError | OSError) else error) from None
            else:
                if waiting or not running:
                    idle.append(worker)
                else:
                    # Makes room for a worker in place of a dead one, which has none left if its machine is gone too.
                    self._ray.kill(self._workers[worker])
                yield part, found
