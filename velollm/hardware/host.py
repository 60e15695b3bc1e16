"""What a probe may ask of the machine: files, commands, libraries. Nothing else touches it, so tests can record one.

Nothing here raises: what cannot be had is None (or empty), and why is kept in `notes`, because a hanging tool or a file
that may not be read is itself worth knowing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import attrs

__all__ = ["Host", "LocalHost", "Note"]

MOST_BYTES = 1 << 20
COMMAND_SECONDS = 0.6
ABSURD = 1 << 60


@attrs.frozen(kw_only=True)
class Note:
    """Something that kept a probe from an answer: `about` is a command, a path or a library."""

    about: str
    problem: str


class Host(ABC):
    """One machine, as far as it can be read. `system` is `linux`, `darwin` or `windows`; `arch` as uname says it."""

    system: str
    arch: str
    environ: Mapping[str, str]

    def __init__(self) -> None:
        self.notes: list[Note] = []

    @abstractmethod
    def read(self, path: str) -> str | None:
        """The text of a small file, stripped; None when there is none, or it may not be read."""

    @abstractmethod
    def names(self, path: str) -> list[str]:
        """The sorted names in a folder."""

    @abstractmethod
    def link(self, path: str) -> str | None:
        """Where a symbolic link points."""

    @abstractmethod
    def which(self, command: str) -> str | None:
        """Where a command lies."""

    @abstractmethod
    def run(self, *command: str, seconds: float = COMMAND_SECONDS) -> str | None:
        """What a command prints, None when it is missing, fails or takes longer than `seconds`."""

    @abstractmethod
    def library(self, name: str) -> Any | None:
        """An optional Python module, None when it is not installed."""

    @abstractmethod
    def disk(self, path: str) -> tuple[int, int] | None:
        """Bytes in all and bytes free where `path` lies, or would."""

    def tail(self, path: str, size: int) -> str:
        """The end of a file (a log, say), `size` bytes at most; empty when there is none."""
        text = self.read(path) or ""
        return text[-size:]

    def note(self, about: str, problem: str) -> None:
        """Keep what was in the way, once."""
        note = Note(about=about, problem=problem)
        if note not in self.notes:
            self.notes.append(note)

    def number(self, path: str) -> int | None:
        """The whole number that a file holds, None for anything else, and for what no file can mean."""
        text = self.read(path)
        try:
            value = int(text[:40], 0) if text else None
        except ValueError:
            return None
        return value if value is not None and abs(value) < ABSURD else None


class LocalHost(Host):
    """The machine this runs on."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        super().__init__()
        self.environ = environ
        self.system = {"win32": "windows", "cygwin": "windows"}.get(sys.platform, sys.platform)
        self.arch = os.uname().machine if hasattr(os, "uname") else environ.get("PROCESSOR_ARCHITECTURE", "").lower()

    def read(self, path: str) -> str | None:
        """The text of a small file."""
        try:
            with open(path, "rb") as file:
                return file.read(MOST_BYTES).decode("utf-8", "replace").strip("\0 \t\r\n")
        except (FileNotFoundError, NotADirectoryError, ProcessLookupError):
            return None
        except OSError as error:
            if not path.startswith("/proc/"):  # other users' processes
                self.note(path, error.strerror or str(error))
            return None

    def tail(self, path: str, size: int) -> str:
        """The end of a file."""
        try:
            with open(path, "rb") as file:
                file.seek(0, os.SEEK_END)
                file.seek(max(file.tell() - size, 0))
                return file.read(size).decode("utf-8", "replace")
        except (OSError, ValueError):
            return ""

    def names(self, path: str) -> list[str]:
        """The sorted names in a folder."""
        try:
            return sorted(os.listdir(path))
        except (FileNotFoundError, NotADirectoryError, ProcessLookupError):
            return []
        except OSError as error:
            if not path.startswith("/proc/"):
                self.note(path, error.strerror or str(error))
            return []

    def link(self, path: str) -> str | None:
        """Where a symbolic link points."""
        try:
            return os.readlink(path)
        except OSError:
            return None

    def which(self, command: str) -> str | None:
        """Where a command lies."""
        return shutil.which(command, path=self.environ.get("PATH"))

    def run(self, *command: str, seconds: float = COMMAND_SECONDS) -> str | None:
        """What a command prints on standard output."""
        found = self.which(command[0])
        if found is None:
            return None
        try:
            done = subprocess.run(  # noqa: S603 -- fixed commands, no shell
                [found, *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=seconds,
                check=False,
                env={**self.environ, "LC_ALL": "C"},
            )
        except subprocess.TimeoutExpired:
            self.note(command[0], f"did not answer within {seconds:g} s")
            return None
        except OSError as error:
            self.note(command[0], f"cannot be run: {error.strerror or error}")
            return None
        text = done.stdout[:MOST_BYTES].decode("utf-8", "replace").strip()
        if done.returncode != 0:
            self.note(command[0], text.splitlines()[0][:200] if text else f"ended with status {done.returncode}")
            return None
        return text

    def library(self, name: str) -> Any | None:
        """An optional Python module."""
        try:
            return import_module(name)
        except ImportError:
            return None

    def disk(self, path: str) -> tuple[int, int] | None:
        """Bytes in all and bytes free."""
        place = Path(path)
        while not place.exists() and place != place.parent:
            place = place.parent
        try:
            usage = shutil.disk_usage(place)
        except OSError as error:
            self.note(path, error.strerror or str(error))
            return None
        return usage.total, usage.free
