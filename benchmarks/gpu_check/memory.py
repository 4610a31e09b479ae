"""What happens when a GPU's memory is full, and when several copies of the weights share the work."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.gpu_check.accuracy import bound_of, written
from benchmarks.gpu_check.card import Memory, memory_of
from benchmarks.gpu_check.session import Session, in_short
from benchmarks.gpu_check.subjects import SUBJECTS, distance, mixed, of_length
from bge_runtime import BatchEvent, Hook, OutOfMemoryEvent, add_hook, remove_hook

__all__ = ["Watching", "full_memory", "replicas", "watching"]

BACKENDS = ("packed", "torch")
# What one full batch of the default budget holds, twice.
TEXTS, TOKENS, BATCH_TOKENS = 512, 254, 65_536
BATCHES_BEFORE_GROWTH = 64  # what the page on devices says
REPLICA_TEXTS = 512
REPLICA_TEXTS_ON_CPU = 48
LOAD_S = 5.0


class Watching(Hook):
    """Remembers what happened to batches."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.batches: list[BatchEvent] = []
        self.workers: set[str] = set()
        self.full: list[OutOfMemoryEvent] = []

    def on_batch(self, event: BatchEvent) -> None:
        """Note a forward pass, and who made it."""
        self.batches.append(event)
        self.workers.add(threading.current_thread().name)

    def on_out_of_memory(self, event: OutOfMemoryEvent) -> None:
        """Note a batch that did not fit."""
        self.full.append(event)

    @property
    def largest(self) -> int:
        """Most tokens of a batch, padding included."""
        return max((event.padded_tokens for event in self.batches), default=0)


@contextmanager
def watching() -> Iterator[Watching]:
    """Watch what happens in the context."""
    hook = Watching()
    add_hook(hook)
    try:
        yield hook
    finally:
        remove_hook(hook)


def full_memory(session: Session) -> None:
    """Check that batches are halved where memory runs out, that they grow back, and that one text fails alone."""
    memory = memory_of(session.device)
    if memory is None:
        session.leave_out("memory that runs out", f"no limit can be set on {session.device!r}")
        return
    for backend in BACKENDS:
        if session.has_time(f"memory that runs out, {backend}", LOAD_S):
            try:
                run_out(session, memory, backend)
            except Exception as error:  # noqa: BLE001 - whatever comes in place of smaller batches is a finding
                session.fail(f"{backend}: a call lives through full memory", error)


def run_out(session: Session, memory: Memory, backend: str) -> None:
    """Embed with all the memory, with a third of what that took, and with all of it again."""
    from bge_runtime import Embedder

    name, precision = SUBJECTS[0].name, "float16" if session.on_gpu else "float32"
    cache = session.place / "hub"
    written(cache, name)
    texts = of_length("bert", "embed", TOKENS, TEXTS, "memory")
    embedder = Embedder(
        name,
        device=session.device,
        backend=backend,
        precision=precision,
        batch_tokens=BATCH_TOKENS,
        cache_folder=str(cache),
        local_files_only=True,
    )

    def compared(what: str, found: Any) -> None:
        apart = distance("vectors", found, expected)
        session.check(f"{backend}: {what}", apart, most=bound_of("vectors", precision))

    with embedder:
        session.note(f"{backend}: all the memory")
        embedder.encode_documents(texts[:1])
        held = memory.held()
        peak = memory.peak_of(lambda: embedder.encode_documents(texts))
        expected = embedder.encode_documents(texts)
        size = held + (peak - held) // 3
        session.note(f"{backend}: {size / 1e6:.0f} MB in place of {peak / 1e6:.0f}")
        with memory.limited(size):
            with watching() as first:
                compared("vectors made while memory ran out", embedder.encode_documents(texts))
            with watching() as second:
                embedder.encode_documents(texts)
        told = ", ".join(f"{event.padded_tokens} to {event.retry_tokens}" for event in first.full)
        halved = bool(first.full) and all(each.retry_tokens == each.padded_tokens // 2 for each in first.full)
        session.expect(f"{backend}: a batch that does not fit is halved", halved, told or "nothing ran out")
        session.expect(
            f"{backend}: the smaller budget is kept", not second.full, f"{len(second.full)} batches did not fit again"
        )
        with watching() as later:
            for text in texts[:BATCHES_BEFORE_GROWTH]:
                embedder.encode_documents([text])
            compared("vectors once there is memory again", embedder.encode_documents(texts))
        told = f"{second.largest} tokens a batch, and {later.largest} after {BATCHES_BEFORE_GROWTH} batches"
        session.expect(f"{backend}: the budget grows back", later.largest > second.largest > 0, told)
        _alone(session, memory, backend, embedder, texts)
        compared("vectors after a text that did not fit", embedder.encode_documents(texts))


def _alone(session: Session, memory: Memory, backend: str, embedder: Any, texts: list[str]) -> None:
    from bge_runtime import OutOfMemoryError

    what = f"{backend}: a single text that does not fit is told so"
    with memory.full():
        try:
            embedder.encode_documents(texts[:1])
        except OutOfMemoryError as error:
            session.expect(what, True, in_short(error))
        except Exception as error:  # noqa: BLE001 - another error than the one that is promised
            session.fail(what, error)
        else:
            session.expect(what, False, "it was embedded")


def replicas(session: Session) -> None:
    """Check that two copies of the weights give what one gives, and that both compute."""
    import torch

    from bge_runtime import Embedder, loaded_models, unload_models

    several = session.device.startswith("cuda") and torch.cuda.device_count() > 1
    devices = ["cuda:0", "cuda:1"] if several else [session.device] * 2
    name, precision = SUBJECTS[0].name, "float16" if session.on_gpu else "float32"
    cache = session.place / "hub"
    written(cache, name)
    where: dict[str, Any] = {"cache_folder": str(cache), "local_files_only": True, "truncation": "silent"}
    count = REPLICA_TEXTS if session.on_gpu else REPLICA_TEXTS_ON_CPU
    texts = [*mixed("bert", "embed", longest=64), *of_length("bert", "embed", 32, count, "replicas")]
    for backend in BACKENDS:
        what = f"{backend} on {' and '.join(devices)}"
        if not session.has_time(what, LOAD_S):
            continue
        session.note(what)
        options = {"backend": backend, "precision": precision, "batch_tokens": 256, **where}
        try:
            with Embedder(name, device=devices[0], **options) as one:
                expected = one.encode_documents(texts)
            unload_models()
            with Embedder(name, devices=devices, **options) as both, watching() as seen:
                found = both.encode_documents(texts)
                told = [row.device for row in loaded_models()]
        except Exception as error:  # noqa: BLE001 - whatever it raises is a finding
            session.fail(what, error)
            continue
        session.check(f"{what}: vectors", distance("vectors", found, expected), most=bound_of("vectors", precision))
        session.expect(f"{what}: both compute", len(seen.workers) == 2, ", ".join(sorted(seen.workers)))
        session.expect(f"{what}: told of as one model", told == [", ".join(devices)], "; ".join(told))
