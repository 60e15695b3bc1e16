"""Reads the header of a GGUF file: metadata and the shape of its tensors, never the weights.

Files come from anywhere: every length is checked against the file, counts and nesting are bounded, and big arrays
(vocabularies) are walked over without being built. Format: github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import attrs

from velollm.errors import ConfigError
from velollm.models.gguf_types import FILE_TYPES, TENSOR_TYPES

__all__ = ["GGUF", "GGUFError", "LongArray", "Tensor", "parameter_size", "read_gguf", "read_model"]

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_KEYS = 65_536
MAX_KEY = 65_535
MAX_NAME = 1024
MAX_STRING = 4 * 1024 * 1024
MAX_KEPT = 1024  # elements of an array that are worth keeping
MAX_ELEMENTS = 4_000_000  # walked over, all arrays together: the largest vocabularies with merges have under a million
MAX_TENSORS = 100_000  # the largest models have a few thousand
MAX_PARTS = 999
MAX_DEPTH = 4
MAX_DIMENSIONS = 8
WINDOW = 1024 * 1024

STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
LENGTH = struct.Struct("<Q")

PART = re.compile(r"(?P<name>.+)-\d{5}-of-(?P<count>\d{5})\.gguf")

Value: TypeAlias = Any


class GGUFError(ConfigError):
    """The file is not GGUF, or broken; the message says where."""

    code = "invalid_gguf"


@attrs.frozen
class LongArray:
    """Stands for an array too long to be kept."""

    count: int


@attrs.frozen
class Tensor:
    """One tensor: `dimensions` innermost first, `kind` as in `gguf_types`, `size` in bytes (0 for an unknown kind)."""

    name: str
    dimensions: tuple[int, ...]
    kind: int
    size: int


@attrs.frozen(kw_only=True)
class GGUF:
    """What a header says. `parameters` counts weights; `size` is the length of the file in bytes."""

    metadata: dict[str, Value]
    tensor_count: int
    parameters: int
    size: int
    tensors: tuple[Tensor, ...] = attrs.field(default=(), repr=False)

    def get(self, key: str, kind: type[Any]) -> Any:
        """The value of `key` if it has the type `kind` (bools are no ints), else None. `{arch}` stands for the name."""
        value = self.metadata.get(key.replace("{arch}", self.architecture))
        return value if type(value) is kind else None

    @property
    def architecture(self) -> str:
        """`llama`, `qwen3`, `bert`, ..., or an empty string."""
        value = self.metadata.get("general.architecture")
        return value if isinstance(value, str) else ""

    @property
    def name(self) -> str:
        """The model's own name, or an empty string."""
        return self.get("general.name", str) or ""

    @property
    def quantization(self) -> str:
        """`Q4_K_M`, `F16`, ..., or an empty string."""
        kind = self.get("general.file_type", int)
        return FILE_TYPES.get(kind, "") if kind is not None else ""

    @property
    def context_length(self) -> int | None:
        """The context that the model was trained for, in tokens."""
        return self.get("{arch}.context_length", int)  # type: ignore[no-any-return]

    @property
    def chat_template(self) -> str | None:
        """The Jinja text that makes a prompt of a conversation."""
        return self.get("tokenizer.chat_template", str)  # type: ignore[no-any-return]


def parameter_size(parameters: int) -> str:
    """A count of weights as people say it: `135M`, `7.2B`; an empty string for none."""
    if parameters >= 1_000_000_000:
        return f"{parameters / 1e9:.1f}B"
    return f"{parameters / 1e6:.0f}M" if parameters >= 1_000_000 else f"{parameters / 1e3:.0f}K" if parameters else ""


def read_gguf(path: str | Path) -> GGUF:
    """The header of the file at `path`.

    Raises `GGUFError` when it is missing, no GGUF, damaged, or shorter than its tensors need (a broken download).
    """
    try:
        with open(path, "rb") as file:
            return _Reader(file, os.fstat(file.fileno()).st_size, str(path)).read()
    except OSError as error:
        raise GGUFError(f"{path} cannot be read: {error.strerror or error}") from error


def read_model(path: str | Path) -> GGUF:
    """The header of a model with the tensors of all its parts, where it comes in several (`name-00001-of-00003.gguf`).

    Raises `GGUFError` like `read_gguf`, and when a part is missing or belongs to another model.
    """
    first = read_gguf(path)
    count = first.get("split.count", int)
    if count is None or count <= 1:
        return first
    match = PART.fullmatch(Path(path).name)
    if match is None or int(match["count"]) != count or count > MAX_PARTS:
        raise GGUFError(f"{path} cannot be used: it is one of {count} parts, but its name does not say which")
    parts = [
        read_gguf(Path(path).with_name(f"{match['name']}-{number:05}-of-{count:05}.gguf"))
        for number in range(1, count + 1)
    ]
    wanted = first.get("split.tensors.count", int)
    found = sum(part.tensor_count for part in parts)
    if wanted is not None and wanted != found:
        raise GGUFError(f"{path} cannot be used: its parts have {found} tensors together instead of {wanted}")
    return attrs.evolve(
        parts[0],
        tensor_count=found,
        parameters=sum(part.parameters for part in parts),
        size=sum(part.size for part in parts),
        tensors=tuple(tensor for part in parts for tensor in part.tensors),
    )


