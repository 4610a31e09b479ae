"""The weighted mean of the weights of several fine-tunes of one model (LM-Cocktail, arXiv:2311.13534).

A fine-tune gains on its task and loses on others; a mean with its base, or with other fine-tunes, keeps most of both.
The sum and the weights by loss are those of FlagEmbedding, research/LM_Cocktail/LM_Cocktail, cocktail.py and utils.py.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bge_runtime import ConfigurationError, ModelNotFoundError, ModelSpec, Reranker, list_models
from bge_runtime.training.folders import ROW, write_row

if TYPE_CHECKING:
    import torch

__all__ = ["mix", "weights_by_loss"]

TOLERANCE = 1e-6  # of the sum of the weights
# What shapes do not tell and the computation depends on, beside what names the model.
CONFIG = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "max_position_embeddings",
    "vocab_size",
    "type_vocab_size",
    "hidden_act",
)
FACTS = ("kind", "score", "pooling", "normalize", "dimension")
VOCABULARIES = ("sentencepiece.bpe.model", "tokenizer.model", "spiece.model")
HEADS = ("sparse_linear", "colbert_linear")  # of bge-m3, beside its weights
ADAPTER = "adapter_config.json"
QUERY_MAP = "query_map.safetensors"
MODULES = "modules.json"
INDEX = "model.safetensors.index.json"
CARD = "README.md"
# What holds weights of one model, in any format, or tells how it was trained: it is not true of the mix.
LEFT_OUT = {".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".ot", ".onnx", ".onnx_data", ".gguf", ".ckpt"}
NOT_OF_THE_MIX = {CARD, ROW, INDEX, "pytorch_model.bin.index.json", "training.json", "trainer_state.json", "curves.png"}
FOLDERS_LEFT_OUT = ("onnx", "openvino", "checkpoint-", "runs", ".")


def mix(models: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str], *, weights: Sequence[float]) -> Path:
    """Write the weighted mean of models of one architecture.

    Each tensor is summed in float32, one of each model in memory at a time, and written in the first model's number
    format. Whatever else belongs to a model (configuration, tokenizer, pooling, prompts) comes from the first one.

    Args:
        models: Folders, or names on the hub: embedders or rerankers, two or more, fine-tunes of one model.
        out: Folder that is written, whole or not at all; it must not be there, or be empty.
        weights: Weight of each model; their sum is 1. A negative one takes away what a fine-tune has learned.

    Returns:
        The folder.

    Raises:
        ConfigurationError: The weights are not allowed, the models cannot be mixed, or the folder cannot be written.
        ModelNotFoundError: A model is not there, or its files are damaged.
    """
    shares = _checked_weights(models, weights)
    target = _target(out)
    mixed = [_Mixed.open(model, share) for model, share in zip(models, shares, strict=True)]
    first = mixed[0]
    for other in mixed[1:]:
        _check_alike(first, other)
    if any(each.folder.resolve() in (target.resolve(), *target.resolve().parents) for each in mixed):
        raise ConfigurationError(f"out={str(target)!r} is inside a model's folder. Name a folder beside it.")
    place = target.with_name(f".{target.name}-{secrets.token_hex(4)}")
    try:
        place.mkdir(parents=True)
        _copy(first.folder, place)
        for part in first.parts:
            _write_part([each.parts[part] for each in mixed], shares, place)
        base = list(dict.fromkeys(name for each in mixed if (name := each.family)))
        write_row(first.spec, place, id=first.family or first.name)
        (place / CARD).write_text(_card(mixed, base), encoding="utf-8")
        if target.is_dir():
            target.rmdir()
        place.rename(target)
    except OSError as error:
        raise ConfigurationError(
            f"out={str(target)!r} cannot be written ({error.strerror or error}). Make room, or name another folder."
        ) from error
    finally:
        shutil.rmtree(place, ignore_errors=True)  # of what failed: the finished one has moved
    return target


def weights_by_loss(losses: Sequence[float], temperature: float = 5.0) -> list[float]:
    """Return a weight for each model by its loss on examples of a task, the largest for the lowest loss.

    Args:
        losses: Mean loss of each model on the same examples.
        temperature: The higher, the more equal the weights.

    Returns:
        softmax(-loss / temperature), as LM-Cocktail has it.

    Raises:
        ConfigurationError: There are no losses, or a number is not allowed.
    """
    if isinstance(losses, str) or not len(losses) or not all(map(_is_number, losses)):
        raise ConfigurationError(f"losses={losses!r} is not allowed. Pass a finite number for each model.")
    if not _is_number(temperature) or temperature <= 0:
        raise ConfigurationError(f"temperature={temperature!r} is not allowed. Pass a number above 0.")
    least = min(losses)
    parts = [math.exp((least - loss) / temperature) for loss in losses]
    return [part / math.fsum(parts) for part in parts]


class _Stored:
    """The tensors of one part of a model, in one file or several: opened, and read when they are asked for.

    Attributes:
        files: Names of the tensors in each file, by the file's place in the folder.
    """

    def __init__(self, folder: Path, files: Sequence[Path]) -> None:
        self.files: dict[Path, list[str]] = {}
        self._held: dict[str, Any] = {}
        for file in files:
            held = _open(file)
            self.files[file.relative_to(folder)] = list(held)
            self._held |= held

    @property
    def names(self) -> set[str]:
        return set(self._held)

    def shape(self, name: str) -> tuple[int, ...]:
        held = self._held[name]
        return tuple(held.get_slice(name).get_shape() if hasattr(held, "get_slice") else held.shape)

    def is_weight(self, name: str) -> bool:
        """Whether a tensor is learned: position numbers, which some versions of transformers keep, are integers."""
        held = self._held[name]
        if hasattr(held, "get_slice"):
            return str(held.get_slice(name).get_dtype()).startswith(("F", "BF"))
        return bool(held.is_floating_point())

    def read(self, name: str) -> torch.Tensor:
        held = self._held[name]
        tensor: torch.Tensor = held.get_tensor(name) if hasattr(held, "get_tensor") else held
        return tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class _Mixed:
    """One of the models.

    Attributes:
        name: What the caller calls it.
        weight: Its weight.
        folder: Its files.
        spec: Its facts.
        digest: SHA-256 of its weights.
        parts: Its tensors: the model's own under `.`, those of further modules and heads under their names.
    """

    name: str
    weight: float
    folder: Path
    spec: ModelSpec
    digest: str
    parts: Mapping[str, _Stored]

    @classmethod
    def open(cls, model: str | os.PathLike[str], weight: float) -> _Mixed:
        name = os.fspath(model)
        _refuse_adapter(name, Path(name).expanduser())
        described = Reranker(name)  # it takes rerankers and embedders alike
        folder = described.source.folder
        _refuse_adapter(name, folder)
        if (folder / QUERY_MAP).is_file():
            raise ConfigurationError(
                f"{name!r} has a {QUERY_MAP}, which fits its own vectors only. Mix the models without it, and train "
                "another one for the mix."
            )
        digest = described.source.weights_digest  # looks whether all files are there, and may be read
        parts = {part: _Stored(folder, files) for part, files in _parts(folder).items()}
        return cls(name=name, weight=weight, folder=folder, spec=described.spec, digest=digest, parts=parts)

    @property
    def family(self) -> str | None:
        """Hub id of what the model is or, of a folder, comes from by the model table; `None` where nothing tells."""
        rows = {row.basename.lower(): row for row in list_models()}
        for candidate in _origins(self.name, self.folder):
            # BAAI's own configurations carry the training path, such as .../BAAI_bge-small-en/
            basename = candidate.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1].removeprefix("BAAI_")
            row = rows.get(basename.lower())
            if row is not None and (row.kind, row.architecture) == (self.spec.kind, self.spec.architecture):
                return row.id
        return None if Path(self.name).expanduser().is_dir() else self.name


def _checked_weights(models: Any, weights: Any) -> list[float]:
    if isinstance(models, str | os.PathLike) or len(models) < 2:
        raise ConfigurationError(f"models={models!r} is not allowed. Pass two or more folders or names.")
    for model in models:
        if not isinstance(model, str | os.PathLike) or not os.fspath(model):
            raise ConfigurationError(f"models holds {model!r}. Pass folders or names.")
    if isinstance(weights, str) or len(weights) != len(models) or not all(map(_is_number, weights)):
        raise ConfigurationError(
            f"weights={weights!r} is not allowed for {len(models)} models. Pass a finite number for each."
        )
    total = math.fsum(weights)
    if abs(total - 1) > TOLERANCE:
        raise ConfigurationError(
            f"weights={list(weights)!r} have the sum {total:.8g}, not 1. Divide each by the sum, or change one."
        )
    return [float(each) for each in weights]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _target(out: Any) -> Path:
    if not isinstance(out, str | os.PathLike) or not os.fspath(out):
        raise ConfigurationError(f"out={out!r} is not a path. Pass a text or a Path.")
    target = Path(out).expanduser().absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigurationError(f"out={str(target)!r} is there already. Name another folder, or take it away.")
    return target


def _refuse_adapter(name: str, folder: Path) -> None:
    if (folder / ADAPTER).is_file():
        raise ConfigurationError(
            f"{name!r} is an adapter ({ADAPTER}), which changes weights and has none of its own to mix. Merge it into "
            "its base first: peft's merge_and_unload(), then save_pretrained() with the base's other files."
        )


def _open(file: Path) -> dict[str, Any]:
    """Return the open file of each tensor; of a pickle, the tensors, which stay on the disk where that is possible."""
    import torch
    from safetensors import safe_open

    try:
        if file.suffix == ".safetensors":
            held = safe_open(str(file), framework="pt")
            return dict.fromkeys(held.keys(), held)  # type: ignore[no-untyped-call]
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
        return {name: tensor for name, tensor in found.items() if isinstance(tensor, torch.Tensor)}
    except Exception as error:  # each reader has error classes of its own
        raise ModelNotFoundError(
            f"{str(file)!r} cannot be read ({type(error).__name__}: {error}). Copy the model's folder again."
        ) from error


def _parts(folder: Path) -> dict[str, list[Path]]:
    """Return the files with weights: the model's own, its modules' (a dense layer after the pooling) and heads."""
    found = {".": _weight_files(folder)}
    for _, module in _modules(folder):
        if module and (files := _weight_files(folder / module)):
            found[module] = files
    for head in HEADS:
        files = [file for suffix in ("safetensors", "pt") if (file := folder / f"{head}.{suffix}").is_file()]
        if files:
            found[head] = files[:1]
    return found


def _weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))


def _modules(folder: Path) -> list[tuple[str, str]]:
    """Return kind and place of each module of sentence-transformers; none where there is no list of them."""
    rows = [row for row in _json(folder / MODULES, list) if isinstance(row, dict)]
    return [(str(row.get("type")).rsplit(".", 1)[-1], str(row.get("path") or "")) for row in rows]


def _json(file: Path, kind: Callable[[], Any] = dict) -> Any:
    """Return what a file holds, which is of one kind; an empty one without the file."""
    if not file.is_file():
        return kind()
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelNotFoundError(f"{str(file)!r} cannot be read ({error}). Copy the model's folder again.") from error
    if type(found) is not kind:
        raise ModelNotFoundError(f"{str(file)!r} holds a {type(found).__name__}. Copy the model's folder again.")
    return found


def _check_alike(first: _Mixed, other: _Mixed) -> None:
    """Refuse models whose mean would be no model.

    Raises:
        ConfigurationError: Says in what they differ.
    """
    for check in (_facts, _configurations, _vocabularies, _module_settings, _tensors):
        if said := check(first, other):
            raise ConfigurationError(
                f"{other.name!r} cannot be mixed with {first.name!r}: {said}. Mix fine-tunes of one model."
            )


def _facts(first: _Mixed, other: _Mixed) -> str | None:
    return _unequal({name: getattr(first.spec, name) for name in FACTS}, {n: getattr(other.spec, n) for n in FACTS})


def _configurations(first: _Mixed, other: _Mixed) -> str | None:
    ours, theirs = (_json(each.folder / "config.json") for each in (first, other))
    return _unequal({name: ours[name] for name in CONFIG if name in ours}, theirs)


def _unequal(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str | None:
    """Say which of the values that both have differs."""
    found = [name for name in ours if name in theirs and ours[name] != theirs[name]]
    return f"{found[0]} is {theirs[found[0]]!r}, not {ours[found[0]]!r}" if found else None


def _vocabularies(first: _Mixed, other: _Mixed) -> str | None:
    ours, theirs = (_vocabulary(each.folder) for each in (first, other))
    if isinstance(ours, dict) and isinstance(theirs, dict):
        odd = sorted(ours.items() ^ theirs.items())[:1]
        return f"its vocabulary differs, for example in {odd[0][0]!r}" if odd else None
    if type(ours) is not type(theirs):
        return "its tokenizer is stored in another format, so that they cannot be compared: save both as tokenizer.json"
    return None if ours == theirs else "its vocabulary is another one"


def _vocabulary(folder: Path) -> dict[str, int] | bytes | None:
    """Return each token's number; of formats without a reader here, the file."""
    from tokenizers import Tokenizer

    if (folder / "tokenizer.json").is_file():
        try:
            found: dict[str, int] = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
        except Exception as error:  # the reader raises Exception itself
            raise ModelNotFoundError(
                f"{str(folder / 'tokenizer.json')!r} cannot be read ({error}). Copy the model's folder again."
            ) from error
        return found
    if (folder / "vocab.txt").is_file():
        lines = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
        return {token: number for number, token in enumerate(lines)}
    return next((file.read_bytes() for name in VOCABULARIES if (file := folder / name).is_file()), None)


