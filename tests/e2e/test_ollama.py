"""Real Ollama behind `velollm serve`: what goes through untouched, its own command line, and what is mended."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from .conftest import Served, velollm

pytestmark = pytest.mark.e2e
HI = [{"role": "user", "content": "Say hello."}]
GREEDY = {"temperature": 0, "num_predict": 8}


@pytest.fixture
def command(ollama: Served, folder: Path) -> Any:
    """Ollama's own command line, talking to VeloLLM."""
    binary = os.environ.get("VELOLLM_TEST_OLLAMA") or shutil.which("ollama") or ""

    def run(*words: str) -> str:
        env = {**os.environ, "OLLAMA_HOST": ollama.url, "HOME": str(folder)}
        done = subprocess.run([binary, *words], capture_output=True, text=True, env=env, timeout=120, check=False)
        assert done.returncode == 0, done.stderr[-1000:]
        return done.stdout

    return run


def loaded_context(url: str) -> int:
    """The context with which Ollama has loaded the one model that it has loaded."""
    (model,) = httpx.get(f"{url}/api/ps").json()["models"]
    context: int = model["context_length"]
    return context


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
def test_its_clients_get_what_it_says_itself(ollama: Served, ollama_url: str, path: str, stream: bool) -> None:
    asked = {"messages": HI} if path == "/api/chat" else {"prompt": "Say hello."}
    body = {"model": ollama.model, **asked, "stream": stream, "options": GREEDY, "unknown": 1}
    answers = [httpx.post(url + path, json=body, timeout=120) for url in (ollama_url, ollama.url)]
    said = [[json.loads(line) for line in answer.text.splitlines()] for answer in answers]
    own, through = said
    assert [line.keys() for line in through] == [line.keys() for line in own]
    assert [line.get("message") or line["response"] for line in through] == [
        line.get("message") or line["response"] for line in own
    ]


def test_its_command_line(ollama: Served, command: Any, folder: Path, default_model: Path) -> None:
    assert ollama.model in command("list")
    assert "completion" in command("show", ollama.model)
    command("cp", ollama.model, "copied")
    assert "copied" in command("list")
    command("rm", "copied")
    assert "copied" not in command("list")
    modelfile = folder / "Modelfile-through"
    modelfile.write_text(f"FROM {default_model}\nPARAMETER num_predict 4\n")
    command("create", "uploaded", "-f", str(modelfile))
    assert command("run", "uploaded", "Say hello.").strip()
    command("rm", "uploaded")


def test_a_pull_streams_its_progress_and_its_failure(ollama: Served) -> None:
    body = {"model": "127.0.0.1:9/library/none", "insecure": True}
    with httpx.stream("POST", f"{ollama.url}/api/pull", json=body, timeout=60) as answer:
        lines = [json.loads(line) for line in answer.iter_lines()]
    assert lines[0] == {"status": "pulling manifest"}
    assert "error" in lines[-1]


MODEL_CONTEXT = 8192


def test_context_sizes_settle(ollama: Served, ollama_url: str) -> None:
    def ask(**options: int) -> int:
        body = {"model": ollama.model, "messages": HI, "stream": False, "options": {"num_predict": 1, **options}}
        assert httpx.post(f"{ollama.url}/api/chat", json=body, timeout=120).status_code == 200
        return loaded_context(ollama_url)

    default = ask()
    large = ask(num_ctx=default + 1)
    assert large == MODEL_CONTEXT, "rounded up, and to no more than the model's own"
    assert ask(num_ctx=default - 500) == large, "it is not loaded anew for less"
    assert ask() == large


def test_a_model_that_cannot_think(ollama: Served) -> None:
    """No reason to fail for a client of OpenAI's API; a client of Ollama hears what Ollama says."""
    body = {"model": ollama.model, "messages": HI, "max_tokens": 4, "reasoning_effort": "high"}
    answer = httpx.post(f"{ollama.url}/v1/chat/completions", json=body, timeout=120)
    assert answer.status_code == 200
    native = {"model": ollama.model, "messages": HI, "think": True, "stream": False, "options": {"num_predict": 1}}
    refused = httpx.post(f"{ollama.url}/api/chat", json=native, timeout=120)
    assert refused.status_code == 400
    assert "does not support thinking" in refused.json()["error"]


def test_its_store_is_read(ollama: Served, folder: Path) -> None:
    env = {**os.environ, "OLLAMA_MODELS": str(folder / "ollama-models")}
    listed = subprocess.run(velollm("models", "list", "--json"), capture_output=True, text=True, env=env, check=True)
    (path,) = [row["path"] for row in json.loads(listed.stdout) if row["name"] == f"{ollama.model}:latest"]
    assert Path(path).read_bytes()[:4] == b"GGUF"
