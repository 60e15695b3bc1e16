"""The library that stands in for the wheel's: found only where it fits, and checked before it is believed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("xllamacpp", reason="the extra llamacpp is not installed")

from velollm.engine import llama_cpp
from velollm.engine.native import LIBRARY, MANIFEST, cpu_key, find_native, manifest_for
from velollm.engine.sample_model import write_sample_model
from velollm.engine.trial import try_library
from velollm.errors import ConfigError

WHEEL = Path(llama_cpp.find_wheel())


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder with the wheel's own library in the place of a native one."""
    (tmp_path / LIBRARY).symlink_to(WHEEL)
    (tmp_path / MANIFEST).write_text(json.dumps(manifest_for("1", WHEEL)))
    return tmp_path


def test_found_where_it_was_built_for(installed: Path) -> None:
    assert find_native("1", WHEEL, installed) == installed / LIBRARY


@pytest.mark.parametrize("changed", [{"version": "2"}, {"wheel_size": 1}, {"cpu": "another"}, {"cpu": ""}])
def test_left_alone_elsewhere(installed: Path, changed: dict[str, Any]) -> None:
    manifest = json.loads((installed / MANIFEST).read_text())
    (installed / MANIFEST).write_text(json.dumps(manifest | changed))
    assert find_native("1", WHEEL, installed) is None


@pytest.mark.parametrize("manifest", [None, b"no json", b"[]"])
def test_what_is_no_manifest(installed: Path, manifest: bytes | None) -> None:
    (installed / MANIFEST).unlink()
    if manifest is not None:
        (installed / MANIFEST).write_bytes(manifest)
    assert find_native("1", WHEEL, installed) is None


def test_the_key_of_a_cpu(tmp_path: Path) -> None:
    one, other, none = tmp_path / "one", tmp_path / "other", tmp_path / "none"
    one.write_text("processor : 0\nflags\t\t: avx2 fma\n")
    other.write_text("processor : 0\nFeatures : fma avx2\n")
    none.write_text("processor : 0\n")
    assert cpu_key(one) == cpu_key(other) != ""
    assert cpu_key(none) == cpu_key(tmp_path / "missing") == ""


def test_a_native_build_that_does_not_fit_is_left_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    llama_cpp.load_library.cache_clear()
    monkeypatch.setattr(llama_cpp, "find_native", lambda version, wheel: tmp_path / "none.so")
    assert llama_cpp.load_library().llama_supports_gpu_offload is not None
    assert "is left aside" in caplog.text
    llama_cpp.load_library.cache_clear()


def test_a_trial(tmp_path: Path) -> None:
    model = write_sample_model(tmp_path / "sample.gguf")
    first, second = (try_library(WHEEL, model, 1) for _ in range(2))
    assert first["tokens"] == second["tokens"]
    assert len({tuple(tokens) for tokens in first["tokens"]}) == 16
    assert first["prefill"] > 0 < first["decode"]
    with pytest.raises(ConfigError, match="does not work"):
        try_library(tmp_path / "none.so", model, 1)
