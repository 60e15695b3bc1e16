"""The processes of engines: how they were started, with which variables, and who uses how much of the machine."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping

import attrs

from velollm.hardware.host import Host

__all__ = ["Process", "clients", "engine_processes", "listening"]

# Name of the program -> kind of engine. Ollama's own runners are its children and no engines for anybody else.
PROGRAMS: Mapping[str, str] = {
    "ollama": "ollama", "ollama.exe": "ollama", "vllm": "vllm",
    "llama-server": "llamacpp", "llama-server.exe": "llamacpp",
}  # fmt: skip
WANTED = re.compile(r"(?:OLLAMA|LLAMA_ARG|GGML|OMP|GOMP|CUDA|HIP|ROCR|HSA|VLLM|GPU_DEVICE)_\w+")
MOST = 100_000


@attrs.frozen(kw_only=True)
class Process:
    """An engine's process. `environ` holds the variables that engines read, None where it may not be looked at."""

    pid: int
    kind: str
    command: tuple[str, ...]
    environ: Mapping[str, str] | None = None
    binary: str = ""

    @property
    def child(self) -> bool:
        """Whether another engine started it, as Ollama does its runners."""
        return "runner" in self.command[1:2] or (self.kind == "llamacpp" and "--no-webui" in self.command)

    @property
    def serving(self) -> bool:
        """Whether it is a server, not a client of one (`ollama run`, `ollama list`)."""
        return self.kind != "ollama" or self.command[1:2] in ((), ("serve",), ("runner",))


def engine_processes(host: Host) -> list[Process]:
    """The engines among the processes: from /proc, else from psutil."""
    found = _from_proc(host) if host.system == "linux" else _from_psutil(host)
    return [process for process in found if process.serving]


def _from_proc(host: Host) -> list[Process]:
    found = []
    for name in host.names("/proc")[:MOST]:
        if not name.isdigit():
            continue
        command = tuple((host.read(f"/proc/{name}/cmdline") or "").split("\0"))
        kind = _kind(command)
        if kind is None:
            continue
        variables = host.read(f"/proc/{name}/environ")
        found.append(
            Process(
                pid=int(name),
                kind=kind,
                command=command,
                environ=_variables(variables.split("\0")) if variables is not None else None,
                binary=host.link(f"/proc/{name}/exe") or command[0],
            )
        )
    return found


def _from_psutil(host: Host) -> list[Process]:
    psutil = host.library("psutil")
    if psutil is None:
        return []
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        command = tuple(process.info["cmdline"] or ())
        kind = _kind(command)
        if kind is None:
            continue
        environ = None
        with contextlib.suppress(psutil.Error):
            environ = _variables(f"{key}={value}" for key, value in process.environ().items())
        found.append(
            Process(
                pid=process.info["pid"],
                kind=kind,
                command=command,
                environ=environ,
                binary=command[0],
            )
        )
    return found


def _kind(command: tuple[str, ...]) -> str | None:
    for word in command[:2]:  # the second, for what an interpreter runs
        kind = PROGRAMS.get(re.split(r"[/\\]", word)[-1].lower())
        if kind is not None:
            return kind
    return None


def _variables(lines: Iterable[str]) -> dict[str, str]:
    pairs = (line.partition("=") for line in lines)
    return {key: value for key, sep, value in pairs if sep and WANTED.fullmatch(key)}


# ---- sockets ---------------------------------------------------------------------------------------------------------


def listening(host: Host) -> dict[int, set[str]]:
    """The ports that something listens on, each with its addresses: `127.0.0.1`, `0.0.0.0`, `::`, ... Linux only."""
    found: dict[int, set[str]] = {}
    for path in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in (host.read(path) or "").splitlines()[1:]:
            words = line.split()
            if len(words) > 3 and words[3] == "0A":
                address, _, port = words[1].partition(":")
                with contextlib.suppress(ValueError):
                    found.setdefault(int(port, 16), set()).add(_address(address))
    return found


def clients(host: Host, port: int) -> int:
    """How many connections to a local port are open at the moment."""
    count = 0
    for path in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in (host.read(path) or "").splitlines()[1:]:
            words = line.split()
            count += len(words) > 3 and words[3] == "01" and words[1].endswith(f":{port:04X}")
    return count


def _address(text: str) -> str:
    if len(text) == 8:
        return ".".join(str(byte) for byte in reversed(bytes.fromhex(text)))
    if set(text) == {"0"}:
        return "::"
    return "::1" if text == "00000000000000000000000001000000" else text.lower()
