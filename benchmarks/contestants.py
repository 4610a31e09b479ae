"""Who takes part: libraries, ways of using them, and which workloads each runs. Standard library only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["CONTESTANTS", "INCUMBENTS", "LIBRARIES", "LIMIT", "OURS", "Contestant", "choose"]

OURS = "bge-integrations"
LIMIT = "machine limit"
# Library -> packages whose versions are recorded. Each has benchmarks/requirements/<library>.txt.
LIBRARIES: dict[str, tuple[str, ...]] = {
    OURS: (OURS, "langchain-core", "llama-index-core", "torch", "onnxruntime", "openvino", "numpy"),
    "langchain-huggingface": (
        "langchain-huggingface",
        "langchain-community",
        "langchain-classic",
        "sentence-transformers",
        "transformers",
        "torch",
    ),
    "llama-index": (
        "llama-index-embeddings-huggingface",
        "llama-index-postprocessor-sbert-rerank",
        "sentence-transformers",
        "transformers",
        "torch",
    ),
    "sentence-transformers": ("sentence-transformers", "transformers", "torch"),
    "FlagEmbedding": ("FlagEmbedding", "transformers", "torch"),
    "fastembed": ("fastembed", "onnxruntime"),
    "infinity": ("infinity-emb", "sentence-transformers", "transformers", "torch"),
    "FlashRank": ("FlashRank", "onnxruntime"),
}
# Surface -> the incumbent that everything on it is compared with.
INCUMBENTS = {
    "langchain": "langchain-huggingface",
    "llamaindex": "llama-index",
    "plain": "sentence-transformers",
}
_ADAPTER_MODES = (
    ("packed", "float32"),
    ("packed", "bfloat16"),
    ("packed", "int8"),
    ("openvino", "bfloat16"),
    ("openvino", "int8"),
)
_OTHER_MODES = (("openvino", "float32"), ("onnx", "float32"), ("onnx", "int8"))
_CORPORA = ("ingest", "short", "long", "duplicates")
_EVERYTHING = (*_CORPORA, "concurrent", "lone", "busy", "rerank", "start", "import")


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One way of running a workload.

    Attributes:
        name: Its row in the tables.
        library: Whose environment it runs in.
        surface: Interface it is called through: `langchain`, `llamaindex` or `plain`.
        backend: Ours only.
        precision: Ours only.
        runs: Workloads that it takes part in.
        rounds: Most rounds; slow peers run once.
    """

    name: str
    library: str
    surface: str
    backend: str = ""
    precision: str = ""
    runs: tuple[str, ...]
    rounds: int | None = None

    @property
    def incumbent(self) -> str:
        """Whom it is compared with."""
        return INCUMBENTS.get(self.surface, "")

    @property
    def process(self) -> str:
        """Contestants of one process share the loaded weights."""
        return f"{self.library} {self.backend} {self.precision}".strip()


def _ours() -> list[Contestant]:
    found = []
    packages = {"langchain": "langchain_bge", "llamaindex": "llamaindex_bge"}
    for surface, package in packages.items():
        for backend, precision in _ADAPTER_MODES:
            runs = [*_CORPORA, "rerank", "concurrent", "lone"]
            if surface == "langchain" and (backend, precision) in {("packed", "float32"), ("openvino", "int8")}:
                runs.append("busy")
            if surface == "llamaindex":
                runs.remove("duplicates")
            if (backend, precision) == ("packed", "float32"):
                runs += ["start", "import"]
            found.append(_contestant(package, surface, backend, precision, runs))
    for backend, precision in _OTHER_MODES:
        found.append(_contestant("bge_runtime", "plain", backend, precision, [*_CORPORA, "rerank", "lone"]))
    for backend, precision in (("openvino", "float32"), ("openvino", "int8"), ("onnx", "float32")):
        found.append(_contestant("langchain_bge", "langchain", backend, precision, ["start"]))
        found.append(_contestant("bge_runtime", "plain", backend, precision, ["start"]))
    for backend, precision in (("packed", "float32"), ("openvino", "int8")):
        found.append(_contestant("bge_runtime", "plain", backend, precision, ["growth"]))
    found.append(_contestant("bge_runtime", "plain", "packed", "float32", ["import"]))
    return _merged(found)


def _contestant(package: str, surface: str, backend: str, precision: str, runs: Sequence[str]) -> Contestant:
    return Contestant(
        name=f"{package}, {backend} {precision}",
        library=OURS,
        surface=surface,
        backend=backend,
        precision=precision,
        runs=tuple(runs),
    )


def _merged(found: Sequence[Contestant]) -> list[Contestant]:
    """Join rows of one name, in order of first appearance."""
    rows: dict[str, Contestant] = {}
    for each in found:
        known = rows.get(each.name)
        runs = each.runs if known is None else (*known.runs, *each.runs)
        rows[each.name] = Contestant(**{**vars(each), "runs": runs})
    return list(rows.values())


CONTESTANTS: tuple[Contestant, ...] = (
    Contestant(name="langchain-huggingface", library="langchain-huggingface", surface="langchain", runs=_EVERYTHING),
    Contestant(
        name="llama-index",
        library="llama-index",
        surface="llamaindex",
        runs=("ingest", "short", "long", "concurrent", "lone", "rerank", "start", "import"),
    ),
    Contestant(name="sentence-transformers", library="sentence-transformers", surface="plain", runs=_EVERYTHING),
    *_ours(),
    Contestant(
        name="FlagEmbedding", library="FlagEmbedding", surface="plain", runs=("ingest", "rerank", "start"), rounds=1
    ),
    Contestant(
        name="fastembed",
        library="fastembed",
        surface="plain",
        runs=("ingest", "short", "long", "lone", "rerank", "start", "import"),
    ),
    Contestant(
        name="infinity",
        library="infinity",
        surface="plain",
        runs=("ingest", "short", "concurrent", "lone", "start"),
    ),
    Contestant(name="FlashRank", library="FlashRank", surface="plain", runs=("rerank",), rounds=1),
    Contestant(name=LIMIT, library=OURS, surface="limit", runs=("ingest", "rerank")),
)


def choose(workload: str, libraries: Sequence[str]) -> list[Contestant]:
    """Return who runs a workload, of the libraries asked for and the incumbents that they are compared with."""
    names = {each.name for each in CONTESTANTS}
    wanted = [each for each in CONTESTANTS if workload in each.runs and each.library in libraries]
    needed = {each.incumbent for each in wanted} & names
    return [each for each in CONTESTANTS if workload in each.runs and (each in wanted or each.name in needed)]
