"""Attention over pages against float64, on random shapes: every kernel, every option, every schedule."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from emulator.executor import Emulator
from hypothesis import given, settings
from hypothesis import strategies as st
from support.attention import Case, attention, random_case, reference
from support.numbers import TOLERANCE, error, rounded, widened

from velollm.gpu.attention import paged_attention

SLOPES = np.geomspace(0.5, 0.004, 16).astype(np.float32)
SINKS = np.linspace(-2, 3, 16).astype(np.float32)


def difference(on: Emulator, case: Case, splits: int | None = None) -> float:
    """The largest error, as a share of the largest number that should have come."""
    arrays = [on.array(one, case.scalar) for one in (case.q, case.keys, case.values)]
    got = paged_attention(*arrays, case.tables, case.lengths, case.starts, splits=splits, on=on, **case.options)
    return error(widened(on.host(got), case.scalar), attention(case))


def options(heads: int, names: str) -> dict[str, Any]:
    known: dict[str, Any] = {"alibi": {"alibi_slopes": SLOPES[:heads]}, "sinks": {"sinks": SINKS[:heads]}}
    known |= {"window": {"window": 37}, "cap": {"soft_cap": 5.0}, "scale": {"scale": 0.3}}
    return {key: value for name in names.split() for key, value in known[name].items()}


DECODE = [
    ("fp16", 64, 1, "window", 1),
    pytest.param("bf16", 64, 3, "alibi", 2, marks=pytest.mark.e2e),
    ("fp16", 80, 8, "", 1),
    pytest.param("bf16", 96, 2, "cap sinks", 1, marks=pytest.mark.e2e),
    pytest.param("fp16", 128, 16, "sinks", 3, marks=pytest.mark.e2e),
    ("bf16", 128, 4, "", 1),
    ("bf16", 256, 8, "window cap", 4),
]


@pytest.mark.parametrize(("scalar", "head_dim", "group", "names", "splits"), DECODE)
def test_decode(on: Emulator, scalar: str, head_dim: int, group: int, names: str, splits: int) -> None:
    case = random_case(
        np.random.default_rng(head_dim + group), scalar=scalar, head_dim=head_dim, kv_heads=2, group=group,
        lengths=[1, 15, 16, 17, 330], queries=[1] * 5, **options(2 * group, names) if group < 16 else {},
    )  # fmt: skip
    assert difference(on, case, splits) < TOLERANCE[scalar]
    assert on.launched[0].startswith("paged_decode")
    assert ("combine" in on.launched[-1]) == (splits > 1)


def test_drafts_are_verified_in_one_decode(on: Emulator) -> None:
    """Up to 16 rows of query and head: each query sees what came before it, and no more."""
    case = random_case(
        np.random.default_rng(5), scalar="bf16", head_dim=64, kv_heads=2, group=4,
        lengths=[5, 4, 133, 0, 20], queries=[4, 4, 3, 0, 1], window=18,
    )  # fmt: skip
    assert difference(on, case, 2) < TOLERANCE["bf16"]
    assert on.launched == ["paged_decode_bf16_d64", "combine_bf16"]


PREFILL = [
    ("fp16", 64, 4, "window"),
    pytest.param("bf16", 80, 1, "sinks", marks=pytest.mark.e2e),
    pytest.param("fp16", 96, 2, "", marks=pytest.mark.e2e),
    ("bf16", 128, 8, "alibi cap scale"),
    pytest.param("fp16", 256, 2, "", marks=pytest.mark.e2e),
]


@pytest.mark.parametrize(("scalar", "head_dim", "group", "names"), PREFILL)
def test_prefill(on: Emulator, scalar: str, head_dim: int, group: int, names: str) -> None:
    """Whole prompts, pieces behind a prefix, single tokens among them: rings are filled more than once."""
    case = random_case(
        np.random.default_rng(head_dim), scalar=scalar, head_dim=head_dim, kv_heads=1, group=group,
        lengths=[21, 290, 150, 33], queries=[21, 40, 1, 17], **options(group, names),
    )  # fmt: skip
    assert difference(on, case) < TOLERANCE[scalar]
    assert on.launched == [f"paged_prefill_{scalar}_d{head_dim}"]


SIMT = [
    ("fp32", 64, 4, "", 1),
    ("fp32", 80, 16, "window", 3),
    pytest.param("fp32", 128, 1, "sinks alibi", 2, marks=pytest.mark.e2e),
    pytest.param("bf16", 256, 2, "cap", 1, marks=pytest.mark.e2e),
]


@pytest.mark.parametrize(("scalar", "head_dim", "group", "names", "splits"), SIMT)
def test_without_tensor_cores(on: Emulator, scalar: str, head_dim: int, group: int, names: str, splits: int) -> None:
    on.capability = 75
    case = random_case(
        np.random.default_rng(group), scalar=scalar, head_dim=head_dim, kv_heads=1, group=group,
        lengths=[1, 90, 40], queries=[1, 20, 3], **options(group, names),
    )  # fmt: skip
    assert difference(on, case, splits) < TOLERANCE[scalar]
    assert on.launched[0] == f"paged_attention_simt_{scalar}_d{head_dim}"


def test_schedules_and_landing_times_change_no_bit() -> None:
    case = random_case(
        np.random.default_rng(1), scalar="fp16", head_dim=128, kv_heads=2, group=4, lengths=[500, 70], queries=[1, 1]
    )
    found = set()
    for seed in range(6):
        for eager in (False, True):
            on = Emulator(seed=seed, eager=eager)
            arrays = [on.array(one) for one in (case.q, case.keys, case.values)]
            found.add(on.host(paged_attention(*arrays, case.tables, case.lengths, on=on)).tobytes())
    assert len(found) == 1


@settings(max_examples=25)
@given(data=st.data())
def test_any_batch(data: st.DataObject) -> None:
    """Random batches of one small kernel of each kind: lengths around the edges of blocks and of tiles."""
    scalar = data.draw(st.sampled_from(["fp16", "fp32"]))
    group = data.draw(st.sampled_from([1, 2, 5]))
    edges = [1, 2, 15, 16, 17, 31, 32, 33, 47, 63, 64, 65, 100, 129]
    lengths = data.draw(st.lists(st.sampled_from(edges), min_size=1, max_size=4))
    short = data.draw(st.booleans())
    queries = [data.draw(st.integers(0, min(length, 3 if short else 70))) for length in lengths]
    names = data.draw(st.sampled_from(["", "window", "cap", "alibi sinks", "window sinks"]))
    case = random_case(
        np.random.default_rng(data.draw(st.integers(0, 99))), scalar=scalar, head_dim=64, kv_heads=2, group=group,
        lengths=lengths, queries=queries, **options(2 * group, names),
    )  # fmt: skip
    on = Emulator(seed=data.draw(st.integers(0, 99)), eager=data.draw(st.booleans()))
    assert difference(on, case, data.draw(st.integers(1, 5)) if scalar == "fp32" or short else None) < TOLERANCE[scalar]


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("scalar", "length", "splits"), [("bf16", 32_768, None), ("fp16", 32_767, 64), ("fp32", 8_193, 7)]
)
def test_long_contexts(scalar: str, length: int, splits: int | None) -> None:
    case = random_case(
        np.random.default_rng(3), scalar=scalar, head_dim=64, kv_heads=1, group=4, lengths=[length, 1], queries=[1, 1]
    )
    on = Emulator(seed=2)
    on.processors = 132
    assert difference(on, case, splits) < TOLERANCE[scalar]
    assert on.launched[-1] == f"combine_{scalar}"


NARROW = {"q": np.zeros((1, 2, 48), np.float16)} | {
    name: np.zeros((3, 2, 16, 48), np.float16) for name in ("keys", "values")
}


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"q": np.zeros((1, 3, 64), np.float16)}, ValueError, "cannot attend"),
        (NARROW, ValueError, "heads of 48"),
        ({"q": np.zeros((1, 34, 64), np.float16)}, ValueError, "at most 16"),
        ({"values": np.zeros((3, 2, 8, 64), np.float16)}, ValueError, "do not fit together"),
        ({"tables": np.zeros((2, 3), np.int32)}, ValueError, "do not fit 1 sequences"),
        ({"lengths": np.ones(1, np.int64)}, TypeError, "int32"),
        ({"q": np.zeros((1, 2, 64), np.float32)}, TypeError, "cannot attend to a cache"),
        ({"q": np.zeros((1, 2, 64), np.float64)}, TypeError, "no kernel reads float64"),
        ({"sinks": np.zeros(3, np.float32)}, ValueError, "sinks has one"),
        ({"splits": 0}, ValueError, "0 splits"),
        ({"out": np.zeros((1, 2, 64), np.float16)}, TypeError, "out is written to"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(changes: dict[str, Any], kind: type[Exception], words: str) -> None:
    given = {
        "q": np.zeros((1, 2, 64), np.float16),
        "keys": np.zeros((3, 2, 16, 64), np.float16),
        "values": np.zeros((3, 2, 16, 64), np.float16),
        "tables": np.zeros((1, 3), np.int32),
        "lengths": np.ones(1, np.int32),
    }
    on = Emulator()
    with pytest.raises(kind, match=words):
        paged_attention(**{**given, **changes}, on=on)
    assert on.launched == []
    with pytest.raises(ValueError, match="out fp16"):
        paged_attention(**given, out=on.empty((1, 2, 80), "fp16"), on=on)
    with pytest.raises(ValueError, match="max_queries"):
        paged_attention(**given, starts=on.array(np.array([0, 1], np.int32)), on=on)


def test_arrays_that_are_there_are_read_and_written_where_they_are() -> None:
    on = Emulator()
    q, cache = on.array(np.ones((2, 2, 64), np.float16)), on.array(np.ones((1, 1, 16, 64), np.float16))
    tables, lengths = on.array(np.zeros((2, 1), np.int32)), on.array(np.array([3, 16], np.int32))
    out = on.empty((4, 2, 64), "fp16")
    got = paged_attention(q, cache, cache, tables, lengths, out=out[1:3], on=on)
    assert got.pointer == out[1:3].pointer
    assert np.array_equal(on.host(out)[1:3], np.ones((2, 2, 64)))
    assert np.isnan(on.host(out)[[0, 3]]).all()


def test_numpy_in_numpy_out() -> None:
    on = Emulator()
    q = np.ones((1, 2, 64), np.float16)
    cache = np.ones((1, 1, 16, 64), np.float16)
    out = paged_attention(q, cache, cache, np.zeros((1, 1), np.int32), np.array([3], np.int32), on=on)
    assert isinstance(out, np.ndarray)
    assert out.dtype == np.float16
    assert np.array_equal(out, q)


@pytest.mark.parametrize(
    ("scalar", "cache", "head_dim", "splits"),
    [("fp16", "fp8", 64, 1), pytest.param("bf16", "int8", 128, 3, marks=pytest.mark.e2e)],
)
def test_eight_bit_caches(on: Emulator, scalar: str, cache: str, head_dim: int, splits: int) -> None:
    """The numbers of the cache times the scale of their head are what the reference attends to."""
    random = np.random.default_rng(head_dim)
    case = random_case(
        random, scalar=scalar, head_dim=head_dim, kv_heads=2, group=4, lengths=[70, 1], queries=[20, 1], window=40
    )
    scales = random.uniform(0.02, 0.05, (2, 2)).astype(np.float32)
    stored = [
        rounded(np.nan_to_num(widened(one, scalar) / scale[:, None, None]), cache)
        for one, scale in zip((case.keys, case.values), scales, strict=True)
    ]
    got = paged_attention(
        on.array(case.q, scalar), on.array(stored[0], cache), on.array(stored[1], cache),
        case.tables, case.lengths, case.starts,
        window=40, key_scales=scales[0], value_scales=scales[1], splits=splits, on=on,
    )  # fmt: skip
    exact = [widened(one, cache) * scale[:, None, None] for one, scale in zip(stored, scales, strict=True)]
    expected = reference(widened(case.q, scalar), *exact, case.tables, case.lengths, case.starts, window=40)
    assert error(widened(on.host(got), scalar), expected) < TOLERANCE[scalar]
    assert on.launched[0] == f"paged_attention_simt_{scalar}_kv_{cache}_d{head_dim}"
