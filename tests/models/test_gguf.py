"""The reader of GGUF headers, on a sound file and on every kind of broken one."""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_gguf import CHAT_TEMPLATE, CONTEXT, NAME, write_tiny_gguf

from velollm.models.gguf import GGUFError, LongArray, parameter_size, read_gguf

HEADER = 16_000  # where the tiny model's header has ended


def packed(*values: tuple[str, Any]) -> bytes:
    return b"".join(struct.pack("<" + form, value) for form, value in values)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def header(keys: bytes, count: int, tensors: bytes = b"", tensor_count: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensor_count, count) + keys + tensors


def string_array(count: int, data: bytes) -> bytes:
    return text(b"a") + packed(("I", 9), ("I", 8), ("Q", count)) + data


def read_bytes(folder: Path, data: bytes) -> Any:
    path = folder / "x.gguf"
    path.write_bytes(data)
    return read_gguf(path)


def test_what_a_model_says(tiny: Path) -> None:
    model = read_gguf(tiny)
    assert model.architecture == "llama"
    assert model.name == NAME
    assert model.quantization == "F32"
    assert model.context_length == CONTEXT
    assert model.chat_template == CHAT_TEMPLATE
    assert model.tensor_count == 21
    assert model.parameters == 426_624
    assert model.size == tiny.stat().st_size < 2_000_000
    assert model.get("{arch}.attention.head_count_kv", int) == 2
    assert model.get("{arch}.attention.head_count_kv", str) is None
    assert model.get("tokenizer.ggml.add_bos_token", int) is None  # a bool is none
    tokens = model.metadata["tokenizer.ggml.tokens"]
    assert len(set(tokens)) == len(tokens) == 512
    assert tokens[-3] == "<|im_start|>"


def test_the_tiny_model_is_the_same_everywhere(tiny: Path, tmp_path: Path) -> None:
    assert write_tiny_gguf(tmp_path / "again.gguf").read_bytes() == tiny.read_bytes()
    assert write_tiny_gguf(tmp_path / "other.gguf", seed=1).read_bytes() != tiny.read_bytes()
    assert (
        read_gguf(write_tiny_gguf(tmp_path / "n.gguf", metadata={"tokenizer.chat_template": None})).chat_template
        is None
    )


def test_what_a_file_does_not_say(tmp_path: Path) -> None:
    model = read_bytes(tmp_path, header(b"", 0))
    assert (model.architecture, model.name, model.quantization, model.parameters) == ("", "", "", 0)
    assert model.context_length is None
    assert model.chat_template is None


def test_values_of_every_type(tmp_path: Path) -> None:
    kinds = {0: ("B", 1), 1: ("b", -1), 2: ("H", 2), 3: ("h", -2), 4: ("I", 3), 5: ("i", -3), 6: ("f", 0.5)}
    kinds |= {7: ("?", True), 10: ("Q", 4), 11: ("q", -4), 12: ("d", 0.25)}
    keys = b"".join(text(b"k%d" % kind) + packed(("I", kind), (form, value)) for kind, (form, value) in kinds.items())
    keys += text(b"s") + packed(("I", 8)) + text("grün".encode())
    keys += (
        text(b"n") + packed(("I", 9), ("I", 9), ("Q", 2), ("I", 4), ("Q", 1), ("I", 7), ("I", 8), ("Q", 1)) + text(b"x")
    )
    found = read_bytes(tmp_path, header(keys, len(kinds) + 2)).metadata
    assert found == {**{f"k{kind}": value for kind, (_, value) in kinds.items()}, "s": "grün", "n": [[7], ["x"]]}


def test_long_arrays_are_passed_over(tmp_path: Path) -> None:
    keys = string_array(5000, text(b"word") * 5000)
    keys += text(b"b") + packed(("I", 9), ("I", 6), ("Q", 3000)) + bytes(12_000)
    keys += text(b"after") + packed(("I", 4), ("I", 7))
    found = read_bytes(tmp_path, header(keys, 3)).metadata
    assert found == {"a": LongArray(5000), "b": LongArray(3000), "after": 7}


def test_a_long_array_of_long_strings(tmp_path: Path) -> None:
    keys = string_array(1100, text(b"w" * 4000) * 1100) + text(b"after") + packed(("I", 4), ("I", 7))
    assert read_bytes(tmp_path, header(keys, 2)).metadata["after"] == 7


