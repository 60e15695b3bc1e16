"""The user's folder of models, and where a named model is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from velollm.errors import ConfigError
from velollm.models.folder import cache_folder, default_folder, find_own, list_own, remove_own, safe_name
from velollm.models.lookup import find, list_installed


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "Qwen3-8B-Q4_K_M.gguf").write_bytes(b"12345")
    for number in (1, 2, 3):
        (tmp_path / f"big-{number:05}-of-00003.gguf").write_bytes(b"123")
    (tmp_path / ".half-abc.part").write_bytes(b"1")
    (tmp_path / "notes.txt").write_bytes(b"1")
    (tmp_path / "gone.gguf").symlink_to(tmp_path / "nowhere")
    return tmp_path


def test_user_folders() -> None:
    environ = {"XDG_DATA_HOME": "/data", "XDG_CACHE_HOME": "/cache"}
    assert default_folder(environ) == Path("/data/velollm/models")
    assert cache_folder(environ) == Path("/cache/velollm/downloads")
    for ignored in ({}, {"XDG_DATA_HOME": "relative"}):
        assert default_folder(ignored).is_relative_to(Path.home())


def test_list(folder: Path) -> None:
    assert [(model.name, model.size) for model in list_own(folder)] == [("Qwen3-8B-Q4_K_M", 5), ("big", 9)]
    assert list_own(folder / "none") == []


@pytest.mark.parametrize("name", ["big", "BIG", "big:latest"])
def test_find_own(folder: Path, name: str) -> None:
    found = find_own(name, folder)
    assert found is not None
    assert found.path == folder / "big-00001-of-00003.gguf"
    assert find_own("big-00002-of-00003", folder) is None


def test_remove(folder: Path) -> None:
    assert remove_own("big", folder).size == 9
    assert not list(folder.glob("big*"))
    with pytest.raises(ConfigError, match="no model 'big'"):
        remove_own("big", folder)


def test_remove_never_leaves_the_folder(folder: Path) -> None:
    outside = folder.parent / "precious.gguf"
    outside.write_bytes(b"1")
    with pytest.raises(ConfigError):
        remove_own("../precious", folder)
    (folder / "linked.gguf").symlink_to(outside)
    remove_own("linked", folder)
    assert outside.exists()


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a b", ".hidden", "-x", "a:b", "x" * 200])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(ConfigError):
        safe_name(name)


def test_find(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    store = tmp_path_factory.mktemp("ollama")
    assert find("qwen3-8b-q4_k_m", folder, ollama=store) == folder / "Qwen3-8B-Q4_K_M.gguf"
    assert find(str(folder / "Qwen3-8B-Q4_K_M.gguf")) == folder / "Qwen3-8B-Q4_K_M.gguf"
    assert find("unknown", folder, ollama=store) is None
    assert [model.source for model in list_installed(folder, ollama=store)] == ["velollm", "velollm"]
    with pytest.raises(ConfigError, match="there is no file"):
        find(str(folder / "none.gguf"))
