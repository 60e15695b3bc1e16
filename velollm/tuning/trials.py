"""Engines started for a trial, on a free port beside whatever runs already, and ended with it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import httpx

from velollm.errors import ConfigError

__all__ = ["EmbeddedTrial", "LlamaServerTrial", "OllamaTrial", "Trial"]

START_SECONDS = 120.0
END_SECONDS = 5.0
LAST_WORDS = 600


class Trial:
    """An engine with given settings: `with` starts it and ends it. `kind` and `model` are for `measure`."""

    kind = "llamacpp"

    def __init__(self, model: str) -> None:
        self.model = model
        self.url = ""
        self.key = ""
        self.log = Path()
        self._process: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] | None = None

    def command(self) -> tuple[Sequence[str], Mapping[str, str]]:
        """What is started, and with which environment."""
        raise NotImplementedError

    def __enter__(self) -> Trial:
        handle, path = tempfile.mkstemp(prefix="velollm-trial-", suffix=".log")
        self.log, self._output = Path(path), os.fdopen(handle, "wb")
        words, environ = self.command()
        try:
            self._process = subprocess.Popen(  # noqa: S603 -- no shell
                words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if self._talks else self._output,
                stderr=self._output,
                env=dict(environ),
                start_new_session=True,
            )
            self._begin(self._process)
            self._wait()
        except OSError as error:
            self.close()
            raise ConfigError(f"{words[0]} cannot be started: {error.strerror or error}") from error
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the engine and all that it started."""
        process, self._process = self._process, None
        if process is not None:
            for number in (signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)):
                _signal_group(process, number)
                try:
                    process.wait(END_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    continue
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
        if self._output is not None:
            self._output.close()
            self._output = None
        self.log.unlink(missing_ok=True)

    def text(self) -> str:
        """The engine's log so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    _talks = False  # whether it says on standard output where it listens

    def _begin(self, process: subprocess.Popen[bytes]) -> None:
        """What has to be said to it first."""

    def _wait(self) -> None:
        assert self._process is not None
        end = time.monotonic() + START_SECONDS
        with httpx.Client(timeout=2, trust_env=False) as client:
            while time.monotonic() < end:
                if self._process.poll() is not None:
                    break
                try:
                    if client.get(self.url + self._health).status_code == 200:
                        return
                except httpx.HTTPError:
                    pass
                time.sleep(0.1)
        words = self.text()[-LAST_WORDS:].strip()
        raise ConfigError(f"the trial engine did not start: {words or 'it said nothing'}")

    _health = "/health"


class OllamaTrial(Trial):
    """`ollama serve` with the variables of a tuning, on the models of the real one."""

    kind = "ollama"
    _health = "/api/version"

    def __init__(self, binary: str, model: str, variables: Mapping[str, str], environ: Mapping[str, str]) -> None:
        super().__init__(model)
        self._binary = binary
        self._variables = variables
        self._environ = environ

    def command(self) -> tuple[Sequence[str], Mapping[str, str]]:
        """The server on a free port, with no OLLAMA_ variable but the models' folder and those of the trial."""
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        kept = {
            key: value
            for key, value in self._environ.items()
            if not key.startswith(("OLLAMA_", "LLAMA_ARG_", "OMP_", "GOMP_"))
            or key in ("OLLAMA_MODELS", "OLLAMA_LLM_LIBRARY")
        }
        own = {"OLLAMA_HOST": f"127.0.0.1:{port}", "OLLAMA_NOPRUNE": "1"}  # the store is the real server's
        return [self._binary, "serve"], {**kept, **self._variables, **own}


class LlamaServerTrial(Trial):
    """A `llama-server` with the flags of a tuning."""

    def __init__(self, binary: str, path: Path, flags: Mapping[str, str], environ: Mapping[str, str]) -> None:
        super().__init__(path.stem)
        self._binary = binary
        self._path = path
        self._flags = flags
        self._environ = environ

    def command(self) -> tuple[Sequence[str], Mapping[str, str]]:
        """The server on a free port."""
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        flags = [word for flag, value in self._flags.items() for word in ((flag, value) if value else (flag,))]
        return [self._binary, "-m", str(self._path), "--host", "127.0.0.1", "--port", str(port), *flags], self._environ


class EmbeddedTrial(Trial):
    """The llama-server of the wheel, in the child process that VeloLLM's own engine uses; its flags as far as it has
    them (slots, context, threads, cache type, batch, drafts)."""

    _talks = True

    def __init__(self, path: Path, flags: Mapping[str, str], environ: Mapping[str, str]) -> None:
        super().__init__(path.stem)
        self._path = path
        self._flags = flags
        self._environ = environ

    def command(self) -> tuple[Sequence[str], Mapping[str, str]]:
        """The child, which is told the rest on its standard input."""
        child = find_spec("velollm.contrib.llamacpp.child")
        if child is None or child.origin is None or find_spec("xllamacpp") is None:
            raise ConfigError('a trial needs llama-server on the PATH, or the wheel: pip install "velollm[llamacpp]"')
        waiting = {key: value for key, value in self._flags.items() if key.isupper()}
        return [sys.executable, "-P", child.origin], {**self._environ, **waiting}

    def _begin(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        process.stdin.write(json.dumps(self._parameters()).encode() + b"\n")
        process.stdin.flush()

    def _wait(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()  # empty when it ends without a word
        if not line:
            raise ConfigError(f"the trial engine did not start: {self.text()[-LAST_WORDS:].strip()}")
        self.url = str(json.loads(line)["url"])

    def _parameters(self) -> dict[str, Any]:
        flags = self._flags
        slots = int(flags.get("--parallel") or flags.get("slots") or 1)
        total = int(flags.get("--ctx-size") or 4096 * slots)
        self.key = "trial"
        return {
            "path": str(self._path),
            "names": [self.model],
            "key": self.key,
            "context": int(flags.get("engine.ctx") or total // slots),
            "slots": slots,
            "unified": False,
            "cache_mib": int(flags.get("--cache-ram") or 256),
            "threads": int(flags.get("--threads") or flags.get("engine.threads") or os.cpu_count() or 1),
            "kv_type": flags.get("--cache-type-k") or flags.get("engine.kv_type") or "f16",
            "pooling": "",
            "batch": int(flags.get("--ubatch-size") or 512),
            "flash_attention": flags.get("--flash-attn", "auto"),
            "speculative": {
                flag.removeprefix("--spec-"): value for flag, value in flags.items() if flag.startswith("--spec-")
            },
        }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    try:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, number)
        else:
            process.terminate()
    except (ProcessLookupError, PermissionError):
        pass  # it has ended