NESTED = text(b"a") + packed(("I", 9)) + packed(("I", 9), ("Q", 1)) * 6 + bytes(64)
TENSOR = text(b"t") + packed(("I", 1), ("Q", 8), ("I", 0), ("Q", 0))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not a GGUF"),
        (b"GGUF", "not a GGUF"),
        (b"<!doctype html>" + bytes(50), "not a GGUF"),
        (header(b"", 0, version=1), "version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (header(b"", 1 << 60), "claims"),
        (header(b"", 0, tensor_count=1 << 60), "claims"),
        (header(b"", 3), "in the middle"),
        (header(struct.pack("<Q", 1 << 62) + bytes(20), 1), "a string claims"),
        (header(text(b"a") + packed(("I", 99)), 1), "unknown type"),
        (header(text(b"a") + packed(("I", 8), ("Q", 1 << 40)), 1), "a string claims"),
        (header(text(b"a") + packed(("I", 8), ("Q", 1000)), 1), "in the middle"),
        (header(text(b"a") + packed(("I", 9), ("I", 4), ("Q", 1 << 62)), 1), "does not fit"),
        (header(text(b"a") + packed(("I", 9), ("I", 8), ("Q", 1 << 62)), 1), "does not fit"),
        (header(text(b"a") + packed(("I", 9), ("I", 99), ("Q", 1), ("Q", 1)), 1), "unknown type"),
        (header(string_array(2000, struct.pack("<Q", 1 << 62) + bytes(16_000)), 1), "longer than the file"),
        (header(NESTED, 1), "nested too deeply"),
        (header((text(b"a") + packed(("I", 4), ("I", 0))) * 2, 2), "twice"),
        (header(b"", 0, TENSOR[:-2], 1), "do not fit"),
        (header(b"", 0, TENSOR + bytes(20), 1), "cut off"),
        (header(b"", 0, text(b"t") + packed(("I", 99)) + bytes(64), 1), "dimensions"),
        (header(text(b"general.alignment") + packed(("I", 4), ("I", 0)), 1), "alignment"),
    ],
)  # fmt: skip
def test_broken_files(tmp_path: Path, data: bytes, words: str) -> None:
    with pytest.raises(GGUFError, match=words) as caught:
        read_bytes(tmp_path, data)
    assert "x.gguf" in caught.value.message


def test_too_much_to_walk_over(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    with path.open("wb") as file:
        file.write(header(string_array(5_000_000, b""), 1))
        file.truncate(50_000_000)
    with pytest.raises(GGUFError, match="more than"):
        read_gguf(path)


def test_no_file(tmp_path: Path) -> None:
    for path in (tmp_path / "none.gguf", tmp_path):
        with pytest.raises(GGUFError, match="cannot be read"):
            read_gguf(path)


def test_a_broken_download_is_noticed(tiny: Path, tmp_path: Path) -> None:
    whole = tiny.read_bytes()
    for size in (100, 5000, HEADER, 500_000, len(whole) - 1):
        with pytest.raises(GGUFError):
            read_bytes(tmp_path, whole[:size])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_is_an_error_or_harmless_and_quick(tiny: Path, tmp_path: Path, data: st.DataObject) -> None:
    damaged = bytearray(tiny.read_bytes()[:60_000])
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, HEADER))
        damaged[place] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del damaged[data.draw(st.integers(0, len(damaged))) :]
    else:
        damaged += bytes(tiny.stat().st_size - len(damaged))
    path = tmp_path / "x.gguf"
    path.write_bytes(damaged)
    before = time.thread_time()
    try:
        model = read_gguf(path)
    except GGUFError:
        pass
    else:
        assert model.size == len(damaged)
    assert time.thread_time() - before < 0.05


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rest=st.binary(max_size=300), keys=st.integers(0, 5), tensors=st.integers(0, 3))
def test_noise_is_an_error_or_harmless(tmp_path: Path, rest: bytes, keys: int, tensors: int) -> None:
    try:
        model = read_bytes(tmp_path, header(rest, keys, tensor_count=tensors))
    except GGUFError:
        return
    assert (len(model.metadata), model.tensor_count) == (keys, tensors)


def test_sizes_in_words() -> None:
    assert [parameter_size(count) for count in (0, 426_624, 134_515_008, 7_241_732_096)] == ["", "427K", "135M", "7.2B"]