class _Reader:
    """A cursor over the file, with a window of bytes around it."""

    def __init__(self, file: BinaryIO, size: int, name: str) -> None:
        self.size = size
        self._file = file
        self._name = name
        self._at = 0
        self._start = 0
        self._window = b""
        self._elements = 0

    def read(self) -> GGUF:
        if self.size < 24 or self._take(4) != MAGIC:
            raise self._broken("it is not a GGUF file")
        version = self._number("<I")
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            kind = "a big-endian" if swapped in VERSIONS else f"version {version} of"
            raise self._broken(f"it is {kind} GGUF, which is not supported")
        tensors, keys = self._number("<Q"), self._number("<Q")
        if keys > MAX_KEYS or tensors > MAX_TENSORS:
            raise self._broken(f"it claims {keys} keys and {tensors} tensors")
        metadata: dict[str, Value] = {}
        for _ in range(keys):
            key = self._text(MAX_KEY)
            if key in metadata:
                raise self._broken(f"the key {key[:80]!r} comes twice")
            metadata[key] = self._value(self._number("<I"), 0)
        table, parameters = self._tensors(tensors, metadata)
        return GGUF(metadata=metadata, tensor_count=tensors, parameters=parameters, size=self.size, tensors=table)

    # ---- values ----

    def _value(self, kind: int, depth: int) -> Value:
        if kind in SCALARS:
            return self._number("<" + SCALARS[kind])
        if kind == STRING:
            return self._text(MAX_STRING)
        if kind == ARRAY:
            return self._array(depth + 1)
        raise self._broken(f"a value has the unknown type {kind}")

    def _array(self, depth: int) -> Value:
        kind, count = self._number("<I"), self._number("<Q")
        if depth > MAX_DEPTH:
            raise self._broken("its arrays are nested too deeply")
        least = struct.calcsize(SCALARS[kind]) if kind in SCALARS else 12 if kind == ARRAY else 8
        if count * least > self.size - self._at:
            raise self._broken(f"an array of {count} elements does not fit into it")
        if kind in SCALARS:
            if count > MAX_KEPT:
                self._at += count * least
                return LongArray(count)
            return list(struct.unpack(f"<{count}{SCALARS[kind]}", self._take(count * least)))
        self._elements += count
        if self._elements > MAX_ELEMENTS:
            raise self._broken(f"its arrays have more than {MAX_ELEMENTS} elements")
        if kind == STRING and count > MAX_KEPT:
            self._skip_strings(count)
            return LongArray(count)
        values = [self._value(kind, depth) for _ in range(count)]
        return values if count <= MAX_KEPT else LongArray(count)

    def _skip_strings(self, count: int) -> None:
        length = LENGTH.unpack_from
        while count:
            self._need(8)
            at, end = self._at - self._start, len(self._window) - 8
            while count and at <= end:
                at += 8 + length(self._window, at)[0]
                count -= 1
            self._at = self._start + at
            if self._at > self.size:
                raise self._broken("a string is longer than the file")

    def _text(self, most: int) -> str:
        length = self._number("<Q")
        if length > most:
            raise self._broken(f"a string claims {length} bytes")
        return self._take(length).decode("utf-8", "replace")

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    # ---- tensors ----

    def _tensors(self, count: int, metadata: dict[str, Value]) -> tuple[tuple[Tensor, ...], int]:
        """Walk over the tensors' descriptions; their data must lie within the file."""
        if count * 32 > self.size - self._at:
            raise self._broken(f"{count} tensors do not fit into it")
        table: list[Tensor] = []
        parameters, end = 0, 0
        for _ in range(count):
            name = self._text(MAX_NAME)
            dimensions = self._number("<I")
            if dimensions > MAX_DIMENSIONS:
                raise self._broken(f"a tensor has {dimensions} dimensions")
            weights, lengths = 1, struct.unpack(f"<{dimensions}Q", self._take(8 * dimensions))
            for length in lengths:
                weights *= length
            kind, offset = struct.unpack("<IQ", self._take(12))
            parameters += weights
            block, size = TENSOR_TYPES.get(kind, (1, 0))  # of a type that came later, nothing is known
            table.append(Tensor(name, lengths, kind, -(-weights // block) * size))
            end = max(end, offset + table[-1].size)
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 1 <= alignment <= 1 << 20:
            raise self._broken("its alignment is impossible")
        missing = -(-self._at // alignment) * alignment + end - self.size
        if end and missing > 0:
            raise self._broken(f"it is cut off: {missing} bytes of its tensors are missing; get it once more")
        return tuple(table), parameters

    # ---- bytes ----

    def _take(self, count: int) -> bytes:
        self._need(count)
        at = self._at - self._start
        self._at += count
        return self._window[at : at + count]

    def _need(self, count: int) -> None:
        """Have the next `count` bytes in the window."""
        if count > self.size - self._at:
            raise self._broken("it ends in the middle of its header")
        if not self._start <= self._at <= self._at + count <= self._start + len(self._window):
            self._file.seek(self._at)
            self._start, self._window = self._at, self._file.read(max(count, WINDOW))
            if len(self._window) < count:
                raise self._broken("it became shorter while it was read")

    def _broken(self, what: str) -> GGUFError:
        return GGUFError(f"{self._name} cannot be used: {what}")
