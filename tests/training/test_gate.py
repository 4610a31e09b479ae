"""The gate: what is handed over, and what is not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from bge_runtime import ConfigurationError
from bge_runtime.training.gate import METRIC, general_questions, pass_gate
from tests.training.toys import toy_guard


def fixed(value, count=2):
    """Return what measures every collection alike: a value for each question, or one for each of `count`."""

    def measured(data):
        values = value[data.name] if isinstance(value, dict) else value
        per_query = dict.fromkeys(data.queries, values) if isinstance(values, float) else values
        return SimpleNamespace(
            per_query={METRIC: per_query}, metrics={METRIC: sum(per_query.values()) / len(per_query)}
        )

    return measured


def questions(name, count=40):
    guard = toy_guard()
    return type(guard)(
        name=name,
        queries={f"q{at}": "what" for at in range(count)},
        grades={f"q{at}": {"a": 1} for at in range(count)},
        documents=guard.documents,
    )


def gate(before, after, **options):
    sets = {"unseen": questions("unseen"), "seen": questions("seen")}
    return pass_gate(fixed(before), fixed(after), development=sets, guard=questions("guard"), **options)


LEVEL = {"unseen": 0.5, "seen": 0.5, "guard": 0.5}


def test_a_gain_on_one_set_without_a_loss_elsewhere_opens_it():
    found = gate(LEVEL, {**LEVEL, "seen": 0.6})
    assert found.is_open
    assert found.reasons == ()
    assert {each.name: round(each.difference.mean, 3) for each in found.measured} == {
        "unseen": 0.0,
        "seen": 0.1,
        "guard": 0.0,
    }


@pytest.mark.parametrize("name", ["unseen", "seen"])
def test_a_significant_loss_on_either_set_closes_it_whatever_the_other_gained(name):
    other = {"unseen": "seen", "seen": "unseen"}[name]
    found = gate(LEVEL, {**LEVEL, name: 0.4, other: 0.9})
    assert not found.is_open
    assert f"worse on '{name}'" in found.reasons[0]


def test_no_gain_that_the_questions_show_closes_it():
    found = gate(LEVEL, LEVEL)
    assert "gained nothing" in found.reasons[0]


def test_the_guard_may_fall_by_the_tolerance_and_no_more():
    after = {**LEVEL, "seen": 0.9, "guard": 0.48}
    assert gate(LEVEL, after, tolerance=0.03).is_open
    found = gate(LEVEL, after, tolerance=0.01)
    assert not found.is_open
    assert "lost more than 0.01 on 'guard'" in found.reasons[0]
    assert gate(LEVEL, after, tolerance=0.01, force=True).is_open
    assert gate(LEVEL, after, force=True).as_dict()["reasons"]


@pytest.mark.parametrize("tolerance", [-0.1, 1, True, "0.1", None])
def test_a_tolerance_is_a_share(tolerance):
    with pytest.raises(ConfigurationError, match="tolerance="):
        gate(LEVEL, LEVEL, tolerance=tolerance)


def test_the_questions_of_the_package_have_one_answer_each():
    found = general_questions()
    assert len(found.queries) == 160
    assert all(len(grades) == 1 and grades.keys() <= found.documents.keys() for grades in found.grades.values())
    assert len(set(found.documents.values())) == len(found.documents) == 240
