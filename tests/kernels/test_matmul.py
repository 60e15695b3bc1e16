"""Products by cuBLASLt: what is said to one that computes what it is told, and what the real one takes."""

from __future__ import annotations

import ctypes as c
import re
from enum import IntEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulator.cublas_lt import FakeCublasLt
from emulator.executor import Emulator
from support.numbers import TOLERANCE, error, rounded, widened

from velollm.gpu import cublas_lt, matmul
from velollm.gpu.cublas_lt import PROTOTYPES, Algorithm, Attribute, DataType, Heuristic
from velollm.gpu.matmul import Products


def numbers(seed: int, *shape: int, scalar: str = "fp32") -> Any:
    return rounded(np.random.default_rng(seed).standard_normal(shape), scalar)


@pytest.mark.parametrize("scalar", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize(("rows", "columns", "inner"), [(1, 24, 8), (7, 1, 40), (5, 33, 17)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_products(scalar: str, rows: int, columns: int, inner: int, with_bias: bool) -> None:
    on = Emulator()
    x, weight, bias = (
        numbers(seed, *shape, scalar=scalar) for seed, shape in enumerate(((rows, inner), (columns, inner), (columns,)))
    )
    got = on.multiply(on.array(x, scalar), on.array(weight, scalar), bias=on.array(bias, scalar) if with_bias else None)
    expected = widened(x, scalar).astype(np.float64) @ widened(weight, scalar).T.astype(np.float64)
    expected += widened(bias, scalar) if with_bias else 0
    assert got.shape == (rows, columns)
    assert error(widened(on.host(got), scalar), expected) < TOLERANCE[scalar]


def products(on: Emulator) -> tuple[Products, FakeCublasLt]:
    library = FakeCublasLt()
    return Products(on.empty, library), library


def test_the_library_is_asked_once_for_each_shape() -> None:
    on = Emulator()
    made, library = products(on)
    weight, out = on.array(numbers(0, 6, 8)), on.empty((2, 6), "fp32")
    biases = [on.array(numbers(seed, 6)) for seed in (1, 2)]
    for seed, bias in enumerate([biases[0], biases[1], None, biases[0], None]):
        x = numbers(seed, 2, 8)
        made.multiply(on.array(x), weight, out, bias, stream=0)
        expected = x @ weight.view().T + (bias.view() if bias is not None else 0)
        assert np.allclose(on.host(out), expected, atol=1e-5)
    assert library.calls.count("cublasLtMatmulAlgoGetHeuristic") == 2, "with a bias, and without"
    assert library.calls.count("cublasLtMatmul") == 5
    assert [library.calls.count(f"cublasLtMatmulPreference{what}") for what in ("Create", "Destroy")] == [2, 2]


def test_what_is_aligned_otherwise_is_another_product() -> None:
    on = Emulator()
    made, library = products(on)
    x, weight, out = on.array(numbers(0, 5, 4)), on.array(numbers(1, 6, 4)), on.empty((2, 6), "fp32")
    for first in (0, 1, 2, 3):  # at 256, 16, 32 and again 16 bytes
        made.multiply(x[first : first + 2], weight, out, None, stream=0)
        assert np.allclose(on.host(out), x.view()[first : first + 2] @ weight.view().T, atol=1e-5)
    assert library.calls.count("cublasLtMatmulAlgoGetHeuristic") == 3


def test_plans_are_bounded_and_everything_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "MOST_PLANS", 2)
    on = Emulator()
    made, library = products(on)
    weight = on.array(numbers(0, 6, 8))
    for rows in (1, 2, 3, 2, 1):
        made.multiply(on.array(numbers(rows, rows, 8)), weight, on.empty((rows, 6), "fp32"), None, stream=0)
    assert library.calls.count("cublasLtMatmulAlgoGetHeuristic") == 4, "the second was still there, the first no more"
    assert library.alive == 1 + 2 * 4, "a handle, and for each plan an operation and three layouts"
    made.close()
    made.close()
    assert library.alive == 0


def test_nothing_is_asked_for_nothing() -> None:
    on = Emulator()
    made, library = products(on)
    made.multiply(on.empty((0, 8), "fp32"), on.array(numbers(0, 6, 8)), on.empty((0, 6), "fp32"), None, stream=0)
    assert library.calls == ["cublasLtCreate"]


def test_a_refusal_is_told_by_name() -> None:
    on = Emulator()
    made, library = products(on)
    x, weight, out = on.array(numbers(0, 2, 8)), on.array(numbers(1, 6, 8)), on.empty((2, 6), "fp32")
    library.failing["cublasLtMatmulAlgoGetHeuristic"] = 15
    with pytest.raises(RuntimeError, match=r"GetHeuristic answered CUBLAS_STATUS_NOT_SUPPORTED \(15\)"):
        made.multiply(x, weight, out, None, stream=0)
    assert library.calls[-1] == "cublasLtMatmulPreferenceDestroy"
    library.failing.clear()
    made.multiply(x, weight, out, None, stream=0)
    assert np.allclose(on.host(out), x.view() @ weight.view().T, atol=1e-5)


@pytest.mark.parametrize(
    ("x", "weight", "options", "words"),
    [
        ((2, 8), (6, 9), {}, "cannot be multiplied"),
        ((2, 8), (6, 8, 1), {}, "cannot be multiplied"),
        ((2, 0), (6, 0), {}, "no numbers"),
        ((2, 8), (6, 8), {"out": (6, 2)}, "cannot take a product"),
        ((2, 8), (6, 8), {"bias": (5,)}, "a bias of fp32"),
    ],
)
def test_what_does_not_fit_is_refused(
    x: tuple[int, ...], weight: tuple[int, ...], options: dict[str, tuple[int, ...]], words: str
) -> None:
    on = Emulator()
    given = {name: on.empty(shape, "fp32") for name, shape in options.items()}
    with pytest.raises(ValueError, match=words):
        on.multiply(on.empty(x, "fp32"), on.empty(weight, "fp32"), **given)


def test_arguments_of_the_wrong_kind_are_refused() -> None:
    library = FakeCublasLt()
    with pytest.raises(c.ArgumentError):
        library.cublasLtMatmulDescCreate(68, 68, 0)
    with pytest.raises(c.ArgumentError):
        library.cublasLtMatrixLayoutCreate(c.byref(c.c_void_p()), 0, 8.0, 8, 8)


def test_types_of_numbers_are_those_of_cuda() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime")
    for kind in DataType:
        assert int(getattr(runtime.cudaDataType, kind.name)) == kind


# ---- the real library: descriptors need no GPU -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def library() -> Any:
    if find_spec("cuda") is None or find_spec("cuda.pathfinder") is None:
        pytest.skip("cuda-python is not installed")
    try:
        return cublas_lt.load_library()
    except cublas_lt.GpuUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def header(library: Any) -> str:
    """What the headers beside the library declare."""
    from cuda.pathfinder import load_nvidia_dynamic_lib

    folder = Path(load_nvidia_dynamic_lib("cublasLt").abs_path).parent.parent / "include"
    if not (folder / "cublasLt.h").is_file():
        pytest.skip("the library came without its headers")
    return "".join((folder / name).read_text() for name in ("cublas_api.h", "cublasLt.h"))


def test_numbers_are_those_of_the_header(header: str) -> None:
    kinds: list[type[IntEnum]] = [
        cublas_lt.Compute, cublas_lt.Operation, cublas_lt.Epilogue, cublas_lt.Attribute, cublas_lt.Preference,
    ]  # fmt: skip
    for kind in kinds:
        for one in kind:
            found = re.search(rf"\b{one.name} = (\d+)", header)
            assert found is not None, one.name
            assert int(found[1]) == one


def test_functions_take_what_the_header_says(header: str) -> None:
    pointers = {"cublasLtHandle_t", "cublasLtMatmulDesc_t", "cublasLtMatrixLayout_t", "cublasLtMatmulPreference_t"}
    plain = {
        "size_t": c.c_size_t, "uint64_t": c.c_uint64, "int64_t": c.c_int64, "int": c.c_int, "cudaStream_t": c.c_void_p,
    }  # fmt: skip
    for name, declared in PROTOTYPES.items():
        found = re.search(rf"cublasStatus_t CUBLASWINAPI {name}\(([^;]*)\);", header)
        assert found is not None, name
        text = re.sub(r"/\*.*?\*/|//[^\n]*", "", found[1])
        arguments = [re.sub(r"\bconst\b", "", one).split() for one in text.split(",")]
        assert len(arguments) == len(declared), name
        for words, kind in zip(arguments, declared, strict=True):
            type_, pointed = words[0].rstrip("*"), "*" in "".join(words) or words[-1].endswith("[]")
            if type_ in pointers:
                assert kind == (c.POINTER(c.c_void_p) if pointed else c.c_void_p), (name, words)
            elif type_ == "void":
                assert kind == c.c_void_p, (name, words)
            elif type_ in ("cublasLtMatmulHeuristicResult_t", "cublasLtMatmulAlgo_t"):
                assert kind == c.POINTER(Heuristic if "Heuristic" in type_ else Algorithm), (name, words)
            elif pointed:
                assert kind == c.POINTER(plain[type_]), (name, words)
            else:
                assert kind == plain.get(type_, c.c_int), (name, words)  # the rest are enumerations


def test_the_library_takes_the_descriptors(library: Any) -> None:
    """It refuses attributes of another size than it has, so that what it takes is what it means."""
    operation, layout, preference = (c.c_void_p() for _ in range(3))
    assert library.cublasLtMatmulDescCreate(c.byref(operation), 68, DataType.CUDA_R_32F) == 0
    assert library.cublasLtMatrixLayoutCreate(c.byref(layout), DataType.CUDA_R_16BF, 64, 5, 64) == 0
    assert library.cublasLtMatmulPreferenceCreate(c.byref(preference)) == 0
    set_, get = library.cublasLtMatmulDescSetAttribute, library.cublasLtMatmulDescGetAttribute
    get.argtypes = (c.c_void_p, c.c_int, c.c_void_p, c.c_size_t, c.POINTER(c.c_size_t))
    for attribute, value in (
        (Attribute.CUBLASLT_MATMUL_DESC_TRANSA, c.c_int32(1)),
        (Attribute.CUBLASLT_MATMUL_DESC_EPILOGUE, c.c_uint32(4)),
        (Attribute.CUBLASLT_MATMUL_DESC_BIAS_POINTER, c.c_uint64(0x7F00_1234_5600)),
    ):
        assert set_(operation, attribute, c.addressof(value), c.sizeof(value)) == 0
        assert set_(operation, attribute, c.addressof(value), c.sizeof(value) + 1) == 7
        found, written = type(value)(), c.c_size_t()
        assert get(operation, attribute, c.addressof(found), c.sizeof(found), c.byref(written)) == 0
        assert (found.value, written.value) == (value.value, c.sizeof(value))
    for preferred in cublas_lt.Preference:
        wide = preferred is cublas_lt.Preference.CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES
        number: Any = c.c_uint64(1 << 25) if wide else c.c_uint32(16)
        give = library.cublasLtMatmulPreferenceSetAttribute
        assert give(preference, preferred, c.addressof(number), c.sizeof(number)) == 0
        assert give(preference, preferred, c.addressof(number), c.sizeof(number) // 2) == 7
    for made, what in ((operation, "MatmulDesc"), (layout, "MatrixLayout"), (preference, "MatmulPreference")):
        assert getattr(library, f"cublasLt{what}Destroy")(made) == 0
    assert cublas_lt.named(library, 15) == "CUBLAS_STATUS_NOT_SUPPORTED (15)"


def test_without_a_gpu_the_library_says_so(library: Any) -> None:
    from velollm.gpu.device import look

    if not look().missing:
        pytest.skip("there is a GPU")
    with pytest.raises(RuntimeError, match="cublasLtCreate answered CUBLAS_STATUS_NOT_INITIALIZED"):
        Products(Emulator().empty, library)


def test_without_the_library_it_is_said_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    pathfinder = pytest.importorskip("cuda.pathfinder")

    def absent(name: str) -> Any:
        raise pathfinder.DynamicLibNotFoundError(f"no lib{name}")

    monkeypatch.setattr(pathfinder, "load_nvidia_dynamic_lib", absent)
    with pytest.raises(cublas_lt.GpuUnavailable, match=r"need cuBLAS: pip install .*no libcublasLt"):
        cublas_lt.load_library.__wrapped__()
