"""Which device and number format a model runs on, and why."""

from __future__ import annotations

import gc
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

from bge_runtime.backends.threads import usable_cores
from bge_runtime.errors import ConfigurationError, OutOfMemoryError, public

__all__ = ["Accelerators", "DeviceChoice", "check_memory", "choose_device", "default_batch_tokens", "release_memory"]

PRECISIONS = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}  # bytes of a weight
# Flag in /proc/cpuinfo -> what it is good for: bfloat16 and int8 are fast only where the processor has them.
PROCESSOR_FEATURES = {
    "avx512f": "AVX-512",
    "avx512_bf16": "AVX-512-BF16",
    "avx512_vnni": "AVX-512-VNNI",
    "amx_bf16": "AMX-BF16",
    "amx_int8": "AMX-INT8",
}
# What a user may have set about threads; nothing here sets them.
THREAD_SETTINGS = (
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "OMP_PROC_BIND",
    "GOMP_SPINCOUNT",
    "KMP_BLOCKTIME",
    "MKL_NUM_THREADS",
    "TOKENIZERS_PARALLELISM",
    "RAYON_NUM_THREADS",
)
_ALIASES = {
    "fp32": "float32",
    "fp16": "float16",
    "bf16": "bfloat16",
    "float": "float32",
    "half": "float16",
    "auto": None,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Accelerators:
    """What this machine offers.

    Attributes:
        cuda: Compute capability of each CUDA device, in index order.
        mps: Whether Apple's Metal backend works.
    """

    cuda: tuple[tuple[int, int], ...] = ()
    mps: bool = False

    @classmethod
    def detect(cls) -> Accelerators:
        """Ask torch."""
        import torch

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return cls(
            cuda=tuple(torch.cuda.get_device_capability(index) for index in range(count)),
            mps=torch.backends.mps.is_available(),
        )

    @classmethod
    def counted(cls) -> Accelerators:
        """Ask torch how many there are, and nothing by which CUDA would start: a process may fork after this."""
        import torch

        return cls(cuda=((8, 0),) * torch.cuda.device_count(), mps=torch.backends.mps.is_available())


@public
@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceChoice:
    """A device, a precision, and the reason for both."""

    device: str
    precision: str
    reason: str

    @staticmethod
    def available() -> tuple[str, ...]:
        """Return what this machine offers, in words, a line per device; asks torch."""
        import torch

        cores, threads = usable_cores(), torch.get_num_threads()
        found = [
            f"cpu: {platform.machine()}, {cores} of {os.cpu_count()} cores for this process, torch uses up to "
            f"{min(threads, cores)} threads{_settings()}{_processor_features()}"
        ]
        if torch.cuda.is_available():
            for index in range(torch.cuda.device_count()):
                facts = torch.cuda.get_device_properties(index)
                size = facts.total_memory / 2**30
                found.append(f"cuda:{index}: {facts.name}, {size:.0f} GiB, capability {facts.major}.{facts.minor}")
        if torch.backends.mps.is_available():
            found.append("mps: Apple Metal")
        return tuple(found)


def choose_device(
    device: str | None = None, precision: str | None = None, *, accelerators: Accelerators | None = None
) -> DeviceChoice:
    """Choose where a model runs: cuda, then mps, then cpu; half precision on GPUs, float32 on CPUs.

    Args:
        device: `cpu`, `cuda`, `cuda:N`, `mps`, or `None` to choose.
        precision: `float32`, `float16`, `bfloat16`, `int8`, or `None` to choose.
        accelerators: What the machine offers; `None` asks torch.

    Raises:
        ConfigurationError: The name is unknown or the device is not there.
    """
    named = check_precision(precision)
    found = accelerators or Accelerators.detect()
    name, why_device = _pick_device(device, found)
    chosen, why_precision = (named, f"{named} as asked") if named else _pick_precision(name, found)
    return DeviceChoice(device=name, precision=chosen, reason=f"{why_device}; {why_precision}")


def check_device_name(device: str | None) -> str | None:
    """Return the device name in lower case; raise `ConfigurationError` when it is none that we know."""
    if device is None or (isinstance(device, str) and device == "auto"):
        return None
    if isinstance(device, str) and re.fullmatch(r"cpu|mps|cuda(:\d+)?", device.lower()):
        return device.lower()
    raise ConfigurationError(f"device={device!r} is not known. Use 'cpu', 'cuda', 'cuda:0', 'mps', or None to choose.")


def check_precision(precision: str | None) -> str | None:
    """Return the precision's full name; torch dtypes are accepted by their name."""
    name = str(precision).removeprefix("torch.").lower() if precision is not None else "auto"
    name = _ALIASES.get(name, name) or "auto"
    if name == "auto":
        return None
    if name not in PRECISIONS:
        raise ConfigurationError(
            f"precision={precision!r} is not known. Use {', '.join(map(repr, PRECISIONS))}, or None to choose."
        )
    return name


def default_batch_tokens(device: str) -> int:
    """Return the padded tokens of one forward pass that run best on a kind of device.

    Small budgets win on CPUs, where large activations leave the cache; GPUs need large ones to be busy.
    """
    return 2048 if device == "cpu" else 65536


def release_memory(device: str) -> None:
    """Give back what dropped weights have left: objects in reference cycles, and memory that torch keeps for reuse."""
    gc.collect()
    if device.startswith(("cuda", "mps")):
        import torch

        (torch.cuda if device.startswith("cuda") else torch.mps).empty_cache()


def check_memory(device: str, needed: int, what: str, *, free: int | None = None) -> None:
    """Refuse weights that cannot fit.

    Args:
        device: Device name.
        needed: Bytes of the weights in their number format.
        what: Model name for the message.
        free: Free bytes; `None` asks the device.

    Raises:
        OutOfMemoryError: Says both figures.
    """
    free = _free_bytes(device) if free is None else free
    if free is not None and needed > free:
        raise OutOfMemoryError(
            f"{what!r} needs {needed / 1e9:.2f} GB for its weights and {device!r} has {free / 1e9:.2f} GB free. "
            "Use a smaller model, precision='bfloat16', another device, or unload other models."
        )


def _free_bytes(device: str) -> int | None:
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    meminfo = Path("/proc/meminfo")
    if device == "cpu" and os.name == "posix" and meminfo.exists():
        match = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text(encoding="ascii"))
        return int(match.group(1)) * 1024 if match else None
    return None


