"""Frameworks and command lines that people put on top: litellm, LangChain, PydanticAI, llm, curl, and npm's SDKs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .conftest import Served

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.filterwarnings("ignore"),  # of these frameworks' own making
]
QUESTION = "Say hello."
NPM = Path(__file__).parent / "npm"


@pytest.mark.parametrize("dialect", ["openai", "ollama_chat", "anthropic"])
def test_litellm(served: Served, dialect: str) -> None:
    litellm = pytest.importorskip("litellm")
    base = f"{served.url}/v1" if dialect == "openai" else served.url
    options: dict[str, Any] = {
        "model": f"{dialect}/{served.model}",
        "api_base": base,
        "api_key": "none",
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": 12,
        "temperature": 0,
    }
    whole = litellm.completion(**options).choices[0].message.content
    streamed = "".join(part.choices[0].delta.content or "" for part in litellm.completion(**options, stream=True))
    assert whole.strip()
    assert streamed.strip() == whole.strip()


def test_langchain(served: Served) -> None:
    chat = pytest.importorskip("langchain_openai").ChatOpenAI(
        model=served.model, base_url=f"{served.url}/v1", api_key="none", max_tokens=12, temperature=0, stream_usage=True
    )
    whole = chat.invoke(QUESTION)
    assert whole.content.strip()
    assert whole.usage_metadata["output_tokens"] <= 12
    assert "".join(part.content for part in chat.stream(QUESTION)) == whole.content


def test_pydantic_ai_structured_output(served: Served) -> None:
    pytest.importorskip("pydantic_ai")
    from pydantic import BaseModel
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    class City(BaseModel):
        name: str

    model = OpenAIChatModel(served.model, provider=OpenAIProvider(base_url=f"{served.url}/v1", api_key="none"))
    result = Agent(model, output_type=City).run_sync("Name the capital of France.")
    assert isinstance(result.output.name, str)


def test_llm_command_line(served: Served, tmp_path: Path) -> None:
    pytest.importorskip("llm")
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: velo\n  model_name: {served.model}\n  api_base: {served.url}/v1\n  api_key_name: none\n"
    )
    env = {**os.environ, "LLM_USER_PATH": str(tmp_path)}
    command = [sys.executable, "-m", "llm", "-m", "velo", "-o", "max_tokens", "12", "--key", "none", QUESTION]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_curl(served: Served) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("no curl here")
    body = {"model": served.model, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 8, "stream": True}
    command = [curl, "-sN", f"{served.url}/v1/chat/completions", "-d", json.dumps(body)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.splitlines()
    assert lines[0].startswith("data: {")
    assert lines[-2] == "data: [DONE]"


@pytest.fixture(scope="session")
def node_modules(folder: Path) -> Path:
    """npm's openai, ollama and ai packages, installed once."""
    if shutil.which("npm") is None:
        pytest.skip("no npm here")
    home = folder / "npm"
    shutil.copytree(NPM, home)
    done = subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund"], cwd=home, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"npm could not install the clients: {done.stderr[-300:]}")
    return home


@pytest.mark.parametrize("script", ["openai.mjs", "ollama.mjs", "ai.mjs"])
def test_javascript(served: Served, node_modules: Path, script: str) -> None:
    env = {**os.environ, "VELO_URL": served.url, "VELO_MODEL": served.model}
    command = ["node", script]
    done = subprocess.run(command, cwd=node_modules, capture_output=True, text=True, env=env, check=False, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip().endswith("ok")
