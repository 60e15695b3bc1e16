"""Which engine runs a GGUF file where nobody says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_gguf import write_tiny_gguf

from velollm import open_backend
from velollm.contrib import gguf
from velollm.contrib.llamacpp.embedded import EmbeddedBackend
from velollm.contrib.velo.served import ServedEngine


def opened(folder: Path, metadata: dict[str, Any], **options: Any) -> type:
    return type(open_backend(str(write_tiny_gguf(folder / "tiny.gguf", metadata=metadata)), **options))


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(gguf, "version", lambda name: "2026.10.11549")


def test_our_own_on_a_cpu(tmp_path: Path) -> None:
    assert opened(tmp_path, {}) is ServedEngine
    assert opened(tmp_path, {}, engine="llama-server") is EmbeddedBackend


def test_each_says_what_it_is(tmp_path: Path) -> None:
    path = str(write_tiny_gguf(tmp_path / "tiny.gguf"))
    assert open_backend(path).kind == "velo" == open_backend(path, in_process=True).kind
    assert open_backend(path, engine="llama-server").kind == "llamacpp"
    assert ServedEngine(path, device=0).kind == "cuda"


@pytest.mark.parametrize(
    "metadata",
    [
        {"tokenizer.chat_template": "{{ '<|channel|>' }}"},
        {"llama.attention.sliding_window": 64},
        {"llama.ssm.state_size": 16},
        {"llama.pooling_type": 1},
    ],
)
def test_llama_server_for_what_was_not_measured(tmp_path: Path, metadata: dict[str, Any]) -> None:
    assert opened(tmp_path, metadata) is EmbeddedBackend


@pytest.mark.parametrize("option", ["unified", "replicate"])
def test_llama_server_where_its_options_are_given(tmp_path: Path, option: str) -> None:
    assert opened(tmp_path, {}, **{option: True}) is EmbeddedBackend


def test_llama_server_on_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "version", lambda name: "2026.10.11549+cu128")
    assert opened(tmp_path, {}) is EmbeddedBackend
    monkeypatch.setattr(gguf, "version", lambda name: "2026.10.11549")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert opened(tmp_path, {}) is EmbeddedBackend