def _module_settings(first: _Mixed, other: _Mixed) -> str | None:
    """Compare chains that `ModelSpec.pooling` has no word for; of the others, settings are written in several ways."""
    if first.spec.pooling != "model":
        return None
    ours, theirs = (_modules(each.folder) for each in (first, other))
    if ours != theirs:
        return f"its modules are {theirs}, not {ours}"
    for _, place in ours:
        settings = [_json(each.folder / place / "config.json") for each in (first, other)]
        if place and (said := _unequal(*settings)):
            return f"in {place} {said}"
    return None


def _tensors(first: _Mixed, other: _Mixed) -> str | None:
    """Compare names, shapes, and the numbers of what is no weight."""
    if first.parts.keys() != other.parts.keys():
        return f"weights are in {sorted(other.parts)}, not in {sorted(first.parts)}"
    for part, ours in first.parts.items():
        theirs = other.parts[part]
        missing = _learned(ours, ours.names - theirs.names)
        extra = _learned(theirs, theirs.names - ours.names)
        if missing or extra:
            told = [f"{what} {_shown(names)}" for what, names in (("lacks", missing), ("has also", extra)) if names]
            return f"it {' and '.join(told)}"
        for name in sorted(ours.names & theirs.names):
            if ours.shape(name) != theirs.shape(name):
                return f"{name} is of the shape {theirs.shape(name)}, not {ours.shape(name)}"
            if ours.is_weight(name) != theirs.is_weight(name):
                return f"{name} is of another kind of numbers"
            if not ours.is_weight(name) and not bool((ours.read(name) == theirs.read(name)).all()):
                return f"{name}, which is no weight, holds other numbers"
    return None


