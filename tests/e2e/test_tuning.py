"""Tuning of a real Ollama and a real llama.cpp: settings are applied, seen in the engine's log, measured and undone."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from tiny_gguf import write_tiny_gguf

from velollm.hardware.gguf import memory_needed
from velollm.models.gguf import read_gguf

pytestmark = pytest.mark.e2e
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MIB = 1 << 20


def ollama_binary() -> str:
    binary = os.environ.get("VELOLLM_TEST_OLLAMA") or shutil.which("ollama")
    if not binary:
        pytest.skip("no Ollama here: name its binary in VELOLLM_TEST_OLLAMA")
    return binary


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """The folders of a user who has nothing yet."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("OLLAMA_", "VELOLLM_", "XDG_"))}
    return {**kept, "HOME": str(tmp_path), "OLLAMA_MODELS": str(tmp_path / "ollama-models")}


def velollm(environ: dict[str, str], *words: str, status: int = 0) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "velollm", *words], env=environ, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == status, done.stderr
    return json.loads(done.stdout)


@contextmanager
def served(command: str, environ: dict[str, str], folder: Path) -> Iterator[tuple[str, Path]]:
    """`ollama serve` started by a shell as `command` says; gives its URL and its log."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    log = folder / f"{address}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            ["sh", "-c", command], env={**environ, "OLLAMA_HOST": address}, stdout=out, stderr=out
        )
        try:
            for _ in range(300):
                try:
                    if httpx.get(f"http://{address}/api/version", timeout=2, trust_env=False).status_code == 200:
                        break
                except httpx.HTTPError:
                    time.sleep(0.1)
            yield f"http://{address}", log
        finally:
            process.terminate()
            process.wait(20)


def test_ollama_reads_what_is_applied(tmp_path: Path, environ: dict[str, str]) -> None:
    binary, file = ollama_binary(), write_tiny_gguf(tmp_path / "tiny.gguf")
    words = ["tune", "ollama", "--model", str(file), "--clients", "3", "--context", "2048", "--json"]
    environ["PATH"] = f"{tmp_path / 'bin'}:{environ['PATH']}"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ollama").symlink_to(binary)
    applied = velollm(environ, *words, "--apply", "--to", str(tmp_path / "ollama.env"))["applied"]
    assert applied["path"] == str(tmp_path / "ollama.env")
    with served(f". {applied['path']}; exec ollama serve", environ, tmp_path) as (url, log):
        text = log.read_text()
        assert "OLLAMA_NUM_PARALLEL:3" in text
        assert "OLLAMA_CONTEXT_LENGTH:2048" in text
        assert "OLLAMA_KEEP_ALIVE:1h0m0s" in text
        seen = velollm(environ, "detect", "--no-bandwidth", "--engine", url, "--json")
        engine = next(one for one in seen["engines"] if one["url"] == url)
        assert (engine["kind"], engine["slots"], engine["context"]) == ("ollama", 3, 2048)
        assert engine["settings"]["OLLAMA_NUM_PARALLEL"] == "3"
    assert velollm(environ, "tune", "ollama", "--undo", "--json")["done"] == "removed"
    assert not Path(applied["path"]).exists()
    with served("exec ollama serve", environ, tmp_path) as (_, log):
        assert "OLLAMA_NUM_PARALLEL:1" in log.read_text()


def test_a_tuning_of_llama_cpp_is_measured(tmp_path: Path, environ: dict[str, str]) -> None:
    pytest.importorskip("xllamacpp")
    file = write_tiny_gguf(tmp_path / "tiny.gguf")
    words = ["--model", str(file), "--clients", "4", "--tokens", "16", "--rounds", "1", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "velollm", "tune", "velo", *words, "--verify"],
        env=environ, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    verdict = json.loads(done.stdout)["verify"]
    assert done.returncode == (0 if verdict["kept"] else 1)
    assert verdict["before"]["failed"] == verdict["after"]["failed"] == 0
    assert verdict["before"]["throughput"] > 0
    assert verdict["after"]["throughput"] > 0


def test_memory_as_llama_cpp_reports_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("xllamacpp")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from gguf_memory import reported

    file = write_tiny_gguf(tmp_path / "tiny.gguf")
    for case in (
        {"context": 1024, "slots": 1},
        {"context": 2048, "slots": 4},
        {"context": 1024, "slots": 2, "ubatch": 256},
    ):
        said, need = reported(file, case), memory_needed(read_gguf(file), **case)
        assert need.total / MIB == pytest.approx(sum(said.values()), rel=0.05)
