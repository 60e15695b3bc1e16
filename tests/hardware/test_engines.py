"""Engines: what they answer, and what their processes were told."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from support.machines import RecordedHost

from velollm.discovery import Found
from velollm.hardware import engines
from velollm.hardware.apart import run_apart
from velollm.hardware.engines import read_engine
from velollm.hardware.processes import clients, engine_processes, listening

MACHINE = r"""
=== system linux x86_64
=== file /proc/1/cmdline
/sbin/init\0splash\0
=== file /proc/977/cmdline
/usr/local/bin/ollama\0serve\0
=== file /proc/977/environ
HOME=/usr/share/ollama\0OLLAMA_NUM_PARALLEL=4\0OLLAMA_HOST=0.0.0.0:11500\0OLLAMA_API_KEY=secret\0PATH=/bin\0
=== link /proc/977/exe /usr/local/bin/ollama
=== file /proc/1200/cmdline
/usr/local/bin/ollama\0runner\0--model\0/blobs/sha256-1\0--port\034001\0
=== file /proc/1300/cmdline
ollama\0run\0qwen3\0
=== file /proc/2000/cmdline
/opt/llama/llama-server\0-m\0/m/a.gguf\0--port\09931\0-np\04\0--api-key\0hidden\0--flash-attn=on\0--metrics\0
=== denied /proc/2000/environ
=== file /proc/3000/cmdline
/usr/bin/python3\0/usr/local/bin/vllm\0serve\0Qwen/Qwen3-8B\0--port\08123\0
=== file /proc/net/tcp
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:2CEC 00000000:0000 0A 00000000:00000000 00:00000000 00000000   998        0 24512
   1: 0100007F:26CB 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 31042
   2: 0100007F:26CB 0100007F:D3F2 01 00000000:00000000 00:00000000 00000000  1000        0 31100
   3: 0100007F:D3F2 0100007F:26CB 01 00000000:00000000 00:00000000 00000000  1000        0 31101
=== file /proc/net/tcp6
  sl  local_address                         remote_address                        st tx_queue rx_queue
   0: 00000000000000000000000000000000:1F90 00000000000000000000000000000000:0000 0A 00000000:00000000
   1: 00000000000000000000000001000000:0277 00000000000000000000000000000000:0000 0A 00000000:00000000
"""


def test_processes() -> None:
    found = {process.pid: process for process in engine_processes(RecordedHost(text=MACHINE))}
    assert set(found) == {977, 1200, 2000, 3000}  # neither init nor `ollama run`
    assert found[977].environ == {
        "OLLAMA_NUM_PARALLEL": "4",
        "OLLAMA_HOST": "0.0.0.0:11500",
        "OLLAMA_API_KEY": "secret",
    }
    assert (found[977].child, found[977].binary) == (False, "/usr/local/bin/ollama")
    assert found[1200].child
    assert found[2000].environ is None
    assert found[3000].kind == "vllm"


def test_processes_by_psutil() -> None:
    (ollama,) = engine_processes(RecordedHost("windows"))
    assert (ollama.pid, ollama.kind, ollama.serving) == (9012, "ollama", True)


def test_sockets() -> None:
    host = RecordedHost(text=MACHINE)
    assert listening(host) == {11500: {"0.0.0.0"}, 9931: {"127.0.0.1"}, 8080: {"::"}, 631: {"::1"}}
    assert clients(host, 9931) == 1
    assert clients(host, 11500) == 0


def test_ollama() -> None:
    process = next(one for one in engine_processes(RecordedHost(text=MACHINE)) if one.pid == 977)
    answers = {
        "/api/version": {"version": "0.17.4"},
        "/api/tags": {"models": [{"name": "qwen3:8b"}, {"nothing": 1}, 7]},
        "/api/ps": {"models": [{"name": "qwen3:8b", "size": 1000, "size_vram": 250, "context_length": 4096}]},
    }
    engine = read_engine(Found(kind="ollama", url="http://127.0.0.1:11500"), answers, process)
    assert (engine.version, engine.models, engine.slots) == ("0.17.4", ("qwen3:8b",), 4)
    assert engine.loaded[0].gpu_share == 0.25
    assert engine.loaded[0].context == 4096
    assert "OLLAMA_API_KEY" not in engine.settings
    assert read_engine(Found(kind="ollama", url="http://x"), answers).slots is None  # not to be known from outside


def test_llama_server() -> None:
    process = next(one for one in engine_processes(RecordedHost(text=MACHINE)) if one.pid == 2000)
    answers = {
        "/props": {"build_info": "b11549-abc", "total_slots": 4, "default_generation_settings": {"n_ctx": 8192}},
        "/v1/models": {"data": [{"id": "a.gguf", "meta": {"size": 5}}]},
    }
    engine = read_engine(Found(kind="llamacpp", url="http://127.0.0.1:9931"), answers, process)
    assert (engine.version, engine.slots, engine.context) == ("b11549-abc", 4, 8192)
    assert engine.settings["-np"] == "4"
    assert engine.settings["--flash-attn"] == "on"
    assert engine.settings["--metrics"] == ""
    assert "hidden" not in str(engine)


@pytest.mark.parametrize(
    "nonsense", [None, [], "x", {"models": {"a": 1}, "version": [1], "data": 3, "total_slots": "9"}]
)
def test_nonsense_is_nothing(nonsense: object) -> None:
    for kind in ("ollama", "llamacpp", "vllm"):
        paths = ("/api/version", "/api/tags", "/api/ps", "/props", "/v1/models", "/version")
        engine = read_engine(Found(kind=kind, url="http://x:1"), dict.fromkeys(paths, nonsense))  # type: ignore[arg-type]
        assert (engine.version, engine.models, engine.loaded) == ("", (), ())


def test_runs_beside_a_running_loop() -> None:
    async def inner() -> int:
        await asyncio.sleep(0)
        return 7

    async def outer() -> int:
        return run_apart(inner())

    assert run_apart(inner()) == 7
    assert asyncio.run(outer()) == 7


def test_looks_where_processes_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    async def find(urls: list[str], seconds: float) -> list[Found]:
        asked.extend(urls)
        return [Found(kind="ollama", url="http://127.0.0.1:11500")]

    async def get(client: httpx.AsyncClient, url: str) -> object:
        return {"version": "1.2.3"} if url.endswith("/api/version") else None

    monkeypatch.setattr(engines, "find_engines", find)
    monkeypatch.setattr(engines, "_get", get)
    host = RecordedHost(text=MACHINE)
    host.environ["OLLAMA_HOST"] = "gpu:1"
    (engine,) = engines.find_running(host, ["http://mine:5"])
    assert asked[:2] == ["http://mine:5", "http://gpu:1"]
    assert set(asked[2:5]) == {f"http://127.0.0.1:{port}" for port in (11500, 9931, 8123)}
    assert (engine.version, engine.pid, engine.slots, engine.process_known) == ("1.2.3", 977, 4, True)