def _learned(stored: _Stored, names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if stored.is_weight(name))


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _copy(folder: Path, place: Path) -> None:
    """Copy all that is true of the mix too."""
    for file in sorted(folder.iterdir()):
        if file.is_dir() and not file.name.startswith(FOLDERS_LEFT_OUT):
            shutil.copytree(file, place / file.name, ignore=_weights_among)
        elif file.is_file() and not _weights_among("", [file.name]) and not file.name.startswith("."):
            shutil.copyfile(file, place / file.name)


def _weights_among(_: str, names: Sequence[str]) -> set[str]:
    return {name for name in names if Path(name).suffix in LEFT_OUT or name in NOT_OF_THE_MIX}


def _write_part(parts: Sequence[_Stored], shares: Sequence[float], place: Path) -> None:
    """Write the mean of one part, in as many files as the first model has."""
    from safetensors.torch import save_file

    kept = set.intersection(*(part.names for part in parts))
    index: dict[str, str] = {}
    size = 0
    for stored, names in parts[0].files.items():
        file = stored.with_name(stored.name.replace("pytorch_model", "model")).with_suffix(".safetensors")
        tensors = {name: _mean([part.read(name) for part in parts], shares, name) for name in names if name in kept}
        (place / file).parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file(tensors, place / file, metadata={"format": "pt"})
        except Exception as error:  # of a class of its own, also where the disk is full
            raise OSError(f"{file}: {error}") from error
        index |= dict.fromkeys(tensors, file.name)
        size += sum(tensor.nbytes for tensor in tensors.values())
    if len(parts[0].files) > 1:
        told = {"metadata": {"total_size": size}, "weight_map": index}
        (place / file).with_name(INDEX).write_text(json.dumps(told, indent=2, sort_keys=True), encoding="utf-8")


