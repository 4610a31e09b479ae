"""Vectors and scores of every backend and number format against float32 on the CPU, and what has to be refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu_check.session import Session, in_short
from benchmarks.gpu_check.subjects import LENGTHS, SUBJECTS, Outputs, Subject, distance

__all__ = ["BOUNDS", "attention", "bound_of", "refusals", "vectors_and_scores", "ways", "written"]

# Output -> number format -> the largest distance (see `subjects.distance`), for seeded weights. Those spread rounding
# further than trained ones do: 24 layers in bfloat16 through plain sentence-transformers gave 0.001 on a CPU.
_VECTORS = {"float32": 1e-6, "float16": 1e-4, "bfloat16": 4e-3, "int8": 3e-2}
BOUNDS: dict[str, dict[str, float]] = {
    "vectors": _VECTORS,
    "token vectors": _VECTORS,
    "picture vectors": _VECTORS,
    "lexical weights": {"float32": 1e-4, "float16": 5e-3, "bfloat16": 4e-2, "int8": 0.2},
    "scores": {"float32": 1e-3, "float16": 0.1, "bfloat16": 0.6, "int8": 0.6},
}
LONGEST_ON_CPU = 64  # tokens, where there is no GPU: half precision is slow on many processors
LOAD_S = 3.0  # what loading and running a small model may take
HEAD_SIZES = (32, 64)
TEXT_LENGTHS = (512, 300, 64, 64, 64, 17, 9, 9, 3, 1)
ATTENTION_BOUNDS = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 4e-2}


def bound_of(output: str, precision: str) -> float:
    """Return the largest distance that is within the bounds."""
    return BOUNDS[output][precision]


def vectors_and_scores(session: Session) -> None:
    """Check every small model on the device, and then on the CPU."""
    places = [session.device, *(["cpu"] if session.on_gpu else [])]
    expected: dict[str, Outputs] = {}
    for place in places:
        for subject in SUBJECTS:
            if session.has_time(f"{subject.name} on {place}", 2 * LOAD_S):
                _check_subject(session, subject, place, expected)


def _check_subject(session: Session, subject: Subject, place: str, expected: dict[str, Outputs]) -> None:
    inputs = subject.inputs(max(LENGTHS) if session.on_gpu else LONGEST_ON_CPU)
    cache = session.place / "hub"
    folder = written(cache, subject.name)
    where = {"cache_folder": str(cache), "local_files_only": True}
    if subject.name not in expected:
        session.note(f"{subject.name}: float32 on the CPU")
        if subject.reference is None:
            assert subject.backends is not None
            own = {"device": "cpu", "backend": subject.backends[0], "precision": "float32"}
            expected[subject.name] = subject.outputs(subject.name, {**own, **where}, inputs)
        else:
            expected[subject.name] = subject.reference(folder, inputs)
    for backend, precision, missing in ways(subject, place):
        what = f"{subject.name}, {backend} in {precision} on {place}"
        if missing:
            session.leave_out(what, missing)
        elif session.has_time(what, LOAD_S):
            session.note(what)
            options = {"device": place, "backend": backend, "precision": precision, **where}
            _compare(session, subject, options, inputs, expected[subject.name])


def _compare(session: Session, subject: Subject, options: dict[str, Any], inputs: list[Any], expected: Outputs) -> None:
    about = {"subject": subject.name, **{name: options[name] for name in ("device", "backend", "precision")}}
    way = f"{options['backend']} in {options['precision']} on {options['device']}"
    try:
        found = subject.outputs(subject.name, options, inputs)
    except Exception as error:  # noqa: BLE001 - whatever a backend raises is a finding
        session.fail(f"{subject.name}, {way}", error, **about)
        return
    for output, rows in expected.items():
        apart = distance(output, found[output], rows)
        bound = bound_of(output, options["precision"])
        session.check(f"{subject.name}, {output}: {way}", apart, most=bound, output=output, **about)


def ways(subject: Subject, place: str) -> Iterator[tuple[str, str, str]]:
    """Yield every backend and number format that runs a model in a place, and what is missing for it."""
    from importlib.util import find_spec

    from bge_runtime.backends.registry import backend_names, find_backend

    records = [find_backend(name) for name in subject.backends or backend_names()]
    for record in records:
        if record.scores and subject.backends is None:
            continue  # for language models only
        missing = ""
        if record.package is not None and find_spec(record.package) is None:
            missing = f"{record.package} is not installed"
        for precision in record.cpu_precisions if place == "cpu" else record.gpu_precisions:
            if subject.reference is None and (place, precision) == ("cpu", "float32"):
                continue  # what the others are compared with
            yield record.name, precision, missing or _refused(record.name, precision)


def _refused(backend: str, precision: str) -> str:
    """Return why this processor cannot do it, which is not the backend's fault."""
    if (backend, precision) != ("packed", "int8"):
        return ""
    from bge_runtime import ConfigurationError
    from bge_runtime.backends.packed.int8 import check_int8

    try:
        check_int8()
    except ConfigurationError as error:
        return str(error)
    return ""


