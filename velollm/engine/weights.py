"""The tensors of a GGUF file as float32, for the runners that compute with them. Needs NumPy.

Each is read when it is asked for: whoever carries them somewhere one by one never holds more than one.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt

from velollm.engine.quantised import QUANTISED, dequantised
from velollm.gpu.arrays import storage, widened
from velollm.models.gguf import GGUFError, read_gguf
from velollm.models.gguf_types import TENSOR_NAMES, TENSOR_TYPES

__all__ = ["Stored", "Tensors", "read_numbers", "read_weights"]

Floats = npt.NDArray[np.float32]
Stored: TypeAlias = tuple[str, npt.NDArray[Any]]  # what the numbers are (fp32, fp16, bf16 as its bits), and they

SCALAR_SIZE = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
STRING, ARRAY = 8, 9
KINDS = {0: "fp32", 1: "fp16", 30: "bf16"}


class Tensors(Mapping[str, Floats]):
    """Tensors by their names, as float32, each read anew by its function."""

    def __init__(self, readers: Mapping[str, Callable[[], Stored]]) -> None:
        self._readers = readers

    def __getitem__(self, name: str) -> Floats:
        scalar, values = self.stored(name)
        return widened(values, scalar)

    def stored(self, name: str) -> Stored:
        """A tensor in the numbers of its file, or in float32 where these are quantised."""
        return self._readers[name]()

    def __contains__(self, name: object) -> bool:
        return name in self._readers

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)


def read_weights(path: str | Path) -> Tensors:
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
    readers: dict[str, Callable[[], Stored]] = {}
    for name, shape, kind, offset in found:
        if kind in QUANTISED:
            readers[name] = partial(_dequantised, path, kind, start + offset, shape)
        elif kind in KINDS:
            readers[name] = partial(read_numbers, path, KINDS[kind], start + offset, shape)
        else:
            raise GGUFError(f"{path}: {name} is {TENSOR_NAMES.get(kind, f'of type {kind}')}, which is not read here")
    return Tensors(readers)


def read_numbers(path: str | Path, scalar: str, start: int, shape: tuple[int, ...]) -> Stored:
    """Numbers of the type `scalar` from the byte `start` on."""
    return scalar, np.fromfile(path, storage(scalar), prod(shape), offset=start).reshape(shape)


def _dequantised(path: str | Path, kind: int, start: int, shape: tuple[int, ...]) -> Stored:
    block, size = TENSOR_TYPES[kind]
    data = np.fromfile(path, np.uint8, prod(shape) // block * size, offset=start)
    return "fp32", dequantised(kind, data).reshape(shape)


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
