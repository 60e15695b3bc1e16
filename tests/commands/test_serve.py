"""`velollm serve` up to the moment it listens: what it takes, what it refuses and why, and what it says."""

from __future__ import annotations

import argparse
import io
import socket
from pathlib import Path
from typing import Any

import orjson
import pytest
from support.backend import ScriptedBackend
from support.serving import served

from velollm.cli import COMMANDS, FAILED, NO_START, OK, USAGE, main
from velollm.commands import serve
from velollm.commands.serving import announce
from velollm.config import EngineSettings, ServerSettings, Settings, options
from velollm.discovery import Found
from velollm.errors import BackendUnreachable, ConfigError
from velollm.messages import ModelInfo


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the settings and the engines of whoever runs the tests, and without changing the log."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("VELOLLM_MODELS_DIR", str(tmp_path / "models"))
    for name in ("XDG_CONFIG_HOME", "OLLAMA_HOST", "VELOLLM_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    for module in ("velollm.cli", "velollm.observability.logs"):
        monkeypatch.setattr(f"{module}.configure_logging", lambda *_: None)


def run(*arguments: str) -> int:
    return main(list(arguments))


def never(*_: Any, **__: Any) -> int:
    pytest.fail("it must not serve")


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_a_fault_in_the_file_is_told_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "velollm.toml").write_text("[server]\nprot = 1\n")
    assert run("serve") == NO_START
    assert "velollm.toml, line 2, [server]: prot is unknown; did you mean port?" in capsys.readouterr().err
    (tmp_path / "other.toml").write_text("\n[server]\nport = 'x'\n")
    assert run("serve", "--config", str(tmp_path / "other.toml")) == NO_START
    assert "other.toml, line 3" in capsys.readouterr().err
    assert run("--config", str(tmp_path / "none.toml"), "serve") == NO_START
    assert "none.toml cannot be read" in capsys.readouterr().err


def test_a_fault_on_the_command_line_is_a_matter_of_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("serve", "--port", "x") == USAGE
    assert "--port: server.port must be a whole number" in capsys.readouterr().err
    assert run("serve", "--max-body", "much") == USAGE
    for arguments in (["serve", "--prot", "1"], ["serve", "--log-level", "loud"], ["swerve"], []):
        with pytest.raises(SystemExit) as ended:
            run(*arguments)
        assert ended.value.code == USAGE


