"""Writer of ONNX files: the few parts of the format that an encoder needs, so that no other package is.

A file is a protocol-buffers message: numbered fields, each a number, a float, or bytes with their length.
See https://github.com/onnx/onnx/blob/main/onnx/onnx.proto for the numbers.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ModelWriter"]

IR_VERSION = 8
OPSETS = {"": 17, "com.microsoft": 1}
TYPES = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7}
INLINE_BYTES = 512  # larger tensors stand in a file of their own: a message holds 2 GB at most
ALIGNMENT = 4096


class ModelWriter:
    """Collects the nodes and tensors of a graph.

    Attributes:
        tensors: The large tensors by name, in the order in which they stand in the data file.
    """

    def __init__(self) -> None:
        """Start with an empty graph."""
        self.tensors: dict[str, NDArray[Any]] = {}
        self._nodes: list[bytes] = []
        self._small: list[bytes] = []
        self._names = 0

    def node(
        self, kind: str, *inputs: str, outputs: int = 1, domain: str = "", attributes: Mapping[str, Any] | None = None
    ) -> list[str]:
        """Append an operation and return the names of its outputs; `""` leaves an optional input out."""
        made = [self._name(kind) for _ in range(outputs)]
        self._nodes.append(
            b"".join(_bytes(1, name) for name in inputs)
            + b"".join(_bytes(2, name) for name in made)
            + _bytes(4, kind)
            + b"".join(_bytes(5, _attribute(name, value)) for name, value in (attributes or {}).items())
            + _bytes(7, domain)
        )
        return made

    def constant(self, values: NDArray[Any]) -> str:
        """Add a tensor and return its name."""
        name = self._name("constant")
        values = np.ascontiguousarray(values)
        if values.nbytes > INLINE_BYTES:
            self.tensors[name] = values
        else:
            self._small.append(_tensor(name, values) + _bytes(9, values.tobytes()))
        return name

    def message(self, inputs: Mapping[str, tuple[str, int]], output: str, data_file: str) -> bytes:
        """Return the file's content.

        Args:
            inputs: Name -> number format and number of dimensions.
            output: Name of the float32 output, a matrix.
            data_file: Name of the file with the large tensors.
        """
        large = [
            _tensor(name, values) + _external(data_file, offset, values.nbytes)
            for (name, values), offset in zip(self.tensors.items(), self.offsets(), strict=True)
        ]
        graph = (
            b"".join(_bytes(1, node) for node in self._nodes)
            + _bytes(2, "encoder")
            + b"".join(_bytes(5, tensor) for tensor in [*self._small, *large])
            + b"".join(_bytes(11, _value(name, *kind)) for name, kind in inputs.items())
            + _bytes(12, _value(output, "float32", 2))
        )
        opsets = b"".join(_bytes(8, _bytes(1, domain) + _number(2, number)) for domain, number in OPSETS.items())
        return _number(1, IR_VERSION) + _bytes(2, "bge-integrations") + _bytes(7, graph) + opsets

    def offsets(self) -> list[int]:
        """Return where in the data file each of `tensors` starts."""
        found, end = [], 0
        for values in self.tensors.values():
            found.append(end)
            end += -(-values.nbytes // ALIGNMENT) * ALIGNMENT
        return found

    def _name(self, kind: str) -> str:
        self._names += 1
        return f"{kind}_{self._names}"


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # negative numbers as two's complement
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes | str) -> bytes:
    content = value.encode() if isinstance(value, str) else value
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _attribute(name: str, value: float | int | Sequence[int]) -> bytes:
    if isinstance(value, float):
        return _bytes(1, name) + _varint(2 << 3 | 5) + struct.pack("<f", value) + _number(20, 1)
    if isinstance(value, int):
        return _bytes(1, name) + _number(3, value) + _number(20, 2)
    return _bytes(1, name) + b"".join(_number(8, each) for each in value) + _number(20, 7)


def _tensor(name: str, values: NDArray[Any]) -> bytes:
    dimensions = b"".join(_number(1, size) for size in values.shape)
    return dimensions + _number(2, TYPES[values.dtype.name]) + _bytes(8, name)


def _external(data_file: str, offset: int, length: int) -> bytes:
    entries = {"location": data_file, "offset": str(offset), "length": str(length)}
    return b"".join(_bytes(13, _bytes(1, key) + _bytes(2, value)) for key, value in entries.items()) + _number(14, 1)


def _value(name: str, kind: str, dimensions: int) -> bytes:
    shape = b"".join(_bytes(1, _bytes(2, f"{name}_{axis}")) for axis in range(dimensions))
    return _bytes(1, name) + _bytes(2, _bytes(1, _number(1, TYPES[kind]) + _bytes(2, shape)))
