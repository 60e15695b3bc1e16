"""One sound case of each kernel, small, but wide enough that every ring is filled more than once.

    PYTHONPATH=tests python -m support.kernel_cases STEM [MUTANT]      exit status 0 when it is right in every schedule
    PYTHONPATH=tests python -m support.kernel_cases STEM --gpu         the same on a GPU

That is how a sanitizer comes to stand before Python in a process of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from emulator.executor import Emulator
from support.attention import attention, random_case, reference
from support.draws import drawn, kept
from support.kernel_mutants import MUTANTS
from support.numbers import TOLERANCE, error, rounded, widened

from velollm.gpu.arrays import storage
from velollm.gpu.attention import paged_attention
from velollm.gpu.executor import CudaExecutor, Executor
from velollm.gpu.kv import copy_blocks, write_kv
from velollm.gpu.layers import embed, rms_norm, silu_mul
from velollm.gpu.rope import rotations
from velollm.gpu.sampling import argmax, sample, verify_greedy

__all__ = ["CASES", "right"]

HEADS = np.linspace(0.1, 1.5, 8).astype(np.float32)


def right(stem: str, changes: tuple[tuple[str, str], ...] = (), seeds: range = range(3)) -> bool:
    """Whether the case of `stem` comes out right in these schedules, both landing times among them.

    Raises `EmulationError` for what no kernel may do.
    """
    for seed in seeds:
        on = Emulator(seed=seed, eager=seed % 2 == 1, changes={stem: changes})
        if not all(CASES[stem](on)):
            return False
        assert any(name.startswith(stem) for name in on.launched)
    return True


def poison(shape: tuple[int, ...], scalar: str) -> npt.NDArray[Any]:
    """Numbers whose bytes are all 0xff."""
    made = np.empty(shape, storage(scalar))
    made.view(np.uint8)[...] = 0xFF
    return made


def _attend(on: Executor, splits: int | None = None, **options: Any) -> bool:
    case = random_case(np.random.default_rng(4), **options)
    arrays = [on.array(one, case.scalar) for one in (case.q, case.keys, case.values)]
    got = paged_attention(*arrays, case.tables, case.lengths, case.starts, splits=splits, on=on, **case.options)
    return error(widened(on.host(got), case.scalar), attention(case)) < TOLERANCE[case.scalar]


def _decode(on: Executor) -> Iterator[bool]:
    shape: dict[str, Any] = {"scalar": "fp16", "head_dim": 64, "kv_heads": 2, "group": 4}
    yield _attend(on, 1, lengths=[450, 33], queries=[2, 1], sinks=HEADS, alibi_slopes=HEADS, **shape)
    yield _attend(on, 3, lengths=[300, 16], queries=[3, 1], window=100, soft_cap=8.0, **shape)


def _prefill(on: Executor) -> Iterator[bool]:
    shape: dict[str, Any] = {"scalar": "fp16", "head_dim": 64, "kv_heads": 2, "group": 4}
    odd = {**shape, "group": 3}  # heads of one tile do not begin with the first
    yield _attend(on, lengths=[331, 48], queries=[37, 48], sinks=HEADS[:6], alibi_slopes=HEADS[:6] / 100, **odd)
    yield _attend(on, lengths=[217], queries=[21], window=70, **shape)


def _simt(on: Executor) -> Iterator[bool]:
    shape: dict[str, Any] = {"scalar": "fp32", "head_dim": 80, "kv_heads": 2, "group": 4}
    yield _attend(on, 2, lengths=[130, 16], queries=[9, 2], window=60, sinks=HEADS, **shape)
    case = random_case(
        np.random.default_rng(1), lengths=[50], queries=[1], **{**shape, "scalar": "fp16", "head_dim": 64}
    )
    scales = np.array([[0.02, 0.04], [0.05, 0.03]], np.float32)
    stored = [
        np.clip(np.nan_to_num(one.astype(float)) / 0.05, -127, 127).astype(np.int8) for one in (case.keys, case.values)
    ]
    got = paged_attention(
        case.q, stored[0], stored[1], case.tables, case.lengths,
        key_scales=scales[0], value_scales=scales[1], on=on,
    )  # fmt: skip
    exact = [one * scale[:, None, None].astype(float) for one, scale in zip(stored, scales, strict=True)]
    expected = reference(case.q.astype(float), *exact, case.tables, case.lengths, case.starts)
    yield error(got.astype(float), expected) < TOLERANCE["fp16"]


def _combine(on: Executor) -> Iterator[bool]:
    yield _attend(
        on, 5, scalar="fp16", head_dim=64, kv_heads=2, group=4, lengths=[200, 20], queries=[1, 1], sinks=HEADS
    )


def _write_kv(on: Executor) -> Iterator[bool]:
    random = np.random.default_rng(6)
    for halves, rotary, cache in ((False, 64, "fp32"), (True, 32, "fp32"), (True, 64, "fp8")):
        scalar = "fp32" if cache == "fp32" else "fp16"
        qkv = rounded(random.standard_normal((6, 8, 64)), scalar)
        positions, slots = np.array([0, 1, 2, 7, 8, 9], np.int32), np.array([17, 18, -1, 0, 47, 31], np.int64)
        caches = [on.array(poison((3, 2, 16, 64), cache), cache) for _ in range(2)]
        options: dict[str, Any] = {}
        exact, scale, table = qkv.astype(float), np.ones(2, np.float32), rotations(10, rotary)
        if cache != scalar:
            scale = np.array([0.5, 0.25], np.float32)
            options |= {"key_scales": scale, "value_scales": scale}
        elif halves:
            bias, *norms = (rounded(random.standard_normal(shape), scalar) for shape in ((8, 64), 64, 64))
            options |= {"bias": bias, "q_norm": norms[0], "k_norm": norms[1], "epsilon": 0.1}
            exact += bias
            factor = 1 / np.sqrt((exact**2).mean(-1, keepdims=True) + 0.1)
            exact[:, :4] *= factor[:, :4] * norms[0]
            exact[:, 4:6] *= factor[:, 4:6] * norms[1]
        out = write_kv(on.array(qkv), *caches, slots, positions, table, halves=halves, on=on, **options)
        first = np.arange(rotary // 2) if halves else np.arange(0, rotary, 2)
        second = first + (rotary // 2 if halves else 1)
        a, b = exact[:, :6, first], exact[:, :6, second]
        cos, sin = (table[positions, None, :, part].astype(float) for part in (0, 1))
        exact[:, :6, first], exact[:, :6, second] = a * cos - b * sin, a * sin + b * cos
        yield error(widened(on.host(out), scalar), exact[:, :4]) < TOLERANCE[scalar]
        for cached, part in zip(caches, (exact[:, 4:6], exact[:, 6:]), strict=True):
            found = on.host(cached)
            stored = np.stack([widened(found[slot // 16, :, slot % 16], cache) for slot in slots if slot >= 0])
            wanted = part[slots >= 0] / scale[:, None]
            yield bool(
                np.allclose(
                    stored, wanted, rtol=0.07 if cache == "fp8" else 1e-5, atol=2e-3 if cache == "fp8" else 1e-5
                )
            )
            written = np.zeros((3, 16), bool)
            written.flat[slots[slots >= 0]] = True
            yield bool((found.swapaxes(1, 2)[~written].view(np.uint8) == 0xFF).all())


def _copy_blocks(on: Executor) -> Iterator[bool]:
    cache = np.random.default_rng(0).standard_normal((3, 4, 1, 16, 8)).astype(np.float32)
    source, target = on.array(cache), on.array(np.zeros((3, 7, 1, 16, 8), np.float32))
    copy_blocks(source, target, np.array([[1, 6], [3, 0]], np.int32), on=on)
    expected = np.zeros((3, 7, 1, 16, 8), np.float32)
    expected[:, [6, 0]] = cache[:, [1, 3]]
    yield bool((on.host(target) == expected).all())


def _rms_norm(on: Executor) -> Iterator[bool]:
    random = np.random.default_rng(0)
    x, residual, weight = (
        random.standard_normal(shape).astype(np.float32) * 1e-2 for shape in ((2, 520), (2, 520), 520)
    )
    sum_ = on.array(residual)
    got = rms_norm(x, weight, epsilon=1e-4, residual=sum_, on=on)
    added = (x + residual).astype(float)
    yield (
        error(got.astype(float), added / np.sqrt((added**2).mean(-1, keepdims=True) + 1e-4) * weight)
        < TOLERANCE["fp32"]
    )
    yield bool((on.host(sum_) == x + residual).all())


def _gated(on: Executor) -> Iterator[bool]:
    x = np.random.default_rng(0).standard_normal((2, 2 * 1032)).astype(np.float32)
    gate, up = np.split(x.astype(float), 2, axis=1)
    yield error(silu_mul(x, on=on).astype(float), gate / (1 + np.exp(-gate)) * up) < TOLERANCE["fp32"]


def _embedding(on: Executor) -> Iterator[bool]:
    table = np.random.default_rng(0).standard_normal((5, 520)).astype(np.float32)
    got = embed(table, np.array([4, 5, -1, 0], np.int32), on=on)
    yield bool((got == np.stack([table[4], table[0] * 0, table[0] * 0, table[0]])).all())


def _argmax(on: Executor) -> Iterator[bool]:
    logits = np.random.default_rng(0).integers(0, 40, (3, 700)).astype(np.float32)
    yield argmax(logits, on=on).tolist() == logits.argmax(-1).tolist()


def _sample(on: Executor) -> Iterator[bool]:
    logits = (np.random.default_rng(8).standard_normal((4, 300)) * 2).astype(np.float32)
    top_k, top_p, positions = [2, 0, 30, 0], [1, 0.6, 0.9, 1], [5, 6, 7, 8]
    got = sample(logits, seeds=range(4), positions=positions, top_k=top_k, top_p=top_p, min_p=0.01, on=on)
    for row, values in enumerate(logits.astype(float)):
        left = kept(values, top_k[row], top_p[row], 0.01)
        yield int(got[row]) == drawn(values, left, 1.0, row, positions[row])


def _verify(on: Executor) -> Iterator[bool]:
    drafts, chosen = np.array([[5, 6], [5, 9], [4, 8]], np.int32), np.array([5, 6, 7, 5, 2, 1, 4, 8], np.int32)
    kept, tokens = verify_greedy(drafts, chosen, np.array([0, 3, 6, 8], np.int32), on=on)
    yield kept.tolist() == [2, 1, 1]
    yield tokens.tolist() == [[5, 6, 7], [5, 2, -1], [4, 8, -1]]


CASES: dict[str, Callable[[Executor], Iterator[bool]]] = {
    "paged_decode": _decode,
    "paged_prefill": _prefill,
    "paged_attention_simt": _simt,
    "combine": _combine,
    "write_kv": _write_kv,
    "copy_blocks": _copy_blocks,
    "rms_norm": _rms_norm,
    "gated": _gated,
    "embedding": _embedding,
    "argmax": _argmax,
    "sample": _sample,
    "verify": _verify,
}

if __name__ == "__main__":
    stem, *names = sys.argv[1:]
    if names == ["--gpu"]:
        sys.exit(0 if all(CASES[stem](CudaExecutor())) else 1)
    sys.exit(0 if right(stem, tuple(MUTANTS[stem][name] for name in names)) else 1)
