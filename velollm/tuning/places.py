"""Where a service reads its settings on this machine, and in which form."""

from __future__ import annotations

from pathlib import Path

import attrs

from velollm.hardware.host import Host
from velollm.tuning.values import Target

__all__ = ["Place", "find_place", "state_folder"]

UNITS = ("/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system", "/usr/local/lib/systemd/system")
NAMES: dict[str, tuple[str, ...]] = {
    "ollama": ("ollama",), "llama-server": ("llama-server", "llama.cpp", "llamacpp"), "velo": (),
}  # fmt: skip
SUFFIXES = {
    ".conf": "systemd", ".plist": "launchd", ".yml": "compose", ".yaml": "compose", ".ps1": "windows", ".toml": "toml",
}  # fmt: skip


@attrs.frozen(kw_only=True)
class Place:
    """A file, the form of its text, and what has to be done for the service to read it (`then`, a command)."""

    path: Path
    form: str
    then: str


def find_place(target: Target, host: Host, *, named: Path | None = None) -> Place:
    """The file that the service of `target` reads; `named` is one that the user chose, its suffix says the form."""
    home = Path(host.environ.get("HOME") or host.environ.get("USERPROFILE") or Path.home())
    if named is not None:
        form = SUFFIXES.get(named.suffix.lower(), "shell")
        return Place(path=named.expanduser(), form=form, then=_after(form, named, target))
    if target == "velo":
        path = _config_folder(host, home) / "velollm.toml"
        return Place(path=path, form="toml", then="velollm serve")
    if host.system == "darwin":
        path = home / "Library" / "LaunchAgents" / f"io.velollm.{target}.plist"
        return Place(path=path, form="launchd", then=_after("launchd", path, target))
    if host.system == "windows":
        path = _config_folder(host, home) / f"{target}.ps1"
        return Place(path=path, form="windows", then=_after("windows", path, target))
    unit = _unit(target, host, home)
    if unit is not None:
        return unit
    path = _config_folder(host, home) / f"{target}.env"
    return Place(path=path, form="shell", then=_after("shell", path, target))


def state_folder(host: Host) -> Path:
    """Where VeloLLM keeps what it has applied, and what was there before."""
    home = Path(host.environ.get("HOME") or host.environ.get("USERPROFILE") or Path.home())
    if host.system == "windows":
        return Path(host.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "velollm" / "tuning"
    if host.system == "darwin":
        return home / "Library" / "Application Support" / "velollm" / "tuning"
    return Path(host.environ.get("XDG_STATE_HOME") or home / ".local" / "state") / "velollm" / "tuning"


def _unit(target: Target, host: Host, home: Path) -> Place | None:
    if not host.names("/run/systemd/system") and not host.names("/run/systemd"):
        return None
    for name in NAMES[target]:
        for folder in UNITS:
            if f"{name}.service" in host.names(folder):
                path = Path("/etc/systemd/system") / f"{name}.service.d" / "velollm.conf"
                return Place(path=path, form="systemd", then=f"systemctl daemon-reload && systemctl restart {name}")
        own = home / ".config" / "systemd" / "user"
        if f"{name}.service" in host.names(str(own)):
            then = f"systemctl --user daemon-reload && systemctl --user restart {name}"
            return Place(path=own / f"{name}.service.d" / "velollm.conf", form="systemd", then=then)
    return None


def _config_folder(host: Host, home: Path) -> Path:
    if host.system == "windows":
        return Path(host.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "velollm"
    base = host.environ.get("XDG_CONFIG_HOME", "")
    return (Path(base) if base.startswith("/") else home / ".config") / "velollm"


def _after(form: str, path: Path, target: Target) -> str:
    start = {"ollama": "ollama serve", "llama-server": "llama-server", "velo": "velollm serve"}[target]
    return {
        "systemd": f"systemctl daemon-reload && systemctl restart {target}",
        "launchd": f"launchctl load -w {path}, then start {target} again",
        "compose": f"docker compose -f docker-compose.yml -f {path} up -d",
        "windows": f"powershell -File {path}",
        "toml": f"velollm serve --config {path}",
    }.get(form, f"set -a; . {path}; set +a; {start}" if target == "ollama" else f"sh {path}")
