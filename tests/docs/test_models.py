"""docs/models.md shows the model table as it is."""

from __future__ import annotations

import pytest

from bge_runtime import ModelSpec, list_models
from tests.docs.model_table import PAGE, row, updated


def test_the_page_is_up_to_date() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == updated(page), "run: python tests/docs/model_table.py --write"


@pytest.mark.parametrize("spec", list_models(), ids=lambda spec: spec.id)
def test_every_model_has_a_line(spec: ModelSpec) -> None:
    assert row(spec) in PAGE.read_text(encoding="utf-8")
