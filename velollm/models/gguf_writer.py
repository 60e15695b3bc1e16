"""The head of a GGUF file, for models that are made here: samples, shapes, random weights.

Layout: the GGUF specification, version 3 (github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, TypeAlias

from velollm.models.gguf_types import TENSOR_TYPES

__all__ = ["Tensor", "pack_head"]

UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
ALIGNMENT = 32

Tensor: TypeAlias = tuple[str, tuple[int, ...], int]  # name, dimensions (the innermost first), type


def pack_head(metadata: Mapping[str, Any], tensors: Sequence[Tensor]) -> tuple[bytes, list[int], int]:
    """What stands before the weights, where in the file those of each tensor begin, and the size of it all in bytes."""
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata))
    head += b"".join(_string(key) + _value(value) for key, value in metadata.items())
    described, offsets, offset = [], [], 0
    for name, dimensions, kind in tensors:
        block, size = TENSOR_TYPES[kind]
        if dimensions[0] % block:
            raise ValueError(f"{name}: rows of {dimensions[0]} weights are no whole blocks of {block}")
        described.append(
            _string(name) + struct.pack(f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, kind, offset)
        )
        offsets.append(offset)
        offset += _aligned(prod(dimensions) // block * size)
    head += b"".join(described)
    begin = _aligned(len(head))
    return head.ljust(begin, b"\0"), [begin + offset for offset in offsets], begin + offset


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", FLOAT32, value)
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _string(value)
    if isinstance(value[0], str):
        return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(_string, value))
    if isinstance(value[0], bool):
        return struct.pack(f"<IIQ{len(value)}?", ARRAY, BOOL, len(value), *value)
    return struct.pack(f"<IIQ{len(value)}i", ARRAY, INT32, len(value), *value)
