"""How a call divides its items, so that memory is bounded whatever their lengths."""

from __future__ import annotations

import pytest

from bge_runtime.engine.call import Call
from bge_runtime.engine.flow import Callers, run
from bge_runtime.inputs.prepared import PreparedInputs
from bge_runtime.inputs.tokenizing import TokenSequence


@pytest.mark.parametrize(
    ("lengths", "window", "expected"),
    [
        ([3, 3, 3, 3, 3], None, [3, 2]),  # ten characters at most
        ([10, 1, 9, 1], None, [1, 2, 1]),
        ([50, 1, 50], None, [1, 1, 1]),  # an item that is too large has a window to itself
        ([1] * 5, 2, [2, 2, 1]),
        ([4, 4, 4, 1, 1, 1], 3, [2, 3, 1]),
        ([], None, []),
    ],
)
def test_a_window_ends_at_its_size_or_at_its_number_of_items(engine, monkeypatch, lengths, window, expected):
    monkeypatch.setattr("bge_runtime.engine.call.WINDOW_SIZE", 10)
    items = [str(number) * length for number, length in enumerate(lengths)]
    windows = []

    def prepare(part):
        windows.append(list(part))
        return PreparedInputs([TokenSequence([int(item[0])], [0]) for item in part], [1] * len(part))

    call = Call(engine=engine, batch_tokens=100, window=window, sizes=lambda items: [len(item) for item in items])
    rows = run(call.rows(items, prepare, "cls"), Callers())
    assert [len(part) for part in windows] == expected
    assert [item for part in windows for item in part] == items
    assert [int(row[0]) for row in rows.values] == list(range(len(lengths)))
