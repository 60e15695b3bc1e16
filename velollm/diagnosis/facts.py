"""What the rules look at: the machine and its engines, their processes and logs, our own settings."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import attrs

from velollm.config.load import load_settings
from velollm.engine.llama_cpp import WHEEL, find_wheel
from velollm.engine.native import find_native
from velollm.errors import ConfigError
from velollm.hardware import Host, Machine
from velollm.hardware.processes import Process, clients, engine_processes, listening

__all__ = ["Facts", "gather"]

LOG_BYTES = 512 * 1024
OUR_PORT = 8000


@attrs.frozen(kw_only=True)
class Facts:
    """`listeners` are the addresses by port, `clients` the open connections by port; `ollama_log` its last lines.

    `newest_entry` is when the youngest entry of the cache's file was used, as its own clock said (seconds since 1970).
    """

    machine: Machine
    processes: tuple[Process, ...] = ()
    listeners: Mapping[int, set[str]] = attrs.field(factory=dict)
    clients: Mapping[int, int] = attrs.field(factory=dict)
    ollama_log: str = ""
    ollama_installed: bool = False
    scaling_driver: str = ""
    energy_preference: str = ""
    config_error: str = ""
    keys_file: str = ""
    keys_open: bool = False
    newest_entry: float | None = None
    wheel_installed: bool = False
    native_build: bool = False  # of the llama.cpp in it, for this CPU
    our_port: int = OUR_PORT


def gather(host: Host, machine: Machine, config: Path | None = None) -> Facts:
    """Read what else the rules need. Never raises: what cannot be read is not there."""
    processes = tuple(engine_processes(host))
    ports = {port for engine in machine.engines if (port := _port(engine.url))}
    settings: Any = None
    config_error = ""
    try:
        settings = load_settings(environ=host.environ, config=config)
    except ConfigError as error:
        config_error = error.message
    cpufreq = "/sys/devices/system/cpu/cpu0/cpufreq"
    keys = settings.server.keys if settings is not None else None
    return Facts(
        machine=machine,
        processes=processes,
        listeners=listening(host),
        clients={port: clients(host, port) for port in ports},
        ollama_log=_ollama_log(host, processes),
        ollama_installed=host.which("ollama") is not None,
        scaling_driver=host.read(f"{cpufreq}/scaling_driver") or "",
        energy_preference=host.read(f"{cpufreq}/energy_performance_preference") or "",
        config_error=config_error,
        keys_file=keys or "",
        keys_open=keys is not None and _open_to_all(Path(keys)),
        newest_entry=_newest_entry(settings),
        wheel_installed=find_spec("xllamacpp") is not None,
        native_build=_has_native_build(),
        our_port=settings.server.port if settings is not None else OUR_PORT,
    )


def _has_native_build() -> bool:
    try:
        return find_native(WHEEL, Path(find_wheel())) is not None
    except ConfigError:
        return False


def _ollama_log(host: Host, processes: tuple[Process, ...]) -> str:
    """From where it is written: the file that the process writes to, the journal, or the app's own file."""
    for process in processes:
        if process.kind == "ollama" and not process.child:
            path = host.link(f"/proc/{process.pid}/fd/2") or ""
            if path.startswith("/") and not path.startswith("/dev/"):
                return host.tail(path, LOG_BYTES)
    text = ""
    if any(process.kind == "ollama" for process in processes):
        text = host.run("journalctl", "-u", "ollama", "-n", "3000", "--no-pager", "-o", "cat") or ""
    home = host.environ.get("HOME", "")
    app = host.environ.get("LOCALAPPDATA", "")
    path = f"{app}\\Ollama\\server.log" if host.system == "windows" else f"{home}/.ollama/logs/server.log"
    return text or host.tail(path, LOG_BYTES)


def _open_to_all(path: Path) -> bool:
    try:
        return bool(path.stat().st_mode & 0o077)
    except OSError:
        return False


def _newest_entry(settings: Any) -> float | None:
    """Read from the cache's SQLite file, without changing it."""
    store = getattr(getattr(settings, "cache", None), "store", None)
    if not isinstance(store, str) or not store.startswith("sqlite:"):
        return None
    path = Path(store.removeprefix("sqlite:")).expanduser()
    if not path.is_file():
        return None
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=0.2)) as connection:
            (newest,) = connection.execute("SELECT MAX(used) FROM entries").fetchone()
    except sqlite3.Error:
        return None
    return newest if isinstance(newest, float) else None


def _port(url: str) -> int | None:
    text = url.rpartition(":")[2].partition("/")[0]
    return int(text) if text.isdigit() else None
