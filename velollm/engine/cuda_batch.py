"""A step's chunks as the arrays that kernels read: tokens, positions, slots, and tables for attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from velollm.engine.blocks import BLOCK_SIZE
from velollm.engine.sampling import Draw
from velollm.engine.scheduler import Chunk
from velollm.gpu.arrays import ITEM_SIZE, Array
from velollm.gpu.attention import DECODE_ROWS
from velollm.gpu.executor import Executor

__all__ = ["DecodeInputs", "DrawInputs", "Inputs", "Part", "inputs_of"]

NOT_KEPT = -1  # the slot of a row whose keys and values go nowhere


@attrs.frozen(kw_only=True)
class Part:
    """Rows of a batch that one kernel attends to: the queries of some sequences, at most `longest` of each."""

    rows: slice
    tables: Array
    lengths: Array
    starts: Array
    longest: int


@attrs.frozen(kw_only=True)
class Inputs:
    """What the layers of one step have in common. `wanted` are the rows whose logits count; None: all of them."""

    tokens: Array
    positions: Array
    slots: Array
    parts: tuple[Part, ...]
    wanted: Array | None = None


def inputs_of(chunks: Sequence[Chunk], group: int, on: Executor) -> Inputs:
    """The inputs of any step: chunks of so few tokens that their rows fit the decoding kernel first, then the others.

    `group` query heads share a KV head. `wanted` has the rows of the samples, in the order of `chunks`.
    """
    few = [chunk for chunk in chunks if chunk.count * group <= DECODE_ROWS]
    many = [chunk for chunk in chunks if chunk.count * group > DECODE_ROWS]
    ordered = few + many
    ends = np.cumsum([chunk.count for chunk in ordered])
    last = {id(chunk): end - 1 for chunk, end in zip(ordered, ends, strict=True)}
    positions = [np.arange(chunk.start, chunk.start + chunk.count) for chunk in ordered]
    slots = [
        np.asarray(chunk.table)[place // BLOCK_SIZE] * BLOCK_SIZE + place % BLOCK_SIZE
        for chunk, place in zip(ordered, positions, strict=True)
    ]
    parts, first = [], 0
    for part in (few, many):
        if part:
            parts.append(_part(on, part, first))
            first = parts[-1].rows.stop
    return Inputs(
        tokens=on.array(np.concatenate([np.asarray(chunk.tokens, np.int32) for chunk in ordered])),
        positions=on.array(np.concatenate(positions).astype(np.int32)),
        slots=on.array(np.concatenate(slots).astype(np.int64)),
        parts=tuple(parts),
        wanted=on.array(np.array([last[id(chunk)] for chunk in chunks if chunk.sample], np.int32)),
    )


def _part(on: Executor, chunks: Sequence[Chunk], first: int) -> Part:
    counts, given = [chunk.count for chunk in chunks], [chunk.table for chunk in chunks]
    tables = np.full((len(chunks), max(map(len, given))), -1, np.int32)
    for row, table in zip(tables, given, strict=True):
        row[: len(table)] = table
    return Part(
        rows=slice(first, first + sum(counts)),
        tables=on.array(tables),
        lengths=on.array(np.array([chunk.start + chunk.count for chunk in chunks], np.int32)),
        starts=on.array(np.cumsum([0, *counts]).astype(np.int32)),
        longest=max(counts),
    )


class Places:
    """Arrays that stay where they are: written on the `host`, and sent `there` in one copy from pinned memory.

    `shapes` names them, with the type of their numbers; the widest come first, so that all of them are aligned.
    """

    def __init__(self, on: Executor, shapes: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
        size = sum(ITEM_SIZE[scalar] * int(np.prod(shape)) for scalar, shape in shapes.values())
        self._on = on
        self._staged, self._device = on.pinned((size,), "uint8"), on.empty((size,), "uint8")
        self.host: dict[str, npt.NDArray[Any]] = {}
        self.there: dict[str, Array] = {}
        at = 0
        for name, (scalar, shape) in shapes.items():
            staged, self.there[name] = (
                attrs.evolve(whole, pointer=whole.pointer + at, shape=shape, scalar=scalar)
                for whole in (self._staged, self._device)
            )
            self.host[name] = staged.view()
            at += staged.nbytes

    def send(self) -> None:
        """Copy all of it. What was sent before must have arrived."""
        self._on.copy(self._staged, self._device)


class DecodeInputs:
    """Inputs of one size for steps of one token for each sequence, at places that stay: `rows` sequences, whose tables
    have `width` blocks. Rows without a sequence have no context, and what they compute is kept nowhere.
    """

    def __init__(self, on: Executor, rows: int, width: int) -> None:
        self._places = Places(
            on,
            {
                "slots": ("int64", (rows,)),
                "tokens": ("int32", (rows,)),
                "positions": ("int32", (rows,)),
                "lengths": ("int32", (rows,)),
                "tables": ("int32", (rows, width)),
            },
        )
        there = self._places.there
        part = Part(
            rows=slice(0, rows),
            tables=there["tables"],
            lengths=there["lengths"],
            starts=on.array(np.arange(rows + 1, dtype=np.int32)),
            longest=1,
        )
        self.inputs = Inputs(tokens=there["tokens"], positions=there["positions"], slots=there["slots"], parts=(part,))

    def fill(self, chunks: Sequence[Chunk]) -> None:
        """Put `chunks` of one token each in. Those before must have arrived."""
        host, count = self._places.host, len(chunks)
        host["slots"][count:] = NOT_KEPT
        host["tables"][...] = -1
        for name in ("tokens", "positions", "lengths"):
            host[name][count:] = 0
        for row, chunk in enumerate(chunks):
            table, start = chunk.table, chunk.start
            host["tokens"][row] = chunk.sequence.tokens[start]
            host["positions"][row], host["lengths"][row] = start, start + 1
            host["slots"][row] = table[start // BLOCK_SIZE] * BLOCK_SIZE + start % BLOCK_SIZE
            used = min(len(table), host["tables"].shape[1])
            host["tables"][row, :used] = table[:used]
        self._places.send()


class DrawInputs:
    """How the tokens of up to `rows` rows are drawn, at places that stay, as `velollm.gpu.sample` takes it."""

    def __init__(self, on: Executor, rows: int) -> None:
        kinds = {"seed": "uint64", "position": "int32", "temperature": "fp32", "top_k": "int32"}
        self._names = (*kinds, "top_p", "min_p")
        self._places = Places(on, {name: (kinds.get(name, "fp32"), (rows,)) for name in self._names})

    def fill(self, draws: Sequence[Draw | None]) -> dict[str, Array]:
        """Put `draws` in, and return the arguments of `sample`; where there is none, the best is taken."""
        for name in self._names:
            self._places.host[name][: len(draws)] = [0 if draw is None else getattr(draw, name) for draw in draws]
        self._places.send()
        found = {name: array[: len(draws)] for name, array in self._places.there.items()}
        return {"seeds": found.pop("seed"), "positions": found.pop("position"), **found}
