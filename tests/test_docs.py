"""The documentation says what the code does: every setting is there, every link leads somewhere, every example runs."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import attrs
import pytest
from support.settings_reference import PAGE, page

from velollm.cli import COMMANDS
from velollm.config import BackendSettings, ModelSettings, Option, load_settings, options

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)]*)?\)")
CODE = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


def names(pages: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in pages]


def blocks(path: Path, language: str) -> list[str]:
    return [code for _, kind, code in CODE.findall(path.read_text(encoding="utf-8")) if kind == language]


def test_every_setting_is_in_the_reference() -> None:
    assert page() == PAGE.read_text(encoding="utf-8"), "run: python tests/support/settings_reference.py"


def test_every_key_of_backends_and_models_is_described() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for kind in (BackendSettings, ModelSettings):
        for field in attrs.fields(kind):
            assert re.search(rf"^\|.*`{field.name}`", text, re.MULTILINE), field.name


@pytest.mark.parametrize("path", PAGES, ids=names(PAGES))
def test_links_lead_somewhere(path: Path) -> None:
    for target in LINK.findall(path.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", PAGES, ids=names(PAGES))
def test_examples_are_well_formed(path: Path) -> None:
    for code in blocks(path, "python"):
        compile(code, str(path), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    for code in blocks(path, "toml"):
        tomllib.loads(code)


def test_the_example_of_a_configuration_is_one(tmp_path: Path) -> None:
    example = blocks(PAGE, "toml")[0]
    (tmp_path / "velollm.toml").write_text(example)
    settings = load_settings(environ={}, config=tmp_path / "velollm.toml")
    assert [backend.name for backend in settings.backends] == ["workstation", "gpu"]


@pytest.mark.parametrize("path", PAGES, ids=names(PAGES))
def test_commands_and_flags_exist(path: Path) -> None:
    known = {option.flag for option in options()} | COMMON
    for line in re.findall(r"^(?:\$ )?velollm [a-z-]+(?: .*)?$", path.read_text(encoding="utf-8"), re.MULTILINE):
        words = line.split("#")[0].removeprefix("$ ").split()
        assert words[1] in COMMANDS or words[1].startswith("-"), line
        if words[1] == "serve":
            assert {word for word in words[2:] if word.startswith("--")} <= known, line


def test_the_tests_that_the_page_on_reliability_names_are_there() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \|.*\| (.*) \|$", text, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 81))
    assert not [number for number, cell in rows if "::" not in cell and f"**{number}**" not in text], "no test, no word"
    for file, name in re.findall(r"`(\S+\.py)::(\w+)`", text):
        tests = (ROOT / "tests" / file).read_text(encoding="utf-8")
        assert re.search(rf"^(?:async )?def {name}\(", tests, re.MULTILINE), f"{file}::{name}"


COMMON = {"--config", "--json", "--verbose", "--quiet", "--help"}


def test_options_have_words() -> None:
    def wrong(option: Option) -> bool:
        return not option.about or option.about[0].isupper() or option.about.endswith(".")

    assert not [option.flag for option in options() if wrong(option)]
