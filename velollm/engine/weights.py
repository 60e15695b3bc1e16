"""The tensors of a GGUF file as float32, for the runners that compute with them. Needs NumPy."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from velollm.engine.quantised import QUANTISED, dequantised
from velollm.models.gguf import GGUFError, read_gguf
from velollm.models.gguf_types import TENSOR_NAMES, TENSOR_TYPES

__all__ = ["read_weights"]

Floats = npt.NDArray[np.float32]

SCALAR_SIZE = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
STRING, ARRAY = 8, 9
BF16 = 30
KINDS: dict[int, type[np.number[Any]]] = {0: np.float32, 1: np.float16, BF16: np.uint16}  # bfloat16 as its bits


def read_weights(path: str | Path) -> dict[str, Floats]:
    """Every tensor by its name, as float32, the outermost dimension first.

    Raises `GGUFError` for tensor types that are not read (the IQ ones among them).
    """
    header = read_gguf(path)  # checks all lengths, so that what follows may trust them
    with open(path, "rb") as file:
        file.read(8)
        tensors, keys = struct.unpack("<QQ", file.read(16))
        for _ in range(keys):
            _skip_string(file)
            _skip_value(file, _number(file, "<I"))
        found = [_describe(file) for _ in range(tensors)]
        alignment = header.metadata.get("general.alignment", 32)
        start = -(-file.tell() // alignment) * alignment
        weights = {}
        for name, shape, kind, offset in found:
            weights[name] = _read(file, kind, start + offset, int(np.prod(shape)), f"{path}: {name}").reshape(shape)
    return weights


def _read(file: BinaryIO, kind: int, start: int, count: int, where: str) -> Floats:
    """`count` numbers of the tensor type `kind` from the byte `start` on."""
    file.seek(start)
    if kind in QUANTISED:
        block, size = TENSOR_TYPES[kind]
        return dequantised(kind, np.fromfile(file, np.uint8, count // block * size))
    if kind not in KINDS:
        raise GGUFError(f"{where} is {TENSOR_NAMES.get(kind, f'of type {kind}')}, which is not read here")
    values = np.fromfile(file, KINDS[kind], count)
    if kind == BF16:
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def _describe(file: BinaryIO) -> tuple[str, tuple[int, ...], int, int]:
    name = file.read(_number(file, "<Q")).decode()
    dimensions = _number(file, "<I")
    shape = struct.unpack(f"<{dimensions}Q", file.read(8 * dimensions))
    kind, offset = struct.unpack("<IQ", file.read(12))
    return name, shape[::-1], kind, offset


def _skip_string(file: BinaryIO) -> None:
    file.seek(_number(file, "<Q"), 1)


def _skip_value(file: BinaryIO, kind: int) -> None:
    if kind == STRING:
        _skip_string(file)
    elif kind == ARRAY:
        inner, count = struct.unpack("<IQ", file.read(12))
        if inner in SCALAR_SIZE:
            file.seek(SCALAR_SIZE[inner] * count, 1)
        else:
            for _ in range(count):
                _skip_value(file, inner)
    else:
        file.seek(SCALAR_SIZE[kind], 1)


def _number(file: BinaryIO, form: str) -> int:
    return int(struct.unpack(form, file.read(struct.calcsize(form)))[0])
