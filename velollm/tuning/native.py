"""Builds llama.cpp for this very CPU out of the pinned wheel's own source archive, and keeps it if it pays.

    tools? ─▶ pip download ─▶ unpack ─▶ cmake ─▶ same tokens? faster? ─▶ beside the models, used from then on

The wheel has to run on any CPU of the last ten years. What newer ones have (AVX512, VNNI, AMX) it leaves unused.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

import attrs

from velollm.engine.native import LIBRARY, MANIFEST, cpu_key, manifest_for, native_folder
from velollm.engine.trial import try_library
from velollm.errors import ConfigError
from velollm.models.pip import pip_command

__all__ = ["NativeBuild", "build_native", "remove_native"]

PACKAGE = "xllamacpp"
SOURCE = "thirdparty/llama.cpp"
OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release", "BUILD_SHARED_LIBS": "ON", "GGML_NATIVE": "ON", "LLAMA_BUILD_COMMON": "OFF",
    "LLAMA_BUILD_TESTS": "OFF", "LLAMA_BUILD_TOOLS": "OFF", "LLAMA_BUILD_EXAMPLES": "OFF", "LLAMA_BUILD_SERVER": "OFF",
    "LLAMA_BUILD_APP": "OFF", "LLAMA_OPENSSL": "OFF", "LLAMA_BUILD_COMMIT": "native",
    "CMAKE_BUILD_WITH_INSTALL_RPATH": "ON", "CMAKE_INSTALL_RPATH": "$ORIGIN",
}  # fmt: skip
COMPILERS = ("c++", "g++", "clang++")
STEP = re.compile(r"^\[\s*(\d+)(?:/(\d+)|%)\]")  # how Ninja and Make count
ROUNDS = 3
WORTH = 1.05
LONGEST_COMPLAINT = 800

Say = Callable[[str], None]


@attrs.frozen(kw_only=True)
class NativeBuild:
    """How many times as fast as the wheel it is, by seconds of CPU; `kept` says whether it is used from now on."""

    folder: Path
    prefill: float
    decode: float
    kept: bool

    @property
    def words(self) -> str:
        """The verdict."""
        figures = f"prompts {self.prefill:.2f} x, answers of 16 at once {self.decode:.2f} x the speed of the wheel"
        return f"kept, and used from now on: {figures}" if self.kept else f"not kept, for it does not pay: {figures}"


def build_native(
    model: Path | None = None,
    *,
    say: Say = lambda text: None,
    threads: int = 2,
    folder: Path | None = None,
    archive: Path | None = None,
) -> NativeBuild:
    """Build, check and install it; what was installed before is replaced only by what passes.

    It is measured on `model` (None: a small one of random numbers). `archive` is the source archive, where it is here
    already. Raises `ConfigError` when a tool is missing, the build fails, or its tokens are not those of the wheel.
    """
    from velollm.engine import llama_cpp
    from velollm.engine.sample_model import write_sample_model

    folder = folder or native_folder()
    _check_machine()
    wheel = Path(llama_cpp.find_wheel())
    if llama_cpp.open_library(str(wheel)).llama_supports_gpu_offload():
        raise ConfigError("this wheel computes on a GPU, which a build for the CPU would not")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".native-", dir=folder.parent) as work:
        place = Path(work)
        if archive is None:
            say(f"downloading the source of {PACKAGE} {llama_cpp.WHEEL}")
            archive = _download(llama_cpp.WHEEL, place)
        say("unpacking")
        source = _unpack(archive, place / "source")
        built = _compile(source, place / "build", threads, say)
        say("checking")
        sample = write_sample_model(place / "sample.gguf")
        if try_library(built, sample, threads)["tokens"] != try_library(wheel, sample, threads)["tokens"]:
            raise ConfigError("the build computes other tokens than the wheel: it was thrown away")
        prefill, decode = _gains(wheel, built, model or sample, threads, say)
        kept = min(prefill, decode) > 1 / WORTH and max(prefill, decode) >= WORTH
        if kept:
            (built.parent / MANIFEST).write_text(json.dumps(manifest_for(llama_cpp.WHEEL, wheel), indent=2) + "\n")
            remove_native(folder)
            built.parent.replace(folder)
    return NativeBuild(folder=folder, prefill=round(prefill, 3), decode=round(decode, 3), kept=kept)


def remove_native(folder: Path | None = None) -> bool:
    """Go back to the wheel; whether there was anything to remove."""
    folder = folder or native_folder()
    there = folder.is_dir()
    if there:
        shutil.rmtree(folder)
    return there


def _check_machine() -> None:
    if sys.platform != "linux" or not cpu_key():
        raise ConfigError("a native build is for Linux: elsewhere the wheel is what there is")
    missing = [] if shutil.which("cmake") else ["cmake"]
    if not any(map(shutil.which, COMPILERS)):
        missing.append("a C++ compiler")
    if not any(map(shutil.which, ("ninja", "make"))):
        missing.append("make")
    if missing:
        raise ConfigError(f"{' and '.join(missing)} must be installed first: {_advice()}")


def _advice() -> str:
    try:
        system = platform.freedesktop_os_release()
    except OSError:
        system = {}
    names = {system.get("ID", ""), *system.get("ID_LIKE", "").split()}
    if names & {"debian", "ubuntu"}:
        return "apt install cmake g++ make"
    if names & {"fedora", "rhel", "centos"}:
        return "dnf install cmake gcc-c++ make"
    if "arch" in names:
        return "pacman -S cmake gcc make"
    if "alpine" in names:
        return "apk add cmake g++ make linux-headers"
    return "with the package manager of this system"


def _download(version: str, place: Path) -> Path:
    command = [
        *pip_command(), "download", "--no-deps", "--no-binary", PACKAGE, "--no-input", "--disable-pip-version-check",
        "--quiet", "--dest", str(place), f"{PACKAGE}=={version}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 (our own words)
    found = sorted(place.glob(f"{PACKAGE}-*.tar.gz"))
    if done.returncode or not found:
        raise ConfigError(f"pip could not download the source (is this machine offline?): {_end(done.stderr)}")
    return found[0]


def _unpack(archive: Path, place: Path) -> Path:
    """The folder of llama.cpp in the archive."""
    if not hasattr(tarfile, "data_filter"):
        raise ConfigError("this Python cannot unpack archives safely: 3.11.4 or a later one can")
    try:
        with tarfile.open(archive) as file:
            file.extractall(place, filter="data")
    except (OSError, tarfile.TarError) as error:
        raise ConfigError(f"{archive} cannot be unpacked: {error}") from error
    for path in place.glob(f"*/{SOURCE}"):
        return path
    raise ConfigError(f"{archive} has no {SOURCE} in it")


def _compile(source: Path, place: Path, threads: int, say: Say) -> Path:
    """The library, with those that it needs beside it."""
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    options = [f"-D{name}={value}" for name, value in OPTIONS.items()]
    say("configuring")
    _run(["cmake", "-S", str(source), "-B", str(place), *generator, *options], say)
    say(f"compiling on {threads} cores: some minutes")
    _run(["cmake", "--build", str(place), "--target", "llama", "--parallel", str(threads)], say)
    library = place / "bin" / LIBRARY
    if not library.is_file():
        raise ConfigError(f"the build ended without a {LIBRARY}")
    return library


def _run(command: list[str], say: Say) -> None:
    """Run it, and say of every tenth of its work that it is done."""
    with subprocess.Popen(  # noqa: S603 (our own words)
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "LC_ALL": "C"},
        text=True,
        errors="replace",
    ) as process:
        lines, tenth = [], 0
        assert process.stdout is not None
        try:
            for line in process.stdout:
                lines.append(line)
                step = STEP.match(line)
                done = int(step[1]) * 10 // int(step[2] or 100) if step else 0
                if done > tenth:
                    tenth = done
                    say(f"{10 * done} %")
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        wrong = [line for line in lines if "error" in line.lower()]
        raise ConfigError(f"{command[0]} failed: {_end(''.join(wrong or lines))}")


def _gains(wheel: Path, built: Path, model: Path, threads: int, say: Say) -> tuple[float, float]:
    """Prompts and answers: how many times as fast as the wheel, in turns."""
    found: dict[str, list[float]] = {"prefill": [], "decode": []}
    for number in range(ROUNDS):
        sides = (wheel, built) if number % 2 == 0 else (built, wheel)
        measured = {side: try_library(side, model, threads) for side in sides}
        for name, gains in found.items():
            gains.append(measured[wheel][name] / max(measured[built][name], 1e-9))
        say(
            f"round {number + 1} of {ROUNDS}: prompts {found['prefill'][-1]:.2f} x, answers {found['decode'][-1]:.2f} x"
        )
    return median(found["prefill"]), median(found["decode"])


def _end(text: str) -> str:
    return " ".join(text.split())[-LONGEST_COMPLAINT:] or "it gave no reason"