def _pick_device(device: str | None, found: Accelerators) -> tuple[str, str]:
    name = check_device_name(device)
    if name is None:
        if found.cuda:
            return "cuda:0", f"first of {len(found.cuda)} CUDA device(s)"
        if found.mps:
            return "mps", "Metal is available and CUDA is not"
        return "cpu", "no CUDA or Metal device"
    if name.startswith("cuda"):
        index = int(name.partition(":")[2] or 0)
        if index >= len(found.cuda):
            raise ConfigurationError(
                f"device={device!r} is not there: {len(found.cuda)} CUDA device(s) found. Use None to choose."
            )
        return f"cuda:{index}", f"cuda:{index} as asked"
    if name == "mps" and not found.mps:
        raise ConfigurationError("device='mps' is not there: torch finds no Metal backend. Use None to choose.")
    return name, f"{name} as asked"


def _pick_precision(device: str, found: Accelerators) -> tuple[str, str]:
    if device.startswith("cuda"):
        major, minor = found.cuda[int(device.partition(":")[2])]
        # float16 before bfloat16: three more bits of mantissa, and the authors publish float16 results.
        if major >= 7:
            return "float16", f"float16 because compute capability {major}.{minor} is fast in it"
        return "float32", f"float32 because compute capability {major}.{minor} is slow in half precision"
    if device == "mps":
        return "float16", "float16 is Metal's fast format"
    return "float32", "float32 is exact; precision='bfloat16' is faster on CPUs that have it"


def _settings() -> str:
    """Return the settings of threads that are in force, in words."""
    found = [f"{name}={os.environ[name]}" for name in THREAD_SETTINGS if name in os.environ]
    return f" ({', '.join(found)})" if found else ", fewer while others keep cores busy"


def _processor_features() -> str:
    """Return the instruction sets that matter here; empty where the system does not tell."""
    try:
        words = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return ""
    found = [name for flag, name in PROCESSOR_FEATURES.items() if flag in words]
    return f", {' '.join(found) or 'no AVX-512'}"