def test_a_fault_in_a_variable(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("VELOLLM_PROT", "1")
    assert run("serve") == NO_START
    assert "VELOLLM_PROT: there is no such setting; did you mean VELOLLM_PORT?" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_the_network_is_not_served_without_keys(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("serve", "--host", host, "--port", "0", "--backend", "http://127.0.0.1:1") == NO_START
    assert "no keys are set" in capsys.readouterr().err


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert run("serve", "--port", str(port), "--backend", "http://127.0.0.1:1") == NO_START
    assert f"port {port} on 127.0.0.1 is taken by another program" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--backend", "magic://x"], "the scheme 'magic' is none of"),
        (["--backend", "http://"], "http://host:port is wanted"),
        (["--backend", "a=http://x:1", "--backend", "a=http://y:1"], "two backends are called 'a'"),
        (["--keys", "none.toml", "--backend", "http://x:1"], "none.toml cannot be read"),
        (["--model", "no-such-model"], "no-such-model"),
        (["--model", "./none.gguf"], "none.gguf"),
        (["--host", "no such host", "--keys", "k"], "no such address"),
    ],
)
def test_what_cannot_be_served(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("velollm.server.runner.run_server", never)
    assert run("serve", "--port", "0", *arguments) in (NO_START, USAGE)
    assert words in capsys.readouterr().err


# ---- which engine ----------------------------------------------------------------------------------------------------


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The apps that were to be served; nothing is."""
    apps: list[Any] = []

    def note(app: Any, sockets: list[socket.socket], on_start: Any) -> int:
        apps.append(app)
        for bound in sockets:
            bound.close()
        return OK

    monkeypatch.setattr("velollm.server.runner.run_server", note)
    return apps


def engines(monkeypatch: pytest.MonkeyPatch, *found: Found) -> list[list[str]]:
    """Pretend that these run; returns where they were looked for."""
    looked: list[list[str]] = []

    async def find(places: list[str], **_: Any) -> list[Found]:
        looked.append(places)
        return list(found)

    monkeypatch.setattr("velollm.discovery.find_engines", find)
    return looked


def test_what_runs_is_served(monkeypatch: pytest.MonkeyPatch, seen: list[Any]) -> None:
    vllm = [Found(kind="vllm", url=f"http://127.0.0.1:{port}") for port in (8000, 8001)]
    engines(monkeypatch, *vllm, Found(kind="openai", url="http://127.0.0.1:1234"))
    assert run("serve", "--port", "0") == OK
    assert [member.name for member in seen[0].pool.members] == ["vllm-8000", "vllm-8001", "openai"]


def test_ollamas_own_variable_is_looked_at_first(monkeypatch: pytest.MonkeyPatch, seen: list[Any]) -> None:
    monkeypatch.setenv("OLLAMA_HOST", "0.0.0.0:5555")
    looked = engines(monkeypatch, Found(kind="openai", url="http://x"))
    assert run("serve", "--port", "0") == OK
    assert looked[0][0] == "http://127.0.0.1:5555"
    assert "http://127.0.0.1:11434" in looked[0]


def test_nothing_runs_and_nothing_can(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    engines(monkeypatch)
    monkeypatch.setattr(serve, "find_spec", lambda name: None)
    monkeypatch.setattr("velollm.server.runner.run_server", never)
    assert run("serve", "--port", "0") == NO_START
    said = capsys.readouterr().err
    assert "Ollama (11434)" in said
    assert 'pip install "velollm[llamacpp]"' in said


def test_nothing_runs_so_the_default_model_is_brought(monkeypatch: pytest.MonkeyPatch, seen: list[Any]) -> None:
    engines(monkeypatch)
    installed: list[str] = []
    monkeypatch.setattr(serve, "find_spec", lambda name: object())
    monkeypatch.setattr(serve, "_install_missing", lambda settings, quiet: installed.extend(settings.engine.models))
    monkeypatch.setattr("velollm.server.app.open_pool", lambda settings, **_: served(ScriptedBackend()).pool)
    assert run("serve", "--port", "0") == OK
    assert installed == ["smollm2"]
    assert seen[0].settings.engine == EngineSettings(models=("smollm2",))


def test_the_free_port_that_was_taken_is_known(monkeypatch: pytest.MonkeyPatch, seen: list[Any]) -> None:
    assert run("serve", "--port", "0", "--backend", "http://127.0.0.1:1") == OK
    assert seen[0].settings.server.port > 0


# ---- what it says ----------------------------------------------------------------------------------------------------


class Down(ScriptedBackend):
    name = "down"

    async def models(self) -> list[ModelInfo]:
        raise BackendUnreachable("down cannot be reached", backend="down")


class Several(ScriptedBackend):
    name = "several"

    async def models(self) -> list[ModelInfo]:
        names = [ModelInfo(id=f"m{number}", size=1000 - number) for number in range(7)]
        return [ModelInfo(id="embedder", size=1, capabilities=frozenset({"embedding"})), *names]


@pytest.mark.anyio
async def test_the_banner() -> None:
    out = io.StringIO()
    settings = Settings(server=ServerSettings(port=1234))
    await announce(served(Several(), Down(), settings=settings), out=out)
    text = out.getvalue()
    assert text.startswith("VeloLLM ")
    assert "listens on http://127.0.0.1:1234\n" in text
    assert "  several: embedder, m0, m1, m2, m3 and 3 more\n" in text
    assert "  down: not ready: down cannot be reached\n" in text
    assert "curl http://127.0.0.1:1234/v1/chat/completions" in text
    assert '{"model":"m6"' in text, "the smallest that can chat"
    assert "authorization" not in text


@pytest.mark.anyio
async def test_the_same_for_machines() -> None:
    out = io.StringIO()
    await announce(served(ScriptedBackend(), settings=Settings(server=ServerSettings(host="::", port=1))), as_json=True,
                   out=out)  # fmt: skip
    (line,) = out.getvalue().splitlines()
    said = orjson.loads(line)
    assert said["url"] == "http://[::1]:1"
    assert said["model"] == "tiny"
    (backend,) = said["backends"]
    assert (backend["name"], backend["models"], backend["error"]) == ("scripted", ["tiny"], None)


# ---- help ------------------------------------------------------------------------------------------------------------


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run("serve", "--help")
    assert ended.value.code == OK
    said = capsys.readouterr().out
    assert "examples:" in said
    for option in options():
        assert option.flag in said
    assert "(default: 16MiB)" in said
    assert "--json" in said
    assert "--config" in said


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(command, "--help")
    said = capsys.readouterr().out
    assert "example" in said
    assert f"velollm {command}" in said


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run("--version")
    assert ended.value.code == OK
    assert capsys.readouterr().out.startswith("velollm 0.")


# ---- failures of commands --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("error", "status"), [
    (ConfigError("--x: wrong"), USAGE), (ConfigError("wrong"), NO_START), (KeyboardInterrupt(), 130),
])  # fmt: skip
def test_exit_codes(monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int) -> None:
    def failing(args: argparse.Namespace) -> int:
        raise error

    monkeypatch.setattr(serve, "run", failing)
    assert run("serve") == status


def test_a_command_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "run", lambda args: FAILED)
    assert run("serve") == FAILED
