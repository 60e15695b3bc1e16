"""The vector units that matter for inference, in llama.cpp's words, from what each system calls them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType

__all__ = ["ARM_CORES", "isa_of_linux", "isa_of_mac"]

# Flag of /proc/cpuinfo -> name. x86 as the kernel's cpufeatures.h, Arm as its hwcap.h.
LINUX: Mapping[str, str] = MappingProxyType(
    {
        "sse4_2": "SSE42",
        "avx": "AVX",
        "avx2": "AVX2",
        "fma": "FMA",
        "f16c": "F16C",
        "avx_vnni": "AVX_VNNI",
        "avx512f": "AVX512F",
        "avx512_vnni": "AVX512_VNNI",
        "avx512_bf16": "AVX512_BF16",
        "avx512_fp16": "AVX512_FP16",
        "amx_tile": "AMX_TILE",
        "amx_int8": "AMX_INT8",
        "amx_bf16": "AMX_BF16",
        "asimd": "NEON",
        "neon": "NEON",
        "asimddp": "DOTPROD",
        "asimdhp": "FP16",
        "i8mm": "I8MM",
        "bf16": "BF16",
        "sve": "SVE",
        "sve2": "SVE2",
        "sme": "SME",
    }
)
MAC: Mapping[str, str] = MappingProxyType(
    {
        "hw.optional.neon": "NEON",
        "hw.optional.AdvSIMD": "NEON",
        "hw.optional.arm.FEAT_DotProd": "DOTPROD",
        "hw.optional.arm.FEAT_FP16": "FP16",
        "hw.optional.arm.FEAT_I8MM": "I8MM",
        "hw.optional.arm.FEAT_BF16": "BF16",
        "hw.optional.arm.FEAT_SME": "SME",
        "hw.optional.avx2_0": "AVX2",
        "hw.optional.avx512f": "AVX512F",
    }
)
# (implementer, part) of Arm cores that do not say their name.
ARM_CORES: Mapping[tuple[int, int], str] = MappingProxyType(
    {
        (0x41, 0xD03): "Cortex-A53",
        (0x41, 0xD08): "Cortex-A72",
        (0x41, 0xD0B): "Cortex-A76",
        (0x41, 0xD0C): "Neoverse-N1",
        (0x41, 0xD40): "Neoverse-V1",
        (0x41, 0xD44): "Cortex-X1",
        (0x41, 0xD49): "Neoverse-N2",
        (0x41, 0xD4F): "Neoverse-V2",
        (0x41, 0xD80): "Cortex-A520",
        (0x41, 0xD81): "Cortex-A720",
        (0x41, 0xD82): "Cortex-X4",
        (0x41, 0xD85): "Cortex-X925",
        (0x41, 0xD87): "Cortex-A725",
        (0xC0, 0xAC3): "Ampere-1",
        (0xC0, 0xAC4): "Ampere-1a",
        (0x51, 0x001): "Oryon",
    }
)


def isa_of_linux(flags: Collection[str]) -> tuple[str, ...]:
    """From the flags or features of /proc/cpuinfo."""
    return tuple(dict.fromkeys(name for flag, name in LINUX.items() if flag in flags))


def isa_of_mac(values: Mapping[str, str]) -> tuple[str, ...]:
    """From sysctl's `hw.optional`."""
    return tuple(dict.fromkeys(name for key, name in MAC.items() if values.get(key) == "1"))
