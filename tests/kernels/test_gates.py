"""NVRTC compiles every kernel for every architecture, without a driver, and none takes more than is written down."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from support.kernel_gates import load, too_much

from velollm.gpu.compiler import ARCHITECTURES, Compiler, default_cache, parse_report
from velollm.gpu.errors import KernelCompileError
from velollm.gpu.kernels import Kernel, catalogue, kernel

pytestmark = pytest.mark.skipif(find_spec("cuda") is None, reason="the extra cuda is not installed")

PAIRS = [
    (one, architecture)
    for one in catalogue()
    for architecture in ARCHITECTURES
    if int(architecture.removeprefix("sm_")) >= one.minimum
]
# At every run the hottest ones on the newest, the oldest and a common GPU; end to end all of them.
FAST = {
    ("paged_decode_bf16_d128", "sm_90"),
    ("paged_decode_fp16_d256", "sm_86"),
    ("paged_prefill_bf16_d64", "sm_120"),
    ("paged_attention_simt_fp16_d64", "sm_75"),
    ("write_kv_bf16", "sm_100"),
    ("rms_norm_bf16", "sm_80"),
    ("gated_fp16", "sm_89"),
    ("combine_fp32", "sm_75"),
}


def test_all_kernels_are_gated() -> None:
    gates = load()
    assert [(name, architecture) for name in gates for architecture in gates[name]] == [
        (one.name, architecture) for one, architecture in PAIRS
    ]
    assert {(one.name, architecture) for one, architecture in PAIRS} >= FAST
    assert len({one.name for one in catalogue()}) == len(list(catalogue()))


@pytest.mark.parametrize(("name", "architecture"), sorted(FAST))
def test_the_hottest(name: str, architecture: str) -> None:
    (one,) = (one for one in catalogue() if one.name == name)
    assert too_much(Compiler(default_cache()).compile(one, architecture), load()) == []


@pytest.mark.e2e
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_of_them(architecture: str) -> None:
    compiler, gates = Compiler(default_cache()), load()
    wrong = [text for one, its in PAIRS if its == architecture for text in too_much(compiler.compile(one, its), gates)]
    assert wrong == []


def test_the_gate_closes() -> None:
    """A kernel that spills, or takes more registers than it did, is noticed."""
    compiler = Compiler(None)
    combine = kernel("combine", "fp32")
    compiled = compiler.compile(combine, "sm_80")
    assert too_much(compiled, load()) == []
    assert len(too_much(compiled, {combine.name: {"sm_80": compiled.resources.registers - 9}})) == 1
    report = (
        "ptxas info: 16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads\nptxas info: Used 255 registers"
    )
    assert (parse_report(report).stack_bytes, parse_report(report).spill_bytes) == (16, 20)
    with pytest.raises(KernelCompileError, match="did not say"):
        parse_report("")


def test_what_does_not_compile_says_why() -> None:
    wrong = Kernel(
        stem="combine", suffix="fp64", source="combine.cu", macros=(("SUFFIX", "fp64"), ("SCALAR", "double2x"))
    )
    with pytest.raises(KernelCompileError, match="double2x"):
        Compiler(None).compile(wrong, "sm_80")
    with pytest.raises(KernelCompileError, match="needs sm_80"):
        Compiler(None).compile(kernel("paged_decode", "bf16", head_dim=64), "sm_75")
    with pytest.raises(ValueError, match="no kernel paged_decode in fp32 for heads of 64"):
        kernel("paged_decode", "fp32", head_dim=64)


def test_what_newer_gpus_run() -> None:
    """Machine code runs on later GPUs of the same generation, and on no other."""
    compiler = Compiler(None)
    assert all(compiler.architecture(int(one.removeprefix("sm_"))) == one for one in ARCHITECTURES)
    compiler.architectures = (75, 80, 90, 100)
    assert [compiler.architecture(one) for one in (75, 80, 87, 103)] == ["sm_75", "sm_80", "sm_80", "sm_100"]
    for unknown in (70, 120):
        with pytest.raises(KernelCompileError, match=f"compiles for 75, 80, 90, 100, and not for {unknown}"):
            compiler.architecture(unknown)
