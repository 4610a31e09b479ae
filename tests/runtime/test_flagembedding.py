"""Vectors and scores equal what FlagEmbedding itself gave on the same seeded checkpoints; see `tests/reference`."""

from __future__ import annotations

import json

import pytest

from tests.reference.cases import BY_LABEL, request_of
from tests.reference.check import DATA, TOLERANCE
from tests.reference.ours import answer, differences, extract, fingerprint
from tests.runtime import references

ANEW = "Make the numbers anew: make reference-check WRITE=1"


def kept(label):
    return json.loads((DATA / f"{label}.json").read_text(encoding="utf-8"))


def check_that_it_is_the_same_checkpoint(folder, reference):
    """Say it plainly where this machine's torch draws other weights: nothing could agree then."""
    import torch

    found = fingerprint(folder)
    if found != pytest.approx(reference["checkpoint"], rel=1e-6):
        pytest.fail(
            f"The weights of {folder} are not those that the reference numbers belong to (torch here: "
            f"{torch.__version__}, there: {reference['made_by']['torch of the checkpoint']}): {found} here, "
            f"{reference['checkpoint']} there. {ANEW}"
        )


def test_each_case_has_its_numbers_and_no_other_is_there():
    assert {file.stem for file in DATA.glob("*.json")} == set(BY_LABEL)
    assert sum(file.stat().st_size for file in DATA.iterdir()) < 200_000


@pytest.mark.parametrize("label", BY_LABEL)
def test_results_equal_those_of_flagembedding(hub_cache, label):
    case, reference = BY_LABEL[label], kept(label)
    assert request_of(case)["digest"] == reference["request"], f"{label} asks something else now. {ANEW}"
    check_that_it_is_the_same_checkpoint(references.snapshot_of(hub_cache, case.model), reference)
    found = {name: apart for name, _, apart in differences(extract(case, answer(case)), reference["answer"])}
    assert {name: apart for name, apart in found.items() if not apart <= TOLERANCE} == {}


def test_another_checkpoint_is_named_as_the_reason(hub_cache):
    other = references.snapshot_of(hub_cache, "BAAI/bge-small-zh-v1.5")
    with pytest.raises(pytest.fail.Exception, match=r"torch here: .*, there: .*make reference-check WRITE=1"):
        check_that_it_is_the_same_checkpoint(other, kept("bge-small-en-v1.5"))


def test_a_difference_is_seen_wherever_it_is():
    theirs = {"dense": [[0.1, 0.2]], "sparse": [{"7": 0.5}], "scores": {"colbert": [[0.1], [0.2]]}}
    assert {name: apart for name, _, apart in differences(theirs, theirs)} == {
        "dense": 0,
        "sparse": 0,
        "scores colbert": 0,
    }
    for mine, name, apart in (
        ({**theirs, "dense": [[0.1, 0.3]]}, "dense", pytest.approx(0.1)),
        ({**theirs, "dense": [[0.1]]}, "dense", float("inf")),
        ({**theirs, "sparse": [{"8": 0.5, "7": 0.5}]}, "sparse", 0.5),
        ({**theirs, "scores": {}}, "scores colbert", float("inf")),
        (
            {**theirs, "scores": {"colbert": [[0.1], [float("nan")]]}},
            "scores colbert",
            pytest.approx(float("nan"), nan_ok=True),
        ),
    ):
        assert {label: value for label, _, value in differences(mine, theirs)}[name] == apart