def written(cache: Path, name: str) -> Path:
    """Return the folder of a seeded model in a hub cache, written if it is not there."""
    from tests.checkpoints.clip import CLIP_CHECKPOINTS, clip_files
    from tests.checkpoints.hub_cache import BY_NAME, commit_of, files_of, place_in_hub_cache

    folder = cache / f"models--{name.replace('/', '--')}" / "snapshots" / commit_of(name)
    if not folder.is_dir():
        clip = next((each for each in CLIP_CHECKPOINTS if each.name == name), None)
        place_in_hub_cache(cache, name, clip_files(clip) if clip else files_of(BY_NAME[name]))
    return folder


def refusals(session: Session) -> None:
    """Check that what does not run on a GPU is refused there, in words that say where it runs."""
    if not session.on_gpu:
        session.leave_out("refusals", "there is no GPU")
        return
    from bge_runtime import ConfigurationError, Embedder
    from bge_runtime.backends.registry import backend_names, find_backend

    folder = written(session.place / "hub", SUBJECTS[0].name)
    for name in backend_names():
        record = find_backend(name)
        if record.scores:
            continue
        precision = "int8" if record.gpu_precisions else record.cpu_precisions[0]
        what = f"{name} in {precision} on {session.device} is refused"
        try:
            Embedder(folder, device=session.device, backend=name, precision=precision).warm_up()
        except ConfigurationError as error:
            session.expect(what, "cpu" in str(error).lower(), in_short(error))
        except Exception as error:  # noqa: BLE001 - another error than the one that is promised
            session.fail(what, error)
        else:
            session.expect(what, False, "it ran")


def attention(session: Session) -> None:
    """Check attention over texts of mixed lengths, as the packed backend computes it, against float32 on the CPU."""
    import torch
    from torch.nn import functional

    from bge_runtime.backends.packed.attention import by_boundaries, by_group, find_varlen

    device = torch.device(session.device)
    used: dict[str, str] = {}
    for precision in ("float32", "float16", "bfloat16"):
        dtype = getattr(torch, precision)
        kernels = {"scaled_dot_product_attention, by group": by_group(functional.scaled_dot_product_attention)}
        function = find_varlen(device) if device.type == "cuda" and precision != "float32" else None
        if function is not None:
            kernels = {f"{function.__module__}.{function.__name__}": by_boundaries(function), **kernels}
        used[precision] = next(iter(kernels))
        for name, kernel in kernels.items():
            what = f"attention in {precision}: {name}"
            try:
                apart = max(_attention_apart(kernel, device, dtype, size) for size in HEAD_SIZES)
            except Exception as error:  # noqa: BLE001 - a kernel that does not run is a finding
                session.fail(what, error)
                continue
            session.check(what, apart, most=ATTENTION_BOUNDS[precision])
    session.results["attention"] = used


def _attention_apart(kernel: Any, device: Any, dtype: Any, size: int) -> float:
    """Return the largest difference from float32 on the CPU, with one query per text and with all."""
    import torch
    from torch.nn import functional

    from bge_runtime.backends.packed.attention import Layout, by_group

    exact, cpu = by_group(functional.scaled_dot_product_attention), torch.device("cpu")
    there, here = Layout.of(TEXT_LENGTHS, device), Layout.of(TEXT_LENGTHS, cpu)
    heads, tokens, texts = 4, sum(TEXT_LENGTHS), len(TEXT_LENGTHS)
    rows = torch.randn(here.rows, 3 * heads * size, generator=torch.Generator().manual_seed(size)).to(dtype)
    apart = []
    for one_query in (False, True):
        asked = texts if one_query else tokens
        results = []
        for attend, layout, states in ((kernel, there, rows.to(device)), (exact, here, rows.float())):
            query, key, value = states[: layout.rows].view(layout.rows, 3, heads, size).unbind(1)
            query = query[: layout.texts] if one_query else query
            with torch.inference_mode():
                results.append(attend(query, key, value, layout, one_query=one_query)[:asked].float().cpu())
        apart.append(float((results[0] - results[1]).abs().max()))
    return float(np.max(apart))
