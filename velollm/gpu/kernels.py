"""The catalogue of kernels: each instance by name, with its source and the macros that make it."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

__all__ = ["HEAD_DIMS", "QUANTISED", "SCALARS", "Kernel", "catalogue", "kernel"]

SCALARS = {"fp32": "float", "fp16": "f16", "bf16": "bf16"}  # by the names that kernels are called by
QUANTISED = {"fp8": "f8", "int8": "i8"}
HEAD_DIMS = (64, 80, 96, 128, 256)


@attrs.frozen(kw_only=True)
class Kernel:
    """One `extern "C"` function in `source`, compiled with `macros`; GPUs need the compute capability `minimum`."""

    stem: str
    suffix: str
    source: str
    macros: tuple[tuple[str, str], ...]
    minimum: int = 75

    @property
    def name(self) -> str:
        """The name of the function."""
        return f"{self.stem}_{self.suffix}"


def kernel(stem: str, scalar: str, *, head_dim: int | None = None, cache: str | None = None) -> Kernel:
    """The instance of `stem` for numbers of type `scalar`, heads of `head_dim`, a KV cache of type `cache`.

    Raises `ValueError` for one that there is not.
    """
    for one in FAMILIES[stem]:
        if one.suffix == _suffix(scalar, head_dim, cache if cache != scalar else None):
            return one
    of = f" for heads of {head_dim}" if head_dim is not None else ""
    kept = f" over a cache of {cache}" if cache not in (None, scalar) else ""
    raise ValueError(f"there is no kernel {stem} in {scalar}{of}{kept}")


def catalogue() -> Iterator[Kernel]:
    """Every instance that there is."""
    for family in FAMILIES.values():
        yield from family


def _suffix(scalar: str, head_dim: int | None = None, cache: str | None = None) -> str:
    parts = [scalar, cache and f"kv_{cache}", head_dim and f"d{head_dim}"]
    return "_".join(part for part in parts if part)


def _family(
    stem: str,
    *,
    source: str | None = None,
    scalars: tuple[str, ...] = tuple(SCALARS),
    head_dims: tuple[int, ...] | None = None,
    caches: tuple[str, ...] | None = None,
    minimum: int = 75,
) -> tuple[Kernel, ...]:
    found = []
    for scalar in scalars:
        for cache in (scalar, *caches) if caches is not None else (None,):
            for head_dim in head_dims or (None,):
                macros = [("SUFFIX", _suffix(scalar, head_dim, cache if cache != scalar else None))]
                if scalar in SCALARS:
                    macros.append(("SCALAR", SCALARS[scalar]))
                if cache is not None:
                    macros.append(("CACHED", {**SCALARS, **QUANTISED}[cache]))
                if head_dim is not None:
                    macros.append(("HEAD_DIM", str(head_dim)))
                one = Kernel(
                    stem=stem,
                    suffix=macros[0][1],
                    source=source or f"{stem}.cu",
                    macros=tuple(macros),
                    minimum=minimum,
                )
                found.append(one)
    return tuple(found)


HALVES = ("fp16", "bf16")
BYTES = "bytes"  # where it does not matter what the numbers are
FAMILIES: dict[str, tuple[Kernel, ...]] = {
    family[0].stem: family
    for family in (
        _family("paged_decode", scalars=HALVES, head_dims=HEAD_DIMS, minimum=80),
        _family("paged_prefill", scalars=HALVES, head_dims=HEAD_DIMS, minimum=80),
        _family("paged_attention_simt", scalars=("fp32",), head_dims=HEAD_DIMS, caches=())
        + _family("paged_attention_simt", scalars=HALVES, head_dims=HEAD_DIMS, caches=tuple(QUANTISED)),
        _family("combine"),
        _family("write_kv", scalars=("fp32",), caches=())
        + _family("write_kv", scalars=HALVES, caches=tuple(QUANTISED)),
        _family("copy_blocks", scalars=(BYTES,)),
        _family("rms_norm"),
        _family("gated"),
        _family("embedding"),
        _family("argmax"),
        _family("sample"),
        _family("verify", scalars=("int32",)),
    )
}
