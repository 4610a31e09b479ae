"""The exception tree: one root, and the builtin that a caller would catch."""

from __future__ import annotations

import pickle

import pytest

import bge_runtime

BUILTINS = {
    "ConfigurationError": ValueError,
    "UnknownArgumentError": TypeError,
    "IndexIdentityError": ValueError,
    "InputError": (ValueError, TypeError),
    "InputTooLongError": ValueError,
    "ModelNotFoundError": LookupError,
    "HubUnreachableError": ConnectionError,
    "UnsafeWeightsError": LookupError,
    "UnsupportedModelError": NotImplementedError,
    "BackendError": RuntimeError,
    "OutOfMemoryError": MemoryError,
    "ModelChangedError": RuntimeError,
    "ServerUnreachableError": ConnectionError,
    "EngineStoppedError": RuntimeError,
}


@pytest.mark.parametrize(("name", "builtins"), BUILTINS.items(), ids=BUILTINS)
def test_an_error_is_one_of_ours_and_the_builtin_that_fits(name, builtins):
    error = getattr(bge_runtime, name)
    assert issubclass(error, bge_runtime.BGEError)
    assert all(issubclass(error, each) for each in (builtins if isinstance(builtins, tuple) else (builtins,)))


def test_the_table_above_is_complete():
    errors = {name for name in bge_runtime.__all__ if name.endswith("Error")}
    assert errors == {*BUILTINS, "BGEError"}


@pytest.mark.parametrize("name", BUILTINS)
def test_an_error_survives_pickling_with_its_message(name):
    error = pickle.loads(pickle.dumps(getattr(bge_runtime, name)("what was wrong")))
    assert str(error) == "what was wrong"


def test_an_unknown_argument_is_answered_with_the_nearest_and_the_whole_list():
    with pytest.raises(bge_runtime.UnknownArgumentError) as caught:
        bge_runtime.UnknownArgumentError.check("Thing", ["batchsize", "device"], ["batch_size", "device"])
    message = str(caught.value)
    assert "Thing" in message
    assert "'batchsize'" in message
    assert "Did you mean 'batch_size'?" in message
    assert "batch_size, device" in message
    bge_runtime.UnknownArgumentError.check("Thing", ["device"], ["device"])


def test_a_validation_error_is_rebuilt_with_field_value_and_reason():
    rows = [{"loc": ("top_n",), "msg": "must be positive", "input": 0}]
    message = str(bge_runtime.ConfigurationError.from_validation("BGERerank", rows))
    assert message == "BGERerank: top_n=0: must be positive"