def _mean(tensors: Sequence[torch.Tensor], shares: Sequence[float], name: str) -> torch.Tensor:
    """Return the weighted mean in the first tensor's number format; what is no weight is the same in all."""
    import torch

    first = tensors[0]
    if not first.is_floating_point():
        return first.clone().contiguous()
    total = torch.zeros(first.shape, dtype=torch.float32)
    for tensor, share in zip(tensors, shares, strict=True):
        total.add_(tensor.to(torch.float32), alpha=share)
    found = total.to(first.dtype)
    if not bool(torch.isfinite(found).all()):
        raise ModelNotFoundError(
            f"The mean of {name} holds numbers that are not finite in {first.dtype}. Look whether a model's weights "
            "are damaged; if none are, give a model in float32 the first place."
        )
    return found


def _origins(name: str, folder: Path) -> list[str]:
    """Return what a model may be called or come from, the surest first."""
    import yaml
    from huggingface_hub import metadata_load

    try:
        card = metadata_load(folder / CARD) if (folder / CARD).is_file() else None
    except (OSError, ValueError, yaml.YAMLError):  # a card that is none, which no loader minds
        card = None
    base = (card or {}).get("base_model")
    told = [
        name,
        _json(folder / ROW).get("id"),
        _json(folder / "config.json").get("_name_or_path"),
        _json(folder / "tokenizer_config.json").get("name_or_path"),
        *(base if isinstance(base, list) else [base]),
    ]
    return [each for each in told if isinstance(each, str)]


def _card(mixed: Sequence[_Mixed], base: Sequence[str]) -> str:
    """Return the model card: metadata that the hub and the runtime read, and what was mixed."""
    metadata = {"tags": ["bge-integrations", "merge"], **({"base_model": list(base)} if base else {})}
    # JSON is YAML, and quotes whatever needs it.
    head = "".join(f"{name}: {json.dumps(value, ensure_ascii=False)}\n" for name, value in metadata.items())
    rows = [f"| {each.name.replace('|', chr(92) + '|')} | {each.weight:.6g} | {each.digest} |\n" for each in mixed]
    return (
        f"---\n{head}---\n\n# Mean of {len(mixed)} models\n\n"
        "Each tensor is the weighted mean of those of these models (LM-Cocktail, arXiv:2311.13534); everything else is "
        f"the first one's.\n\n| model | weight | SHA-256 of its weights |\n|---|---|---|\n{''.join(rows)}"
    )
