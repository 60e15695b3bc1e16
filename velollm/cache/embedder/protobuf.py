"""As much of Protocol Buffers' wire format as an ONNX file needs, so that the package `onnx` is not."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Final

__all__ = ["FLOAT", "INT8", "INT64", "attribute", "model", "node", "tensor", "value"]

FLOAT: Final = 1
INT8: Final = 3
INT64: Final = 7
_OPSET: Final = 17
_IR_VERSION: Final = 8


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def _number(field: int, number: int) -> bytes:
    return _varint(field << 3) + _varint(number)


def _bytes(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _text(field: int, text: str) -> bytes:
    return _bytes(field, text.encode())


def attribute(name: str, value: float | int | Sequence[int]) -> bytes:
    """An AttributeProto: a float, an integer, or integers (none of them negative)."""
    if isinstance(value, float):
        return _text(1, name) + _varint(2 << 3 | 5) + struct.pack("<f", value) + _number(20, 1)
    if isinstance(value, int):
        return _text(1, name) + _number(3, value) + _number(20, 2)
    return _text(1, name) + b"".join(_number(8, number) for number in value) + _number(20, 7)


def node(kind: str, inputs: Sequence[str], outputs: Sequence[str], attributes: Iterable[bytes] = ()) -> bytes:
    """A NodeProto."""
    body = b"".join(_text(1, name) for name in inputs) + b"".join(_text(2, name) for name in outputs)
    return body + _text(4, kind) + b"".join(_bytes(5, one) for one in attributes)


def tensor(name: str, kind: int, shape: Sequence[int], data: bytes) -> bytes:
    """A TensorProto; `data` is little-endian."""
    return b"".join(_number(1, size) for size in shape) + _number(2, kind) + _text(8, name) + _bytes(9, data)


def value(name: str, kind: int, shape: Sequence[int | str]) -> bytes:
    """A ValueInfoProto; a size that is not known has a name."""
    sizes = b"".join(_bytes(1, _text(2, size) if isinstance(size, str) else _number(1, size)) for size in shape)
    return _text(1, name) + _bytes(2, _bytes(1, _number(1, kind) + _bytes(2, sizes)))


def model(
    nodes: Iterable[bytes], tensors: Iterable[bytes], inputs: Iterable[bytes], outputs: Iterable[bytes], name: str
) -> bytes:
    """A ModelProto: the whole file."""
    graph = b"".join(_bytes(1, one) for one in nodes) + _text(2, name)
    graph += b"".join(_bytes(5, one) for one in tensors)
    graph += b"".join(_bytes(11, one) for one in inputs) + b"".join(_bytes(12, one) for one in outputs)
    opset = _text(1, "") + _number(2, _OPSET)
    return _number(1, _IR_VERSION) + _text(2, "velollm") + _bytes(7, graph) + _bytes(8, opset)
