"""Ollama's store, in a folder laid out as Ollama lays it out."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velollm.models.lookup import find, list_installed
from velollm.models.ollama import list_models, resolve, store_folders

MODEL = "application/vnd.ollama.image.model"
LICENSE = {"mediaType": "application/vnd.ollama.image.license", "digest": "sha256:" + "0" * 64, "size": 3}
LIBRARY = "registry.ollama.ai/library"


def add(store: Path, place: str, gguf: Path) -> Path:
    digest = hashlib.sha256(gguf.read_bytes()).hexdigest()
    blob = store / "blobs" / f"sha256-{digest}"
    blob.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(gguf, blob)
    write(store, place, {"layers": [LICENSE, {"mediaType": MODEL, "digest": f"sha256:{digest}", "size": 1}]})
    return blob


def write(store: Path, place: str, manifest: Any) -> None:
    path = store / "manifests" / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode())


@pytest.fixture
def store(tmp_path: Path, tiny: Path) -> Path:
    add(tmp_path, f"{LIBRARY}/qwen3/8b", tiny)
    add(tmp_path, f"{LIBRARY}/qwen3/latest", tiny)
    add(tmp_path, "registry.ollama.ai/me/mine/v1", tiny)
    add(tmp_path, "hf.co/Org/Repo-GGUF/Q4_K_M", tiny)
    return tmp_path


@pytest.mark.parametrize(
    "name",
    [
        "qwen3",
        "qwen3:latest",
        "qwen3:8b",
        "QWEN3:8B",
        "library/qwen3",
        "registry.ollama.ai/library/qwen3:8b",
        "me/mine:v1",
        "hf.co/Org/Repo-GGUF:Q4_K_M",
        "hf.co/org/repo-gguf:q4_k_m",
        "https://hf.co/org/repo-gguf:q4_k_m",
    ],
)
def test_names(store: Path, tiny: Path, name: str) -> None:
    path = resolve(name, store)
    assert path is not None
    assert path.read_bytes() == tiny.read_bytes()


@pytest.mark.parametrize("name", ["", "qwen3:7b", "mine", "you/mine:v1", ":latest", "../../blobs/x", "qwen3:../latest"])
def test_names_of_nothing(store: Path, name: str) -> None:
    assert resolve(name, store) is None


@given(st.text(max_size=40))
def test_no_name_leads_out_of_the_store(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    empty = tmp_path_factory.getbasetemp() / "empty-store"
    assert resolve(name, empty) is None


def test_listed_under_the_names_that_ollama_shows(store: Path, tiny: Path) -> None:
    assert [(model.name, model.size) for model in list_models(store)] == [
        (name, tiny.stat().st_size) for name in ("hf.co/Org/Repo-GGUF:Q4_K_M", "me/mine:v1", "qwen3:8b", "qwen3:latest")
    ]


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"{",
        b"[]",
        b"[" * 5000,
        {"layers": 5},
        {"layers": [LICENSE]},
        {"layers": [{"mediaType": MODEL, "digest": "sha256:" + "1" * 64}]},
        {"layers": [{"mediaType": MODEL, "digest": "sha256:../../../../etc/passwd"}]},
        {"layers": [{"mediaType": MODEL, "digest": 5}]},
        {"layers": [{"mediaType": MODEL, "digest": "sha256:" + "2" * 64}] * 2},
        b"[1" + b" " * (1 << 20) + b"]",
    ],
)
def test_manifests_that_are_none(store: Path, manifest: Any) -> None:
    write(store, f"{LIBRARY}/broken/latest", manifest)
    assert resolve("broken", store) is None
    assert len(list_models(store)) == 4


def test_weights_that_are_no_gguf(store: Path, tmp_path: Path) -> None:
    other = tmp_path / "weights.safetensors"
    other.write_bytes(b"12345")
    add(store, f"{LIBRARY}/other/latest", other)
    assert resolve("other", store) is None


def test_stray_files_do_no_harm(store: Path) -> None:
    (store / "manifests" / ".DS_Store").write_bytes(b"x")
    write(store, "too/short", {})
    write(store, f"{LIBRARY}/a/b/c/d", {})
    assert len(list_models(store)) == 4


def test_where_the_store_is() -> None:
    assert store_folders({"OLLAMA_MODELS": "/data/m"}) == [Path("/data/m")]
    assert store_folders({})[0] == Path.home() / ".ollama" / "models"


def test_found_like_any_other_model(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "own"
    own.mkdir()
    path = find("qwen3:8b", own, ollama=store)
    assert path is not None
    assert path.parent == store / "blobs"
    listed = list_installed(own, ollama=store)
    assert {model.source for model in listed} == {"ollama"}
    (own / "qwen3.gguf").write_bytes(b"GGUF")
    assert find("qwen3:latest", own, ollama=store) == own / "qwen3.gguf", "the own folder goes first"
    monkeypatch.setenv("OLLAMA_MODELS", str(store))
    assert find("me/mine:v1", own) is not None
