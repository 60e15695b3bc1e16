"""Where settings come from: flags, then `VELOLLM_*` variables, then a TOML file, then defaults.

Only the command line calls this; importing or mounting VeloLLM reads neither environment nor files.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from velollm.config.options import BACKEND, PREFIX, Option, options
from velollm.config.settings import Settings
from velollm.config.structure import Path as KeyPath
from velollm.config.structure import nearest, structure
from velollm.config.toml_lines import find_line
from velollm.errors import ConfigError

__all__ = ["config_folder", "find_config", "load_settings"]

FILE = "velollm.toml"
CONFIG_VARIABLE = "VELOLLM_CONFIG"
# Variables that look like settings and are none: of other commands, of the tests, and those that Kubernetes sets in
# every container beside a service called "velollm".
OTHERS = frozenset({CONFIG_VARIABLE, "VELOLLM_MODELS_DIR", "VELOLLM_EMBEDDER_DIR", "VELOLLM_API_KEY"})
OTHER_PREFIXES = ("VELOLLM_TEST_", "VELOLLM_SERVICE_", "VELOLLM_PORT_")


def load_settings(
    flags: Mapping[str, Any] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    config: Path | None = None,
    folder: Path | None = None,
) -> Settings:
    """All settings from all sources.

    `flags` are by `Option.dest`, None where not given; `config` is the file that --config names; `folder` is where
    `velollm.toml` is looked for. Raises `ConfigError`, which names the file and line, variable or flag of each fault.
    """
    environ = os.environ if environ is None else environ
    file = find_config(config, environ, folder or Path())
    text = _read(file) if file is not None else ""
    raw = _parse(text, file) if file is not None else {}
    sources = _Sources(file, text)
    if file is not None:
        _anchor(raw, file)
    _add_variables(raw, environ, sources)
    for option in options():
        value = (flags or {}).get(option.dest)
        if value is not None:
            sources.put(raw, option, value, option.flag)
    return structure(raw, sources.where)


def find_config(named: Path | None, environ: Mapping[str, str], folder: Path) -> Path | None:
    """The TOML file that counts: the one named, else `velollm.toml` here, else that of the user; None without one."""
    if named is None and environ.get(CONFIG_VARIABLE):
        named = Path(environ[CONFIG_VARIABLE])
    if named is not None:
        return named.expanduser()
    return next((path for path in (folder / FILE, config_folder(environ) / FILE) if path.is_file()), None)


def config_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """The user's folder of settings: `~/.config/velollm`, or below `XDG_CONFIG_HOME`."""
    base = environ.get("XDG_CONFIG_HOME", "")
    home = Path(base) if os.path.isabs(base) else Path(environ.get("HOME") or Path.home()) / ".config"
    return home / "velollm"


@attrs.define
class _Sources:
    """Remembers where each value was set, for messages."""

    file: Path | None
    text: str
    origins: dict[KeyPath, str] = attrs.field(factory=dict)

    def put(self, raw: dict[str, Any], option: Option, value: Any, origin: str) -> None:
        """Set an option in `raw`, in place of what a weaker source said."""
        if option is BACKEND:
            value = [_backend(item, origin) for item in _items(value)]
        table = raw.setdefault(option.section, {}) if option.section else raw
        if isinstance(table, dict):
            table[option.key] = value
            self.origins[option.path] = origin

    def where(self, path: KeyPath) -> str:
        """The place of a path: `--port`, `VELOLLM_PORT`, `velollm.toml, line 3, [server]`."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.origins:
                return self.origins[path[:length]]
        line = find_line(self.text, path)
        section = path[0] if len(path) > 1 else None
        parts = [str(self.file or "settings"), f"line {line}" if line else "", f"[{section}]" if section else ""]
        return ", ".join(part for part in parts if part)


def _add_variables(raw: dict[str, Any], environ: Mapping[str, str], sources: _Sources) -> None:
    known = {name: option for option in options() for name in option.variables}
    for name in known:
        value = environ.get(name)
        if value and not value.startswith("tcp://"):  # Kubernetes' VELOLLM_PORT
            sources.put(raw, known[name], value, name)
    keys = {item.get("api_key_env") for item in _tables(raw.get("backends"))}
    for name in sorted(environ):
        if not name.startswith(PREFIX) or name in known or name in OTHERS or name in keys:
            continue
        if not name.startswith(OTHER_PREFIXES):
            near = nearest(name.lower(), [option.lower() for option in known]).replace("velollm", "VELOLLM")
            raise ConfigError(f"{name}: there is no such setting{_upper(near)}")


def _upper(words: str) -> str:
    head, sep, name = words.partition("mean ")
    return head + sep + name.upper()


def _tables(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _items(value: Any) -> list[str]:
    return [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else list(value)


def _backend(text: str, origin: str) -> dict[str, str]:
    """`[NAME=]URL`; an equals sign further back belongs to the URL."""
    name, sep, url = text.partition("=")
    if not sep or not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
        return {"url": text}
    if not url:
        raise ConfigError(f"{origin}: {text!r} has no URL behind the name")
    return {"name": name, "url": url}


def _anchor(raw: dict[str, Any], file: Path) -> None:
    """Paths in a file are relative to where it lies."""
    server = raw.get("server")
    if isinstance(server, dict) and isinstance(server.get("keys"), str):
        server["keys"] = str(file.parent / Path(server["keys"]).expanduser())


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8 text: {error.reason} at byte {error.start}") from error


def _parse(text: str, file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: {error}") from error
