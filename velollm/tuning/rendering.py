"""A tuning as text: for a shell, systemd, launchd, Docker Compose or Windows, every line with its reason."""

from __future__ import annotations

import json
import shlex
import textwrap
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from xml.sax.saxutils import escape

from velollm.tuning.values import Setting, Tuning

__all__ = ["FORMATS", "render"]

WIDTH = 100
SERVICES = MappingProxyType({"ollama": "ollama", "llama-server": "llama-server", "velo": "velollm"})
IMAGES = MappingProxyType({"ollama": "ollama/ollama", "llama-server": "ghcr.io/ggml-org/llama.cpp:server", "velo": ""})


def render(tuning: Tuning, form: str, *, variables: Mapping[str, str] = MappingProxyType({})) -> str:
    """The text of `form`. For llama-server `variables` names the LLAMA_ARG_ variable of each flag, where there is one.

    VeloLLM's own settings are TOML whatever `form` says.
    """
    if tuning.target == "velo":
        return _toml(tuning)
    return FORMATS[form](tuning, variables)


def _reasons(setting: Setting) -> Iterator[str]:
    yield from _wrapped(setting.why)
    if setting.memory:
        yield from _wrapped(f"memory: {setting.memory}")
    if setting.effect:
        yield from _wrapped(f"effect: {setting.effect}")


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(" ".join(text.split()), WIDTH)


def _commented(tuning: Tuning, line: Callable[[Setting], str], mark: str = "# ", indent: str = "") -> Iterator[str]:
    for setting in tuning.settings:
        for reason in _reasons(setting):
            yield f"{indent}{mark}{reason}"
        yield f"{indent}{line(setting)}"


def _shell(tuning: Tuning, variables: Mapping[str, str]) -> str:
    if tuning.target == "llama-server":
        notes = [
            f"# {line}"
            for one in tuning.settings
            for line in _wrapped("; ".join(part for part in (f"{one.name}: {one.why}", one.memory, one.effect) if part))
        ]
        words = ["llama-server", *(_flag(setting) for setting in tuning.settings)]
        return "\n".join([*notes, " \\\n  ".join(words)]) + "\n"
    return "\n".join(_commented(tuning, lambda one: f"export {one.name}={shlex.quote(one.value)}")) + "\n"


def _systemd(tuning: Tuning, variables: Mapping[str, str]) -> str:
    def line(setting: Setting) -> str:
        name = variables.get(setting.name, setting.name)
        value = setting.value or "1"
        for old, new in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%"), ("\n", " ")):
            value = value.replace(old, new)
        return (
            f'Environment="{name}={value}"' if not name.startswith("-") else f"# no variable does it: {_flag(setting)}"
        )

    service = SERVICES[tuning.target]
    head = [f"# /etc/systemd/system/{service}.service.d/velollm.conf", "[Service]"]
    return "\n".join([*head, *_commented(tuning, line)]) + "\n"


def _launchd(tuning: Tuning, variables: Mapping[str, str]) -> str:
    """An agent that hands the variables to everything the user starts, as Ollama's own documentation advises."""
    pairs = _pairs(tuning, variables)
    script = "; ".join(f"launchctl setenv {name} {shlex.quote(value)}" for name, value in pairs)
    reasons = "\n".join(f"  {line}".replace("--", "- -") for line in _commented(tuning, lambda one: one.name, mark=""))
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">\n'
        f"<!--\n{escape(reasons)}\n-->\n"
        '<plist version="1.0">\n<dict>\n'
        f"  <key>Label</key>\n  <string>io.velollm.{SERVICES[tuning.target]}</string>\n"
        "  <key>ProgramArguments</key>\n  <array>\n    <string>/bin/sh</string>\n    <string>-c</string>\n"
        f"    <string>{escape(script)}</string>\n  </array>\n"
        "  <key>RunAtLoad</key>\n  <true/>\n</dict>\n</plist>\n"
    )


def _compose(tuning: Tuning, variables: Mapping[str, str]) -> str:
    service = SERVICES[tuning.target]
    head = ["services:", f"  {service}:", f"    image: {IMAGES[tuning.target]}"]
    if tuning.target == "llama-server":
        lines = _commented(tuning, lambda one: f"- {json.dumps(_joined(one))}", indent="      ")
        return "\n".join([*head, "    command:", *lines]) + "\n"
    lines = _commented(tuning, lambda one: f"{one.name}: {json.dumps(one.value)}", indent="      ")
    return "\n".join([*head, "    environment:", *lines]) + "\n"


def _windows(tuning: Tuning, variables: Mapping[str, str]) -> str:
    def line(setting: Setting) -> str:
        name, value = variables.get(setting.name, setting.name), (setting.value or "1").replace("'", "''")
        if name.startswith("-"):
            return f"# no variable does it: {_flag(setting)}"
        return f"[Environment]::SetEnvironmentVariable('{name}', '{value}', 'User')"

    tail = ["# then quit Ollama in the task bar, and start it again"] if tuning.target == "ollama" else []
    return "\n".join([*_commented(tuning, line), *tail]) + "\n"


def _toml(tuning: Tuning) -> str:
    lines: list[str] = []
    section = ""
    for setting in tuning.settings:
        table, _, key = setting.name.rpartition(".")
        if table != section:
            lines.append(f"[{table}]")
            section = table
        lines += [f"# {reason}" for reason in _reasons(setting)]
        lines.append(f"{key} = {toml_value(setting.value)}")
    return "\n".join(lines) + "\n"


def toml_value(value: str) -> str:
    """A whole number or a boolean as it is, anything else as a string."""
    return value if value.isdigit() or value in ("true", "false") else json.dumps(value)


def _pairs(tuning: Tuning, variables: Mapping[str, str]) -> list[tuple[str, str]]:
    named = ((variables.get(one.name, one.name), one.value or "1") for one in tuning.settings)
    return [(name, value) for name, value in named if not name.startswith("-")]


def _flag(setting: Setting) -> str:
    return f"{setting.name} {shlex.quote(setting.value)}" if setting.value else setting.name


def _joined(setting: Setting) -> str:
    return f"{setting.name}={setting.value}" if setting.value else setting.name


FORMATS: Mapping[str, Callable[[Tuning, Mapping[str, str]], str]] = MappingProxyType(
    {"shell": _shell, "systemd": _systemd, "launchd": _launchd, "compose": _compose, "windows": _windows}
)
