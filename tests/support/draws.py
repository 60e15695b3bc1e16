"""Sampling in NumPy, as one would write it down: random words, cuts by sorting, and the draw of Gumbel."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from support.numbers import Floats

__all__ = ["drawn", "kept", "philox"]

Words = npt.NDArray[np.uint64]


def philox(counter: Words, key: tuple[int, int]) -> Words:
    """Philox4x32-10 of [..., 4] words, as Random123 defines it."""
    words, keys = counter.astype(np.uint64), list(key)
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        a, b = words[..., 0] * np.uint64(0xD2511F53), words[..., 2] * np.uint64(0xCD9E8D57)
        first = (b >> np.uint64(32)) ^ words[..., 1] ^ np.uint64(keys[0])
        third = (a >> np.uint64(32)) ^ words[..., 3] ^ np.uint64(keys[1])
        words = np.stack([first, b & low, third, a & low], axis=-1)
        keys = [(keys[0] + 0x9E3779B9) % 2**32, (keys[1] + 0xBB67AE85) % 2**32]
    return words


def kept(logits: Floats, top_k: int, top_p: float, min_p: float) -> npt.NDArray[np.bool_]:
    """Which tokens may be drawn: by sorting, as one would."""
    p = np.exp(logits - logits.max())
    left = np.ones(len(logits), bool)
    if 0 < top_k < len(logits):
        left &= logits >= np.sort(logits)[-top_k]
    if top_p < 1:
        order = np.argsort(-np.where(left, p, 0), kind="stable")
        mass = np.cumsum(p[order] * left[order])
        last = order[np.searchsorted(mass, top_p * mass[-1])]
        left &= logits >= logits[last]
    return left & (p >= min_p)


def drawn(logits: Floats, left: npt.NDArray[np.bool_], temperature: float, seed: int, position: int) -> int:
    """The draw of Gumbel over `left`."""
    tokens = np.arange(len(logits), dtype=np.uint64)
    counters = np.zeros((len(logits), 4), np.uint64)
    counters[:, 0], counters[:, 1] = tokens // 4, position
    words = philox(counters, (seed % 2**32, seed >> 32))[np.arange(len(logits)), tokens % 4]
    u = ((words >> np.uint64(8)).astype(np.float64) + 0.5) / 2**24
    return int(np.where(left, (logits - logits.max()) / temperature - np.log(-np.log(u)), -np.inf).argmax())
