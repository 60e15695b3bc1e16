"""Real engines with the default model, and a real `velollm serve` in front of each."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import attrs
import httpx
import pytest

MODEL = "smollm2"


@attrs.define(kw_only=True)
class Served:
    """A running `velollm serve`: its address and process, the model it serves, and the kind of engine behind it."""

    url: str
    model: str
    engine: str
    log: Path
    pid: int = 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path, *, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(url, timeout=5).status_code == 200:
                return
        time.sleep(0.1)
    pytest.fail(f"{url} did not answer; its log ends:\n{log.read_text(errors='replace')[-4000:]}")


@contextlib.contextmanager
def running(
    command: list[str], url: str, log: Path, env: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    with (
        log.open("wb") as out,
        subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, **(env or {})}) as process,
    ):
        try:
            wait_for(url, process, log)
            yield process
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()


def velollm(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "velollm", *arguments]


@contextlib.contextmanager
def serving(folder: Path, engine: str, model: str, *arguments: str) -> Iterator[Served]:
    port = free_port()
    log = folder / f"serve-{engine}-{port}.log"
    command = velollm("serve", "--port", str(port), *arguments)
    with running(command, f"http://127.0.0.1:{port}/ready", log) as process:
        yield Served(url=f"http://127.0.0.1:{port}", model=model, engine=engine, log=log, pid=process.pid)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("e2e")


@pytest.fixture(scope="session")
def default_model() -> Path:
    """The GGUF of the default model, installed by the command a user would type."""
    done = subprocess.run(velollm("models", "install", MODEL, "--json"), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"the default model cannot be had here: {done.stderr.strip()[-500:]}")
    return Path(json.loads(done.stdout)["path"])


@pytest.fixture(scope="session")
def ollama_url(folder: Path, default_model: Path) -> Iterator[str]:
    """A real Ollama that has the default model under the name smollm2."""
    binary = os.environ.get("VELOLLM_TEST_OLLAMA") or shutil.which("ollama")
    if binary is None:
        pytest.skip("no Ollama here: name its binary in VELOLLM_TEST_OLLAMA")
    address = f"127.0.0.1:{free_port()}"
    env = {"OLLAMA_HOST": address, "OLLAMA_MODELS": str(folder / "ollama-models"), "HOME": str(folder)}
    with running([binary, "serve"], f"http://{address}/api/version", folder / "ollama.log", env):
        modelfile = folder / "Modelfile"
        modelfile.write_text(f"FROM {default_model}\n")
        command = [binary, "create", MODEL, "-f", str(modelfile)]
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, **env})
        yield f"http://{address}"


@pytest.fixture(scope="session")
def embedded(folder: Path, default_model: Path) -> Iterator[Served]:
    """The default model in the embedded llama.cpp."""
    pytest.importorskip("xllamacpp", reason="the extra llamacpp is not installed")
    with serving(folder, "llamacpp", MODEL, "--model", MODEL, "--engine", "llama-server") as served:
        yield served


@pytest.fixture(scope="session")
def velo(folder: Path, default_model: Path) -> Iterator[Served]:
    """The default model in our own engine."""
    pytest.importorskip("xllamacpp", reason="the extra llamacpp is not installed")
    with serving(folder, "velo", MODEL, "--model", MODEL, "--engine", "velo") as served:
        yield served


@pytest.fixture(scope="session")
def ollama(folder: Path, ollama_url: str) -> Iterator[Served]:
    """The default model in a real Ollama."""
    with serving(folder, "ollama", MODEL, "--backend", ollama_url) as served:
        yield served


@pytest.fixture(params=["embedded", "velo", "ollama"])
def served(request: pytest.FixtureRequest) -> Served:
    """Every engine in turn."""
    value: Served = request.getfixturevalue(request.param)
    return value
