"""How a model is loaded: decisions, without a machine or a model."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_gguf import write_tiny_gguf

from velollm.backend import open_backend
from velollm.contrib.forced import CallReader, ForcedCall
from velollm.contrib.llamacpp import EmbeddedBackend, from_hub
from velollm.contrib.llamacpp import embedded as embedding
from velollm.contrib.llamacpp.crashes import CRASH_WINDOW, MAX_CRASHES, Crashes
from velollm.contrib.llamacpp.local_model import describe
from velollm.contrib.llamacpp.plan import Machine, make_plan, this_machine
from velollm.errors import BackendError, ConfigError
from velollm.hardware.gguf import KV_BYTES, kv_bytes_per_token
from velollm.models import hub
from velollm.models.gguf import GGUF

GIB = 1 << 30


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def model(**metadata: Any) -> GGUF:
    known = {
        "general.architecture": "llama",
        "llama.context_length": 131_072,
        "llama.block_count": 32,
        "llama.embedding_length": 4096,
        "llama.attention.head_count": 32,
        "llama.attention.head_count_kv": 8,
    }
    changed = {f"llama.{key.replace('__', '.')}": value for key, value in metadata.items()}
    merged = {key: value for key, value in {**known, **changed}.items() if value is not None}
    return GGUF(metadata=merged, tensor_count=1, parameters=8 * 10**9, size=5 * GIB)


def machine(memory: int = 32 * GIB, cores: int = 8) -> Machine:
    return Machine(cores=cores, memory=memory)


def test_bytes_of_context() -> None:
    assert kv_bytes_per_token(model()) == 131_072  # an 8B of this shape: 1 GiB for 8192 tokens
    assert kv_bytes_per_token(model(), "q8_0") == 131_072 * 17 / 32
    assert kv_bytes_per_token(model(attention__head_count_kv=[8, 0] * 16)) == 65_536
    assert kv_bytes_per_token(model(attention__key_length=64, attention__value_length=64)) == 65_536
    assert kv_bytes_per_token(GGUF(metadata={}, tensor_count=0, parameters=0, size=0)) == 0


def test_what_a_machine_can_hold() -> None:
    plan = make_plan(model(), machine())
    assert (plan.context, plan.slots, plan.threads, plan.batch, plan.pooling) == (8192, 4, 8, 512, "mean")
    assert make_plan(model(), machine(8 * GIB)).slots == 2
    small = make_plan(model(), machine(2 * GIB))
    assert (small.context, small.slots) == (4096, 1)
    assert make_plan(model(), machine(0)).context == 2048
    assert make_plan(model(context_length=1024), machine()).context == 1024


def test_what_is_asked_for_is_done() -> None:
    plan = make_plan(model(), machine(GIB), ctx=32_768, parallel=3, threads=2, kv_type="q8_0", unified=True)
    assert (plan.context, plan.slots, plan.threads, plan.kv_type, plan.unified) == (32_768, 3, 2, "q8_0", True)
    for wrong in ({"ctx": 0}, {"parallel": 0}, {"threads": -1}, {"kv_type": "q3"}):
        with pytest.raises(ConfigError):
            make_plan(model(), machine(), **wrong)  # type: ignore[arg-type]


def test_models_for_embedding() -> None:
    plan = make_plan(model(pooling_type=3, context_length=4096), machine())
    assert (plan.pooling, plan.batch) == ("last", 2048)
    assert make_plan(model(pooling_type=0), machine()).batch == 512


@given(st.integers(0, 1 << 40), st.integers(1, 1 << 20), st.sampled_from(sorted(KV_BYTES)))
def test_plans_stay_within_a_quarter_of_the_memory(memory: int, trained: int, kind: str) -> None:
    shape = model(context_length=trained)
    plan = make_plan(shape, machine(memory), kv_type=kind)
    assert 1 <= plan.slots <= 4
    assert 1 <= plan.context <= trained
    used = plan.slots * plan.context * kv_bytes_per_token(shape, kind)
    assert used <= memory / 4 or (plan.slots == 1 and plan.context <= 2048)


def test_this_machine() -> None:
    here = this_machine()
    assert here.cores >= 1
    assert here.memory > 0


# ---- crashes ---------------------------------------------------------------------------------------------------------


def test_pauses_grow_and_end() -> None:
    crashes = Crashes()
    assert crashes.pause == 0
    pauses = []
    for number in range(MAX_CRASHES):
        crashes.check(100.0 + number, "x", "llama.cpp")
        crashes.add(100.0 + number, "was ended by SIGKILL")
        pauses.append(crashes.pause)
    assert pauses == sorted(pauses)
    assert pauses[0] > 0
    with pytest.raises(BackendError, match=f"{MAX_CRASHES} times.*SIGKILL") as caught:
        crashes.check(100.0 + MAX_CRASHES, "x", "llama.cpp")
    assert caught.value.retry_after is not None
    assert 0 < caught.value.retry_after <= CRASH_WINDOW
    crashes.check(100.0 + MAX_CRASHES + CRASH_WINDOW, "x", "llama.cpp")
    assert crashes.count == 0


def test_rare_crashes_do_not_add_up() -> None:
    crashes = Crashes()
    for number in range(20):
        crashes.check(number * CRASH_WINDOW * 1.1, "x", "llama.cpp")
        crashes.add(number * CRASH_WINDOW * 1.1, "y")
    assert crashes.count == 1


# ---- options ---------------------------------------------------------------------------------------------------------


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install \"velollm\[llamacpp\]\""):
        EmbeddedBackend("model.gguf")


def test_options_that_mean_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "find_spec", lambda name: object())
    for options in ({"api_key": "x"}, {"headers": {"a": "b"}}):
        with pytest.raises(ConfigError, match="mean nothing"):
            EmbeddedBackend("model.gguf", **options)  # type: ignore[arg-type]


@pytest.mark.anyio
async def test_from_the_hub_when_it_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(embedding, "find_spec", lambda name: object())
    monkeypatch.setattr(embedding, "need_hub", lambda: None)
    monkeypatch.setattr(embedding, "fetch_files", lambda name: [write_tiny_gguf(tmp_path / "tiny.gguf")])
    backend = open_backend("hf:org/repo:Q4_0")
    assert isinstance(backend, EmbeddedBackend)
    assert list(tmp_path.iterdir()) == []
    (model,) = await backend.models()
    assert (model.id, model.family) == ("org/repo:Q4_0", "llama")
    with pytest.raises(ConfigError, match="hf:org/repo:quant"):
        open_backend("hf:nothing")


def test_from_the_hub_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "find_spec", lambda name: object())
    monkeypatch.setattr(hub, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"velollm\[hub\]"):
        from_hub("hf:org/repo")


# ---- forced calls, cut anywhere --------------------------------------------------------------------------------------

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    arguments=st.dictionaries(st.text(max_size=5), JSON_VALUES, max_size=4),
    indent=st.none() | st.sampled_from([0, 2, "\t\t"]),
    whole=st.booleans(),
    ascii_only=st.booleans(),
    data=st.data(),
)
def test_reading_of_calls(arguments: Any, indent: Any, whole: bool, ascii_only: bool, data: st.DataObject) -> None:
    value = {"name": "f", "arguments": arguments} if whole else arguments
    text = data.draw(st.sampled_from(["", " \n"])) + json.dumps(value, indent=indent, ensure_ascii=ascii_only) + "\n"
    reader = CallReader(ForcedCall(schema={}, name=None if whole else "f"), "id", "backend")
    deltas = []
    at = 0
    while at < len(text):
        step = data.draw(st.integers(1, 7))
        deltas += reader.feed(text[at : at + step])
        at += step
    deltas += reader.end(cut=False)
    assert [(delta.id, delta.name) for delta in deltas if delta.name] == [("id", "f")]
    joined = "".join(delta.arguments for delta in deltas)
    assert json.loads(joined) == arguments
    assert joined == json.dumps(arguments, separators=(",", ":"), ensure_ascii=ascii_only)


def test_reading_is_quick() -> None:
    for text in ('{"name"' + " " * 100_000, '{"a":"' + "\\" * 100_000, "{" + "}" * 100_000, '{"' * 50_000):
        for name in (None, "f"):
            reader = CallReader(ForcedCall(schema={}, name=name), "id", "backend")
            before = time.thread_time()
            try:
                for at in range(0, len(text), 1000):
                    reader.feed(text[at : at + 1000])
                reader.end(cut=True)
            except BackendError:
                pass
            assert time.thread_time() - before < 0.5


def test_a_chat_model_says_that_it_chats_and_an_embedder_that_it_embeds(tmp_path: Path) -> None:
    """Ollama's command line asks a model that says it embeds for nothing else."""
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    assert describe("m", path, model(), 4096).capabilities == ["completion", "tools"]
    assert describe("m", path, model(pooling_type=1), 4096).capabilities == ["embedding"]
