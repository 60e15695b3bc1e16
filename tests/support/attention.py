"""Attention over a paged cache in float64, as one would write it down, and random cases of it."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
from support.numbers import Floats, rounded, widened

__all__ = ["Case", "attention", "random_case", "reference"]


@attrs.define(kw_only=True)
class Case:
    """The arguments of `paged_attention`, the numbers of the caches also in float64."""

    scalar: str
    q: npt.NDArray[Any]
    keys: npt.NDArray[Any]
    values: npt.NDArray[Any]
    tables: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int32]
    options: dict[str, Any]


def random_case(
    random: np.random.Generator,
    *,
    scalar: str,
    head_dim: int,
    kv_heads: int,
    group: int,
    lengths: list[int],
    queries: list[int],
    **options: Any,
) -> Case:
    """Random numbers in randomly placed blocks. What no query may read is NaN, and block numbers there are wild."""
    lengths_, starts = np.array(lengths, np.int32), np.concatenate([[0], np.cumsum(queries)]).astype(np.int32)
    used = -(-lengths_ // 16)
    width = int(used.max(initial=1)) + 1
    blocks = int(used.sum()) + 2
    order = random.permutation(blocks).astype(np.int32)
    tables = np.full((len(lengths), width), 10**8, np.int32)
    caches = random.standard_normal((2, blocks, kv_heads, 16, head_dim))
    caches[:, order[: blocks - int(used.sum())]] = np.nan
    at = blocks - int(used.sum())
    for index, count in enumerate(used):
        tables[index, :count] = order[at : at + count]
        if lengths[index] % 16:
            caches[:, tables[index, count - 1], :, lengths[index] % 16 :] = np.nan
        window = options.get("window", 0)
        if window:  # blocks before the window may have been given away
            first = max(0, lengths[index] - queries[index] - window + 1) // 16
            caches[:, tables[index, :first]] = np.nan
            tables[index, :first] = -1
        at += count
    q = random.standard_normal((int(starts[-1]), kv_heads * group, head_dim))
    return Case(
        scalar=scalar,
        q=rounded(q, scalar),
        keys=rounded(caches[0], scalar),
        values=rounded(caches[1], scalar),
        tables=tables,
        lengths=lengths_,
        starts=starts,
        options=options,
    )


def attention(case: Case) -> Floats:
    """What `paged_attention` should return."""
    q, keys, values = (widened(array, case.scalar) for array in (case.q, case.keys, case.values))
    return reference(q, keys, values, case.tables, case.lengths, case.starts, **case.options)


def reference(
    q: Floats,
    keys: Floats,
    values: Floats,
    tables: npt.NDArray[np.int32],
    lengths: npt.NDArray[np.int32],
    starts: npt.NDArray[np.int32],
    *,
    scale: float | None = None,
    window: int = 0,
    soft_cap: float = 0.0,
    alibi_slopes: npt.NDArray[Any] | None = None,
    sinks: npt.NDArray[Any] | None = None,
) -> Floats:
    """One query and one head after the other."""
    out = np.zeros_like(q)
    heads, head_dim = q.shape[1:]
    group = heads // keys.shape[1]
    for sequence, length in enumerate(lengths):
        count = starts[sequence + 1] - starts[sequence]
        for number in range(count):
            position = length - count + number
            first = max(0, position - window + 1) if window else 0
            seen = np.arange(first, position + 1)
            places = tables[sequence, seen // 16], seen % 16
            for head in range(heads):
                k = keys[places[0], head // group, places[1]]
                v = values[places[0], head // group, places[1]]
                scores = k @ q[starts[sequence] + number, head] * (scale if scale is not None else head_dim**-0.5)
                if soft_cap:
                    scores = soft_cap * np.tanh(scores / soft_cap)
                if alibi_slopes is not None:
                    scores = scores - alibi_slopes[head] * (position - seen)
                top = max(scores.max(), sinks[head] if sinks is not None else -np.inf)
                weights = np.exp(scores - top)
                total = weights.sum() + (np.exp(sinks[head] - top) if sinks is not None else 0)
                out[starts[sequence] + number, head] = weights @ v / total
    return out
