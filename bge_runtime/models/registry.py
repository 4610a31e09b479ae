"""The models that this process knows: the table's rows, and those that were registered."""

from __future__ import annotations

from difflib import get_close_matches

from bge_runtime.errors import ConfigurationError, ModelNotFoundError
from bge_runtime.models.spec import ModelSpec
from bge_runtime.models.table import ROWS

__all__ = ["find_spec", "get_spec", "list_models", "nearest_names", "register_model"]

LONGEST = 96  # of a repository's name; to compare longer ones would only take time
# Of this process: `register_model` adds to it.
_MODELS: dict[str, ModelSpec] = {row.id.lower(): row for row in ROWS}


def list_models() -> tuple[ModelSpec, ...]:
    """Return every model of the table, in table order."""
    return tuple(_MODELS.values())


def register_model(spec: ModelSpec) -> None:
    """Add a model to the table of this process.

    Raises:
        ConfigurationError: The id is in the table already with other facts, or it is no `ModelSpec`.
    """
    if not isinstance(spec, ModelSpec):
        raise ConfigurationError(f"register_model() got {spec!r}. Pass a ModelSpec.")
    known = _MODELS.get(spec.id.lower())
    if known is not None and known != spec:
        raise ConfigurationError(
            f"Model {spec.id!r} is in the table already. Pass the ModelSpec itself as model= to use other facts."
        )
    _MODELS[spec.id.lower()] = spec


def find_spec(name: str) -> ModelSpec | None:
    """Return the row for an id in any letter case or for a basename, or `None`."""
    key = name.strip().strip("/").lower()
    if key in _MODELS:
        return _MODELS[key]
    basename = key.rsplit("/", 1)[-1]
    matches = [spec for spec in _MODELS.values() if spec.basename.lower() == basename]
    return matches[0] if len(matches) == 1 else None


def nearest_names(name: str, count: int = 3) -> list[str]:
    """Return the ids of the table that look most like `name`."""
    basename = name.rsplit("/", 1)[-1].lower()[:LONGEST]
    by_basename = {spec.basename.lower(): spec.id for spec in list_models()}
    return [by_basename[match] for match in get_close_matches(basename, by_basename, n=count, cutoff=0.6)]


def get_spec(name: str) -> ModelSpec:
    """Return the row for a model name.

    Args:
        name: Hub id, in any letter case, or its part after the slash.

    Raises:
        ModelNotFoundError: No row fits; the message names the nearest ones.
        ConfigurationError: It is not a name.
    """
    if not isinstance(name, str):
        raise ConfigurationError(f"{name!r} is not the name of a model. Pass a text.")
    spec = find_spec(name)
    if spec is None:
        near = nearest_names(name)
        hint = f" Did you mean {', '.join(repr(each) for each in near)}?" if near else ""
        raise ModelNotFoundError(
            f"Unknown BGE model {name!r}.{hint} `bge models` lists the table; "
            "pass a folder, 'organisation/name' or a ModelSpec for other models."
        )
    return spec
