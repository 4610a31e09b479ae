"""The device itself: its name, the number formats that it is fast in, its best matrix rate, its memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from benchmarks.gpu_check.session import Session

__all__ = ["CudaMemory", "Memory", "describe", "fast_precisions", "matrix_rates", "memory_of", "peak_bytes"]

MATRIX = {"cuda": 8192, "mps": 4096, "cpu": 1024}  # rows and columns: large enough for the best rate
WINDOW_S = 0.25
WINDOWS = 3


def describe(device: str) -> dict[str, Any]:
    """Return what the device says of itself."""
    import torch

    if not device.startswith("cuda"):
        return {"name": device}
    facts = torch.cuda.get_device_properties(device)
    return {
        "name": device,
        "kind": facts.name,
        "memory_gb": round(facts.total_memory / 1e9, 1),
        "capability": f"{facts.major}.{facts.minor}",
        "devices": torch.cuda.device_count(),
        "cuda": torch.version.cuda,
    }


def fast_precisions(device: str) -> list[str]:
    """Return the number formats that are worth timing; on a GPU those of half width, if it is fast in them."""
    import torch

    if device == "cpu":
        from bge_runtime.backends.packed.linear import has_onednn

        return ["float32", *(["bfloat16"] if has_onednn(torch.bfloat16) else [])]
    if device == "mps":
        return ["float16"]
    capability = torch.cuda.get_device_capability(device)
    return ["float16", "bfloat16"] if capability >= (8, 0) else ["float16"] if capability >= (7, 0) else ["float32"]


def matrix_rates(session: Session) -> None:
    """Measure the rate of a large matrix product in each number format, in TFLOP/s."""
    import torch

    size = MATRIX[session.device.partition(":")[0]]
    rates = {}
    for precision in fast_precisions(session.device):
        left, right = (
            torch.randn(size, size, device=session.device, dtype=getattr(torch, precision)) for _ in range(2)
        )
        result = torch.empty_like(left)
        with torch.inference_mode():
            seconds = _best_seconds(lambda a=left, b=right, c=result: torch.matmul(a, b, out=c), session.device)
        rates[precision] = float(f"{2 * size**3 / seconds / 1e12:.4g}")
        session.note(f"{precision}: {rates[precision]} TFLOP/s")
    session.results["matrix"] = {"size": size, "tflops": rates}


def _best_seconds(work: Callable[[], Any], device: str) -> float:
    """Return the seconds of one call, from the best of some windows of many."""
    work()
    _wait(device)
    started = time.perf_counter()
    work()
    _wait(device)
    calls = max(1, int(WINDOW_S / (time.perf_counter() - started)))
    best = float("inf")
    for _ in range(WINDOWS):
        started = time.perf_counter()
        for _ in range(calls):
            work()
        _wait(device)
        best = min(best, (time.perf_counter() - started) / calls)
    return best


def _wait(device: str) -> None:
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    elif device == "mps":
        torch.mps.synchronize()


def peak_bytes(device: str, work: Callable[[], Any]) -> tuple[Any, int | None]:
    """Run `work`; return its result and the most memory that it took for itself, `None` where nothing tells."""
    import torch

    if not device.startswith("cuda"):
        return work(), None
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = work()
    return result, torch.cuda.max_memory_allocated(device) - before


class Memory(Protocol):
    """A device's memory, of which a process can be given less; sizes are bytes."""

    def held(self) -> int:
        """Return what the process holds, once what it does not need is given back."""
        ...

    def peak_of(self, work: Callable[[], Any]) -> int:
        """Run `work` and return the most that the process held meanwhile."""
        ...

    def limited(self, size: int) -> Any:
        """Return a context in which the process may hold no more than `size`."""
        ...

    def full(self) -> Any:
        """Return a context in which nothing can be allocated."""
        ...


class CudaMemory:
    """The memory of a CUDA device, limited by torch's own allocator: what does not fit raises as on a full card."""

    def __init__(self, device: str) -> None:
        """Look at a device."""
        import torch

        self._cuda = torch.cuda
        self._device = device
        self._total = torch.cuda.get_device_properties(device).total_memory

    def held(self) -> int:
        """Return what the process holds; see `Memory`."""
        self._cuda.synchronize(self._device)
        self._cuda.empty_cache()
        return int(self._cuda.memory_reserved(self._device))

    def peak_of(self, work: Callable[[], Any]) -> int:
        """Run `work`; see `Memory`."""
        self.held()
        self._cuda.reset_peak_memory_stats(self._device)
        work()
        return int(self._cuda.max_memory_reserved(self._device))

    @contextmanager
    def limited(self, size: int) -> Iterator[None]:
        """Allow no more than `size`; see `Memory`."""
        self.held()
        self._cuda.set_per_process_memory_fraction(min(1.0, size / self._total), self._device)
        try:
            yield
        finally:
            self._cuda.set_per_process_memory_fraction(1.0, self._device)
            self._cuda.empty_cache()

    @contextmanager
    def full(self) -> Iterator[None]:
        """Allow nothing at all; see `Memory`."""
        import torch

        with self.limited(self.held()):
            # What is held already has gaps, which small batches would fit into.
            taken, size = [], 1 << 26
            while size >= 512:
                try:
                    taken.append(torch.empty(size, dtype=torch.uint8, device=self._device))
                except torch.OutOfMemoryError:
                    size //= 2
            yield
            taken.clear()


def memory_of(device: str) -> Memory | None:
    """Return the memory of a device, `None` where no limit can be set and no peak read."""
    return CudaMemory(device) if device.startswith("cuda") else None
