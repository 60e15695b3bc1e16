"""The arithmetic of memory, against what llama.cpp reports, and on models that lie."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.machines import RecordedHost

from velollm.errors import ConfigError
from velollm.hardware import Machine, read_machine
from velollm.hardware.gguf import cache_bytes, fits, gpu_room, kv_bytes_per_token, largest_context, memory_needed
from velollm.hardware.shape import read_shape
from velollm.models.gguf import GGUF, GGUFError, read_gguf, read_model

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RESULTS = json.loads((BENCHMARKS / "results" / "gguf_memory.json").read_text(encoding="utf-8"))
MIB, GIB = 1 << 20, 1 << 30
sys.path.insert(0, str(BENCHMARKS))
from gguf_shapes import SHAPES, write_shape  # noqa: E402


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, GGUF]:
    folder = tmp_path_factory.mktemp("shapes")
    return {name: read_gguf(write_shape(folder / f"{name}.gguf", name)) for name in SHAPES}


@pytest.mark.parametrize("row", RESULTS["rows"], ids=lambda row: f"{row['model']}-{list(row['case'].values())}")
def test_against_what_llama_cpp_reports(row: dict[str, Any], shapes: dict[str, GGUF]) -> None:
    need, said = memory_needed(shapes[row["model"]], **row["case"]), row["reported"]
    assert need.total / MIB == pytest.approx(sum(said.values()), rel=0.05)
    for part, size in said.items():
        tolerance = 0.08 if part == "compute" else 0.005
        assert getattr(need, part) / MIB == pytest.approx(size, rel=tolerance, abs=0.2), part


def model(architecture: str, **facts: Any) -> GGUF:
    metadata = {f"{architecture}.{key.replace('__', '.')}": value for key, value in facts.items()}
    return GGUF(metadata={"general.architecture": architecture, **metadata}, tensor_count=0, parameters=0, size=GIB)


def test_public_reports() -> None:
    """Lines that users posted: ik_llama.cpp pull 259 (DeepSeek R1, q8_0) and llama.cpp issue 11861 (a Qwen of 32B)."""
    deepseek = model(
        "deepseek2", block_count=61, embedding_length=7168, attention__head_count=128, attention__head_count_kv=1,
        attention__key_length=576, attention__value_length=512, attention__key_length_mla=192,
        attention__value_length_mla=128,
    )  # fmt: skip
    assert cache_bytes(read_shape(deepseek), 32768, kv_type="q8_0") / MIB == pytest.approx(1166.62, rel=0.001)
    qwen = model("qwen2", block_count=64, embedding_length=5120, attention__head_count=40, attention__head_count_kv=8)
    assert cache_bytes(read_shape(qwen), 16384) / MIB == 4096


def test_kinds_of_blocks(shapes: dict[str, GGUF]) -> None:
    gemma = read_shape(shapes["gemma3-12b"])
    assert [block.window for block in gemma.blocks[:7]] == [1024] * 5 + [0, 1024]
    hybrid = read_shape(shapes["qwen3-next-80b-a3b"])
    assert [bool(block.state) for block in hybrid.blocks[:5]] == [True, True, True, False, True]
    assert [bool(block.key) for block in hybrid.blocks[:5]] == [False, False, False, True, False]
    assert hybrid.recurrent
    assert all(block.value == 0 for block in read_shape(shapes["deepseek-v2-lite"]).blocks)
    assert not any(block.key for block in read_shape(shapes["mamba-2.8b"]).blocks)
    assert kv_bytes_per_token(shapes["llama-3.1-8b"]) == 131_072
    assert set(read_shape(shapes["gpt-oss-20b"]).by_type) == {"F32", "Q8_0", "MXFP4"}
    cacheless = model("bert", block_count=12, embedding_length=768, attention__head_count=12)
    assert memory_needed(cacheless, 512).cache == 0
    shared = model(
        "gemma4", block_count=8, embedding_length=64, attention__head_count=4, attention__head_count_kv=2,
        attention__sliding_window=512, attention__sliding_window_pattern=[True, False] * 4,
        attention__key_length=32, attention__value_length=32, attention__key_length_swa=16,
        attention__value_length_swa=16, attention__shared_kv_layers=4,
    )  # fmt: skip
    assert [(block.key, block.window) for block in read_shape(shared).blocks] == [
        (32, 512), (64, 0), (32, 512), (64, 0), (0, 512), (0, 0), (0, 512), (0, 0),
    ]  # fmt: skip
    draft = model("glm4moe", block_count=47, nextn_predict_layers=1, embedding_length=64, attention__head_count=4)
    assert len(read_shape(draft).blocks) == 46


@pytest.mark.parametrize(
    "facts",
    [
        {"block_count": 1 << 40},
        {"block_count": 5000},
        {"block_count": 4, "embedding_length": -1},
        {"block_count": 4, "attention__head_count": 1 << 60},
        {"block_count": 4, "attention__head_count_kv": [1 << 50] * 4},
    ],
)
def test_absurd_models_are_refused(facts: dict[str, Any]) -> None:
    with pytest.raises(GGUFError, match="absurd"):
        memory_needed(model("llama", **facts), 4096)


@given(st.dictionaries(
    st.sampled_from([
        "block_count", "embedding_length", "attention.head_count", "attention.head_count_kv", "attention.key_length",
        "attention.sliding_window", "attention.sliding_window_pattern", "ssm.inner_size", "ssm.state_size",
        "shortconv.l_cache", "wkv.head_size", "feed_forward_length", "expert_count", "nextn_predict_layers",
    ]),
    st.none() | st.booleans() | st.integers(-5, 5000) | st.lists(st.integers(-1, 300), max_size=4),
), st.sampled_from(["llama", "gemma3", "mamba", "qwen3next", "lfm2", "", "falcon-h1"]))  # fmt: skip
def test_any_metadata_gives_numbers_or_a_refusal(facts: dict[str, Any], architecture: str) -> None:
    metadata = {"general.architecture": architecture, **{f"{architecture}.{key}": one for key, one in facts.items()}}
    try:
        need = memory_needed(GGUF(metadata=metadata, tensor_count=0, parameters=0, size=5), 4096, 2)
    except GGUFError:
        return
    assert all(isinstance(part, int) and part >= 0 for part in attrs.astuple(need))


@pytest.mark.parametrize(
    ("context", "slots", "kv_type"), [(0, 1, "f16"), (1, 0, "f16"), (1 << 40, 1, "f16"), (1, 1, "q9")]
)
def test_values_that_make_no_sense(context: int, slots: int, kv_type: str) -> None:
    with pytest.raises(ConfigError):
        memory_needed(model("llama"), context, slots, kv_type=kv_type)


# ---- where it fits ---------------------------------------------------------------------------------------------------


def machine(name: str) -> Machine:
    return read_machine(RecordedHost(name))


def test_where_models_fit(shapes: dict[str, GGUF]) -> None:
    desktop = machine("nvidia_desktop")
    small = fits(shapes["llama-3.1-8b"], 8192, 4, desktop)
    assert (small.where, small.gpu_blocks, small.missing) == ("gpu", 32, 0)
    large = fits(shapes["llama-3.3-70b"], 8192, 1, desktop)
    assert large.where == "split"
    assert 30 < large.gpu_blocks < 50
    assert large.missing == large.need.total - gpu_room(desktop)
    container = fits(shapes["llama-3.1-8b"], 8192, 1, machine("container_limits"))
    assert container.where == "cpu"
    assert fits(shapes["llama-3.3-70b"], 8192, 1, machine("container_limits")).where == "no"
    assert fits(shapes["llama-3.3-70b"], 8192, 1, machine("apple_m4_max")).where == "gpu"
    assert fits(shapes["llama-3.1-8b"], 4096, 1, machine("raspberry_pi_5")).where == "cpu"


def test_mig_counts_its_largest_part(shapes: dict[str, GGUF]) -> None:
    assert 69 * GIB < gpu_room(machine("h200_mig")) < 70 * GIB


def test_the_largest_context(shapes: dict[str, GGUF]) -> None:
    eight = shapes["llama-3.1-8b"]
    context = largest_context(eight, 8 * GIB, 2)
    assert memory_needed(eight, context, 2).total <= 8 * GIB < memory_needed(eight, context + 256, 2).total
    assert largest_context(eight, GIB) == 0
    assert largest_context(eight, 1 << 50) == 131072
    assert fits(eight, 8192, 1, machine("container_limits")).largest_context > 8192


# ---- parts -----------------------------------------------------------------------------------------------------------


def test_models_in_parts(tmp_path: Path) -> None:
    from tiny_gguf import write_tiny_gguf

    first = tmp_path / "m-00001-of-00002.gguf"
    write_tiny_gguf(first, metadata={"split.count": 2, "split.tensors.count": 42})
    with pytest.raises(GGUFError, match=r"m-00002-of-00002.gguf cannot be read"):
        read_model(first)
    write_tiny_gguf(tmp_path / "m-00002-of-00002.gguf", metadata={"split.count": 2})
    whole, part = read_model(first), read_gguf(first)
    assert (whole.tensor_count, whole.parameters) == (2 * part.tensor_count, 2 * part.parameters)
    assert read_shape(whole).weights == 2 * read_shape(part).weights
    write_tiny_gguf(first, metadata={"split.count": 2, "split.tensors.count": 43})
    with pytest.raises(GGUFError, match="42 tensors together instead of 43"):
        read_model(first)
    odd = write_tiny_gguf(tmp_path / "odd.gguf", metadata={"split.count": 2})
    with pytest.raises(GGUFError, match="its name does not say which"):
        read_model(odd)
    write_tiny_gguf(first, metadata={"split.count": 60_000})
    with pytest.raises(GGUFError, match="does not say which"):
        read_model(first)
