"""What is packaged is what lies in the tree: the list in setup.cfg, the content of the wheel, and its bits."""

from __future__ import annotations

import configparser
import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PACKAGES = {"velollm": "velollm", "contrib": "velollm.contrib", "cuda": "velollm.cuda"}  # folder: installed name
BUILD = "from setuptools import build_meta; print(build_meta.build_wheel({out!r}))"
EPOCH = "1750000000"
PUBLISHED = ("velollm", "contrib", "cuda", "tests", "docs", "benchmarks", ".ci")
GENERATED = shutil.ignore_patterns("__pycache__", "*.pyc", "*.egg-info")


IMPORTED = {  # what a distribution is imported by
    "cuda_bindings": r"cuda\.bindings",
    "cuda_core": r"cuda\.core",
    "nvidia_cublas": r"cuda\.pathfinder import load_nvidia_dynamic_lib",
    "nvidia_cuda_nvrtc": r"cuda\.bindings import nvrtc",
    "nvidia_ml_py": "pynvml",
}


def setup_cfg() -> configparser.ConfigParser:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return config


def tree() -> dict[str, Path]:
    """Every file that belongs into the wheel, by its path there."""
    return {
        "/".join((*name.split("."), *path.relative_to(ROOT / folder).parts)): path
        for folder, name in PACKAGES.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    }


def build(folder: Path, source: Path) -> Path:
    """The wheel of a copy of the tree."""
    source.mkdir()
    for name in PACKAGES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=GENERATED, copy_function=shutil.copy)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    done = subprocess.run(
        [sys.executable, "-c", BUILD.format(out=str(folder))],
        cwd=source, env={**os.environ, "SOURCE_DATE_EPOCH": EPOCH}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("wheel")
    return build(folder, folder / "source")


def test_the_list_of_packages_is_the_tree() -> None:
    listed = setup_cfg()["options"]["packages"].split()
    found = {path.rpartition("/")[0].replace("/", ".") for path in tree() if path.endswith((".py", ".cu", ".cuh"))}
    assert set(listed) == found
    assert len(listed) == len(set(listed))


def test_the_wheel_holds_the_tree_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        files = tree()
        assert names == set(files)
        for name in names:
            assert archive.read(name) == files[name].read_bytes(), name


def test_the_wheel_starts_nothing_by_itself(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert not [name for name in names if name.endswith((".pth", ".so", ".pyd", ".exe")) or ".data/" in name]
        assert [name for name in names if name.endswith("licenses/LICENSE")]
        points = next(name for name in names if name.endswith("entry_points.txt"))
        assert archive.read(points).split() == b"[console_scripts] velollm = velollm.cli:main".split()


def test_a_second_build_is_the_same_to_the_bit(wheel: Path, tmp_path: Path) -> None:
    again = build(tmp_path, tmp_path / "elsewhere")
    assert again.name == wheel.name
    assert hashlib.sha256(again.read_bytes()).digest() == hashlib.sha256(wheel.read_bytes()).digest()


def test_every_extra_is_used() -> None:
    """An extra that nothing imports is a promise that nothing keeps."""
    extras = dict(setup_cfg()["options.extras_require"])
    everything = extras.pop("all")
    assert set(re.findall(r"\w+", everything.partition("[")[2])) == set(extras) - {"cublas"}, "half a gigabyte"
    text = "".join(path.read_text(encoding="utf-8") for name, path in tree().items() if name.endswith(".py"))
    for extra, wanted in extras.items():
        for line in wanted.strip().splitlines():
            name = re.split(r"[ ;<>=!~\[(]", line)[0].replace("-", "_")
            name = IMPORTED.get(name, name)
            assert re.search(rf"(import|from|find_spec\(\W?|library\(\W?) ?{name}\b", text), (
                f"{extra}: nothing imports {name}"
            )


def test_the_lock_is_of_what_is_wanted_and_every_file_in_it_has_its_hash() -> None:
    """After a change of setup.cfg: tox -e lock."""
    config = setup_cfg()["options"], setup_cfg()["options.extras_require"]
    listed = [
        config[0]["install_requires"],
        *(value for name, value in config[1].items() if name not in ("all", "cublas")),
    ]
    text = (ROOT / ".ci" / "requirements.txt").read_text(encoding="utf-8").replace("\\\n", "")
    entries = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    assert all("--hash=sha256:" in entry for entry in entries)
    assert "://" not in text, "an address of whoever wrote it"
    pinned: dict[str, list[str]] = {}
    for entry in entries:
        name, _, version = entry.partition(";")[0].partition(" --hash")[0].strip().partition("==")
        pinned.setdefault(name, []).append(version)
    for line in filter(str.strip, "\n".join(listed).splitlines()):
        wanted = Requirement(line.strip())
        versions = pinned[wanted.name.replace("_", "-").lower()]
        assert all(wanted.specifier.contains(version) for version in versions), line


SECRETS = re.compile(
    rb"-----BEGIN [A-Z ]*PRIVATE KEY-----|\b(?:AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{36}|hf_[A-Za-z0-9]{34}"
    rb"|pypi-[A-Za-z0-9_-]{80,}|sk-(?:proj-|ant-)?[A-Za-z0-9]{32,})"
)


def test_no_file_holds_what_looks_like_a_secret() -> None:
    for folder in PUBLISHED:
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".gguf":
                assert not SECRETS.search(path.read_bytes()), path


def test_floors_leave_known_holes_out() -> None:
    """starlette before 0.49.1 (CVE-2025-62727), h11 before 0.16 (CVE-2025-43859): no resolution may go below."""
    wanted = {re.split(r"[ ;<>=!~\[(]", item)[0]: item for item in requires("velollm") or ()}
    assert ">=0.49.1" in wanted["starlette"].replace(" ", "")
    assert ">=0.16" in wanted["h11"].replace(" ", "")
    assert all(">=" in item or "==" in item for item in wanted.values())
