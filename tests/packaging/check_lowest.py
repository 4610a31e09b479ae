"""In the environment of `make test-lowest`: the lower bounds of pyproject.toml are what is installed there."""

from __future__ import annotations

import importlib.metadata

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.packaging.project import project

ASKED = [
    Requirement(line)
    for lines in (project()["dependencies"], *project()["optional-dependencies"].values())
    for line in lines
]


# torch is chosen by TORCH=, and the extra `all` names this project itself.
@pytest.mark.parametrize("asked", [each for each in ASKED if each.name not in ("torch", "bge-integrations")], ids=str)
def check_that_the_lower_bound_is_installed(asked: Requirement) -> None:
    (bound,) = [Version(each.version) for each in asked.specifier if each.operator == ">="]
    assert Version(importlib.metadata.version(asked.name)) == bound
