"""The native build, with a small project in the place of llama.cpp: real cmake and compiler, where they are."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("xllamacpp", reason="the extra llamacpp is not installed")

from velollm.engine import llama_cpp
from velollm.engine.native import LIBRARY, MANIFEST, find_native
from velollm.errors import ConfigError
from velollm.tuning import native
from velollm.tuning.native import build_native, remove_native

PROJECT = """\
cmake_minimum_required(VERSION 3.14)
project(small C)
set(CMAKE_LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
add_library(llama SHARED small.c)
"""

needs_tools = pytest.mark.skipif(
    not all(map(shutil.which, ("cmake", "cc", "c++", "make"))), reason="cmake and a compiler are not installed"
)


def archive(folder: Path, files: dict[str, str]) -> Path:
    path = folder / "source.tar.gz"
    with tarfile.open(path, "w:gz") as file:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"xllamacpp-1/{name}")
            entry.size = len(text.encode())
            file.addfile(entry, io.BytesIO(text.encode()))
    return path


def small(folder: Path, source: str) -> Path:
    place = "thirdparty/llama.cpp"
    return archive(folder, {f"{place}/CMakeLists.txt": PROJECT, f"{place}/small.c": source})


@needs_tools
def test_what_does_not_compile(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cmake failed: .*error"):
        build_native(archive=small(tmp_path, "int wrong = ;"), folder=tmp_path / "native")
    assert not (tmp_path / "native").exists()
    assert not list(tmp_path.glob(".native-*")), "nothing is left behind"


@needs_tools
def test_what_is_no_llama_cpp(tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(ConfigError, match=r"does not work: .*is not the llama\.cpp"):
        build_native(archive=small(tmp_path, "int right;"), folder=tmp_path / "native", say=said.append)
    assert "100 %" in said
    assert said[-1] == "checking"


def result(tokens: int = 1, seconds: float = 1.0) -> dict[str, Any]:
    return {"tokens": [[tokens]], "prefill": seconds, "decode": seconds}


@needs_tools
@pytest.mark.parametrize(("seconds", "kept"), [(0.5, True), (0.99, False), (2.0, False)])
def test_it_is_kept_when_it_pays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, kept: bool) -> None:
    wheel = Path(llama_cpp.find_wheel())
    monkeypatch.setattr(
        native, "try_library", lambda library, model, threads: result(seconds=1.0 if library == wheel else seconds)
    )
    folder = tmp_path / "native"
    built = build_native(archive=small(tmp_path, "int right;"), folder=folder)
    assert built.kept == kept
    assert ("kept, and used" in built.words) == kept
    assert (find_native(llama_cpp.WHEEL, wheel, folder) == folder / LIBRARY) == kept
    assert (folder / MANIFEST).exists() == kept
    assert remove_native(folder) == kept
    assert not remove_native(folder)


@needs_tools
def test_other_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = Path(llama_cpp.find_wheel())
    monkeypatch.setattr(native, "try_library", lambda library, model, threads: result(tokens=int(library == wheel)))
    with pytest.raises(ConfigError, match="other tokens"):
        build_native(archive=small(tmp_path, "int right;"), folder=tmp_path / "native")


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native.shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match=r"cmake and a C\+\+ compiler and make must be installed first: .+"):
        build_native(folder=tmp_path / "native")


@needs_tools
def test_archives_that_are_none(tmp_path: Path) -> None:
    broken = tmp_path / "broken.tar.gz"
    broken.write_bytes(b"no archive")
    with pytest.raises(ConfigError, match="cannot be unpacked"):
        build_native(archive=broken, folder=tmp_path / "native")
    with pytest.raises(ConfigError, match=r"has no thirdparty/llama\.cpp"):
        build_native(archive=archive(tmp_path, {"setup.py": ""}), folder=tmp_path / "native")
