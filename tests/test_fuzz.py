"""Readers of strangers' bytes under damaged input: no fault of ours, the same however it is cut, and quickly."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fuzz_targets import TARGETS

ROUNDS = 400
SECONDS = 0.5  # for an input of a kilobyte or two, on a busy machine; the script is stricter


def damaged(seed: bytes, chance: random.Random) -> bytes:
    """A few bytes other, more, fewer, or twice."""
    data = bytearray(seed)
    for _ in range(chance.randint(1, 6)):
        at, size = chance.randrange(len(data) + 1), chance.choice((1, 1, 2, 7, 40))
        kind = chance.randrange(5)
        if kind == 0:
            data[at : at + size] = chance.randbytes(size)
        elif kind == 1:
            data[at:at] = data[chance.randrange(len(data) + 1) :][:size]
        elif kind == 2:
            del data[at : at + size]
        elif kind == 3:
            data[at:at] = chance.choice(
                [b"\r\n", b"\n\n", b"\0", b'"', b"{", b"}", b"[", b"\\", b"\xed\xa0\x80", b": "]
            )
        elif data:
            data[at % len(data)] ^= 1 << chance.randrange(8)
    return bytes(data)


@pytest.mark.parametrize("name", TARGETS)
def test_examples_and_their_damage(name: str) -> None:
    target, chance = TARGETS[name], random.Random(name)
    for seed in target.seeds:
        target.run(seed)
    for _ in range(ROUNDS):
        data = damaged(chance.choice(target.seeds), chance)
        begun = time.thread_time()
        target.run(data)
        assert time.thread_time() - begun < SECONDS, data


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=40, deadline=None)
@given(data=st.binary(max_size=200))
def test_noise(name: str, data: bytes) -> None:
    TARGETS[name].run(data)
