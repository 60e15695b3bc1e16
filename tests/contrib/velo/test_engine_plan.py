"""How the engine is set up: what was asked for, what memory allows, what cannot be."""

from __future__ import annotations

from typing import Any

import pytest

from velollm.contrib.llamacpp.plan import Machine
from velollm.contrib.velo.plan import EnginePlan, make_plan
from velollm.errors import ConfigError
from velollm.models.gguf import GGUF

GIB = 1024**3
# 32 layers with 8 KV heads of 128: 128 KiB a token in f16.
METADATA = {
    "general.architecture": "llama",
    "llama.context_length": 32_768,
    "llama.embedding_length": 4096,
    "llama.block_count": 32,
    "llama.attention.head_count": 32,
    "llama.attention.head_count_kv": 8,
}


def plan(memory: int, size: int = 4 * GIB, **options: Any) -> EnginePlan:
    model = GGUF(metadata=METADATA, tensor_count=1, parameters=8_000_000_000, size=size)
    return make_plan(model, Machine(cores=6, memory=memory), **options)


def test_a_quarter_of_the_memory_for_context() -> None:
    made = plan(32 * GIB)
    assert (made.context, made.num_blocks * 16, made.threads) == (8192, 32_768, 6)
    assert made.swap_tokens == made.host_tokens == 32_768
    assert plan(8 * GIB).num_blocks * 16 == 16_384
    assert plan(8 * GIB, kv_type="q8_0").num_blocks * 16 > 16_384
    assert plan(1024 * GIB).num_blocks * 16 == 4 * 8192, "no more than there is use for"


def test_context_shrinks_to_what_the_weights_leave() -> None:
    assert plan(4 * GIB + GIB // 2).context == 4096


def test_what_was_asked_for() -> None:
    made = plan(64 * GIB, ctx=16_384, parallel=3, threads=2, batch=64, num_blocks=2048)
    assert (made.context, made.max_running, made.threads, made.batch, made.num_blocks) == (16_384, 3, 2, 64, 2048)
    assert plan(64 * GIB, ctx=100_000).context == 32_768, "no more than the model was trained for"
    assert plan(64 * GIB, num_blocks=64).context == 1024, "nor than there are blocks"


def test_the_cache_is_parted_where_it_can_be_carried_meanwhile() -> None:
    assert plan(32 * GIB).streams
    assert not plan(32 * GIB, kv_layout="unified").streams
    assert not plan(6 * GIB).streams


def test_what_cannot_be() -> None:
    with pytest.raises(ConfigError, match=r"needs 5120 MiB .4096 for its weights.* 4608 MiB are free"):
        plan(4 * GIB + GIB // 2, ctx=8192)
    with pytest.raises(ConfigError, match="batch must be at least 1"):
        plan(GIB, batch=0)
    with pytest.raises(ConfigError, match="kv_type"):
        plan(GIB, kv_type="f8")
    with pytest.raises(ConfigError, match="kv_layout"):
        plan(GIB, kv_layout="parted")
