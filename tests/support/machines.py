"""Machines on record: a `Host` that answers from a text file, with the formats of the real files and tools.

    === system linux x86_64
    === env NAME=VALUE
    === file PATH                   the lines below, up to the next ===
    === line PATH TEXT              a file of one line
    === link PATH TARGET
    === command WORDS               what it prints
    === failing WORDS               a command that ends with status 1, and what it says
    === hanging WORDS               one that never ends
    === denied PATH                 a file that may not be read
    === disk TOTAL FREE
    === cpus N threads=T l1=48K l2=2M l3=36M l3_cpus=N       the topology and caches that sysfs shows of N processors
    === library NAME                JSON, of which `fake_nvml` and `fake_psutil` make a module

`{0-31}` in a line of /proc/cpuinfo repeats its paragraph for each processor.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from velollm.hardware.host import COMMAND_SECONDS, Host

__all__ = ["MACHINES", "RecordedHost", "machine_names"]

MACHINES = Path(__file__).parent.parent / "hardware" / "machines"
CPUS = "/sys/devices/system/cpu"


def machine_names() -> list[str]:
    """Every machine on record."""
    return sorted(path.stem for path in MACHINES.glob("*.txt"))


class RecordedHost(Host):
    """The machine that `text` records, or the one called `name`."""

    def __init__(self, name: str = "", text: str = "") -> None:
        super().__init__()
        self.system, self.arch = "linux", "x86_64"
        self.environ: dict[str, str] = {}
        self.files: dict[str, str] = {}
        self.links: dict[str, str] = {}
        self.commands: dict[tuple[str, ...], str | None] = {}
        self.hanging: set[tuple[str, ...]] = set()
        self.denied: set[str] = set()
        self.libraries: dict[str, Any] = {}
        self.space: tuple[int, int] | None = None
        self.asked: list[tuple[str, ...]] = []
        text = text or (MACHINES / f"{name}.txt").read_text(encoding="utf-8")
        for section in re.split(r"^=== ", text, flags=re.MULTILINE)[1:]:
            head, _, body = section.partition("\n")
            kind, _, rest = head.partition(" ")
            getattr(self, f"_add_{kind}")(rest.strip(), body.rstrip("\n"))
        self.folders: dict[str, set[str]] = {}
        for path in [*self.files, *self.links]:
            parent, _, name = path.rpartition("/")
            while parent:
                self.folders.setdefault(parent, set()).add(name)
                parent, _, name = parent.rpartition("/")

    # ---- the sections ----

    def _add_system(self, rest: str, body: str) -> None:
        self.system, self.arch = rest.split()

    def _add_env(self, rest: str, body: str) -> None:
        key, _, value = rest.partition("=")
        self.environ[key] = value

    def _add_file(self, rest: str, body: str) -> None:
        if rest == "/proc/cpuinfo":
            body = _repeat(body)
        self.files[rest] = body.replace("\\0", "\0")

    def _add_line(self, rest: str, body: str) -> None:
        path, _, self.files[path] = rest.partition(" ")

    def _add_link(self, rest: str, body: str) -> None:
        path, self.links[path] = rest.split()

    def _add_command(self, rest: str, body: str) -> None:
        self.commands[tuple(shlex.split(rest, posix=self.system != "windows"))] = body

    def _add_failing(self, rest: str, body: str) -> None:
        words = tuple(shlex.split(rest))
        self.commands[words] = None
        self.files[f"/failing/{words[0]}"] = body

    def _add_hanging(self, rest: str, body: str) -> None:
        self.hanging.add(tuple(shlex.split(rest)))

    def _add_denied(self, rest: str, body: str) -> None:
        self.denied.add(rest)

    def _add_disk(self, rest: str, body: str) -> None:
        total, free = rest.split()
        self.space = int(total), int(free)

    def _add_library(self, rest: str, body: str) -> None:
        self.libraries[rest] = {"pynvml": fake_nvml, "psutil": fake_psutil}[rest](json.loads(body))

    def _add_cpus(self, rest: str, body: str) -> None:
        words = rest.split()
        count, options = int(words[0]), dict(word.split("=") for word in words[1:])
        first = int(options.get("first", 0))
        threads, sockets = int(options.get("threads", 1)), int(options.get("sockets", 1))
        step = count // threads if options.get("order") == "far" else 1
        self.files.setdefault(f"{CPUS}/online", f"0-{first + count - 1}")
        for cpu in range(first, first + count):
            index = cpu - first
            core = index % step if step > 1 else index // threads
            siblings = (
                [first + core + step * n for n in range(threads)]
                if step > 1
                else [first + core * threads + n for n in range(threads)]
            )
            base = f"{CPUS}/cpu{cpu}"
            per = max(count // threads // sockets, 1)
            self.files[f"{base}/topology/physical_package_id"] = str(core // per)
            self.files[f"{base}/topology/core_id"] = str(core % per + first)
            self.files[f"{base}/topology/thread_siblings_list"] = ",".join(map(str, siblings))
            shared = {"l1": siblings, "l1i": siblings, "l2": siblings, "l3": range(first, first + count)}
            for level in ("l1", "l2", "l3"):
                if f"{level}_cpus" in options:
                    size = int(options[f"{level}_cpus"])
                    start = first + index // size * size
                    shared[level] = range(start, start + size)
            kinds = (("l1", "1", "Data"), ("l1", "1", "Instruction"), ("l2", "2", "Unified"), ("l3", "3", "Unified"))
            for number, (level, depth, kind) in enumerate(kinds):
                if level in options:
                    folder = f"{base}/cache/index{number}"
                    self.files[f"{folder}/level"] = depth
                    self.files[f"{folder}/type"] = kind
                    self.files[f"{folder}/size"] = options[level]
                    self.files[f"{folder}/shared_cpu_list"] = ",".join(map(str, shared[level]))
            if "max_khz" in options:
                self.files[f"{base}/cpufreq/cpuinfo_max_freq"] = options["max_khz"]
            if "governor" in options:
                self.files[f"{base}/cpufreq/scaling_governor"] = options["governor"]

    # ---- Host ----

    def read(self, path: str) -> str | None:
        if path in self.denied:
            self.note(path, "Permission denied")
            return None
        text = self.files.get(path)
        return text.strip("\0 \t\r\n") if text is not None else None

    def names(self, path: str) -> list[str]:
        if path in self.denied:
            self.note(path, "Permission denied")
        return sorted(self.folders.get(path, ()))

    def link(self, path: str) -> str | None:
        return self.links.get(path)

    def which(self, command: str) -> str | None:
        known = {words[0] for words in [*self.commands, *self.hanging]}
        return f"/usr/bin/{command}" if command in known else None

    def run(self, *command: str, seconds: float = COMMAND_SECONDS) -> str | None:
        if self.which(command[0]):
            self.asked.append(command)
        if any(command[: len(words)] == words for words in self.hanging):
            self.note(command[0], f"did not answer within {seconds:g} s")
            return None
        printed = self.commands[command] if command in self.commands else self.commands.get(command[:1])
        if printed is None and self.which(command[0]):
            self.note(command[0], self.files.get(f"/failing/{command[0]}", "").split("\n")[0] or "ended with status 1")
        return printed.strip() if printed is not None else None

    def library(self, name: str) -> Any | None:
        return self.libraries.get(name)

    def disk(self, path: str) -> tuple[int, int] | None:
        return self.space


def _repeat(text: str) -> str:
    blocks = []
    for block in text.split("\n\n"):
        match = re.search(r"\{(\d+)-(\d+)\}", block)
        if match is None:
            blocks.append(block)
            continue
        numbers = range(int(match[1]), int(match[2]) + 1)
        blocks += [block.replace(match[0], str(number)) for number in numbers]
    return "\n\n".join(blocks)


def fake_nvml(record: dict[str, Any]) -> Any:
    """A module like pynvml: the functions that take no device, and those of each of `devices`."""

    class NVMLError(Exception):
        pass

    def function(name: str) -> Any:
        def call(*arguments: Any) -> Any:
            handle = arguments[0] if arguments and isinstance(arguments[0], dict) else record
            value = handle.get(name, NVMLError)
            if value is NVMLError or value == "error":
                raise NVMLError("Not Supported")
            if isinstance(value, list) and name.endswith("ByIndex"):
                if arguments[-1] >= len(value) or value[arguments[-1]] is None:
                    raise NVMLError("Not Found")
                return value[arguments[-1]]
            return SimpleNamespace(**value) if isinstance(value, dict) else value

        return call

    names = {"nvmlInit", "nvmlShutdown"}
    stack: list[Any] = [record]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            names |= {key for key in value if key.startswith("nvml")}
            stack.extend(value.values())
        elif isinstance(value, list):
            stack.extend(value)
    record = {"nvmlInit": 0, "nvmlShutdown": 0, **record}
    return SimpleNamespace(NVMLError=NVMLError, **{name: function(name) for name in names})


def fake_psutil(record: dict[str, Any]) -> Any:
    """A module like psutil, of the parts that are used."""
    return SimpleNamespace(
        Error=OSError,
        cpu_count=lambda logical=True: record["logical"] if logical else record["physical"],
        virtual_memory=lambda: SimpleNamespace(**record["virtual_memory"]),
        swap_memory=lambda: SimpleNamespace(**record["swap_memory"]),
        process_iter=lambda attributes: [
            SimpleNamespace(info=one, environ=dict) for one in record.get("processes", [])
        ],
    )
