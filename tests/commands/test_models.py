"""`velollm models`, run as the command line runs it."""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import pytest
from tiny_gguf import CONTEXT, write_tiny_gguf

from velollm.commands import models
from velollm.commands.progress import ProgressBar


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VELOLLM_MODELS_DIR", str(tmp_path / "models"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    return tmp_path / "models"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


def command(*words: str) -> int:
    parser = argparse.ArgumentParser()
    models.configure(parser)
    return models.run(parser.parse_args(words))


def test_life_of_a_model(folder: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("list", "--json") == 0
    assert json.loads(capsys.readouterr().out) == []
    assert command("install", str(tiny), "--json") == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"name": "tiny", "path": str(folder / "tiny.gguf")}
    assert err == "unpacking tiny (2 MiB)\n"
    assert command("list", "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row == {"name": "tiny", "path": str(folder / "tiny.gguf"), "size": tiny.stat().st_size, "source": "velollm"}
    assert command("show", "tiny", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["architecture"] == "llama"
    assert facts["context_length"] == CONTEXT
    assert facts["chat_template"] is facts["tools"] is True
    assert command("remove", "tiny", "--json") == 0
    assert json.loads(capsys.readouterr().out)["name"] == "tiny"
    assert list(folder.iterdir()) == []


def test_for_people(folder: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("list") == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "velollm models install smollm2" in err
    command("install", "--link", str(tiny))
    assert "velollm serve --model tiny" in capsys.readouterr().out
    assert (folder / "tiny.gguf").is_symlink()
    command("list")
    assert capsys.readouterr().out == f"tiny     1.7 MB  velollm  {folder / 'tiny.gguf'}\n"
    command("show", str(tiny))
    assert "chat template   yes\n" in capsys.readouterr().out
    command("remove", "tiny")
    assert "1.7 MB are free" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["show", "none"], "no model 'none' is installed"),
        (["remove", "none"], "no model 'none' in"),
        (["install", "none"], "no model 'none' is known"),
        (["install", "none.gguf"], "cannot be read"),
        (["show", "none.gguf"], "there is no file"),
    ],
)
def test_what_cannot_be_done(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], complaint: str
) -> None:
    assert command(*words) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"velollm models {words[0]}: ")
    assert complaint in err


@pytest.mark.parametrize("words", [[], ["destroy"], ["install"], ["show", "a", "b"]])
def test_wrong_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command(*words)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_which_folder() -> None:
    environ = {"VELOLLM_MODELS_DIR": "/b", "XDG_DATA_HOME": "/c"}
    assert models.models_folder(Path("/a"), environ) == Path("/a")
    assert models.models_folder(None, environ) == Path("/b")
    assert models.models_folder(None, {"XDG_DATA_HOME": "/c"}) == Path("/c/velollm/models")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_bar_on_a_terminal() -> None:
    out = Terminal()
    with ProgressBar(out) as bar:
        for done in range(101):
            bar("fetching x", done << 20, 100 << 20)
        bar("unpacking x", 0, 0)
    lines = out.getvalue().split("\n")
    assert lines[0].startswith("\rfetching x [")
    assert lines[0].endswith(f"\rfetching x [{'#' * 30}] 100% of 100 MiB")
    assert lines[0].count("\r") < 50
    assert lines[1:] == [f"\runpacking x [{'#' * 30}] 100% of 0 MiB", ""]


def test_bar_elsewhere() -> None:
    out = io.StringIO()
    with ProgressBar(out) as bar:
        for done in range(101):
            bar("fetching x", done << 20, 100 << 20)
    assert out.getvalue() == "fetching x (100 MiB)\n"
    with ProgressBar(out := Terminal(), quiet=True) as bar:
        bar("fetching x", 1, 2)
    assert out.getvalue() == ""
