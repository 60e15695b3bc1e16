"""Writes a tuning where a service reads it, keeps what was there, and puts it back. Whole files or nothing."""

from __future__ import annotations

import json
import os
import re
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import attrs

from velollm.errors import ConfigError
from velollm.tuning.places import Place
from velollm.tuning.rendering import toml_value
from velollm.tuning.values import Target, Tuning

__all__ = ["Applied", "apply", "last_applied", "undo"]

LARGEST = 1 << 20


@attrs.frozen(kw_only=True)
class Applied:
    """What was written where; `previous` is the text that was there, None for no file."""

    target: str
    path: Path
    written: str
    previous: str | None
    settings: dict[str, str]
    model: str = ""
    gain: float | None = None


def apply(tuning: Tuning, place: Place, text: str, state: Path) -> Applied:
    """Write `text` to the place, and remember in `state` what was there.

    A second tuning at the same place keeps the backup of the first: undoing goes back to before VeloLLM. Raises
    `ConfigError`, with what to do, when something cannot be written; then nothing has changed.
    """
    before = _read(place.path)
    if place.form == "toml":
        text = merge_toml(before or "", tuning, place.path)
    record = _record_path(state, tuning.target)
    old_record = _read(record)
    former = last_applied(state, tuning.target)
    if former is not None and former.path != place.path and _read(former.path) == former.written:
        raise ConfigError(
            f"{tuning.target} is tuned already, in {former.path}: "
            f"`velollm tune {tuning.target} --undo` takes that back first"
        )
    again = former is not None and former.path == place.path and former.written == before
    applied = Applied(
        target=tuning.target,
        path=place.path,
        written=text,
        previous=former.previous if again and former is not None else before,
        settings=tuning.values,
        model=tuning.model,
        gain=tuning.gain,
    )
    _write(record, json.dumps({**attrs.asdict(applied), "path": str(place.path)}, indent=1))
    try:
        _write(place.path, text)
    except ConfigError:
        if old_record is None:
            record.unlink(missing_ok=True)
        else:
            _write(record, old_record)
        raise
    return applied


def undo(target: Target, state: Path, *, force: bool = False) -> Applied:
    """Put back what was there before VeloLLM's tuning of `target`.

    Raises `ConfigError` when nothing was applied, or when the file was edited since (unless `force`).
    """
    applied = last_applied(state, target)
    if applied is None:
        raise ConfigError(f"nothing was applied to {target}: there is nothing to undo")
    now = _read(applied.path)
    if now != applied.written and now is not None and not force:
        raise ConfigError(
            f"{applied.path} was changed since VeloLLM wrote it; --force puts the old text back all the same"
        )
    if applied.previous is not None:
        _write(applied.path, applied.previous)
    elif now is not None:
        try:
            applied.path.unlink()
        except OSError as error:
            raise _refusal(applied.path, error) from error
        if applied.path.parent.name.endswith(".service.d") and not any(applied.path.parent.iterdir()):
            applied.path.parent.rmdir()
    _record_path(state, target).unlink(missing_ok=True)
    return applied


def last_applied(state: Path, target: str) -> Applied | None:
    """What VeloLLM wrote last for `target`; None when nothing, or when the record is damaged."""
    try:
        facts: dict[str, Any] = json.loads(_record_path(state, target).read_text(encoding="utf-8"))
        return Applied(**{**facts, "path": Path(facts["path"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def merge_toml(text: str, tuning: Tuning, path: Path) -> str:
    """`text` with the tuning's keys: lines that set them are replaced, others stay as they are.

    Raises `ConfigError` where the file is no TOML, or keeps the keys in a form that cannot be edited line by line.
    """
    for setting in tuning.settings:
        table, _, key = setting.name.rpartition(".")
        line = f"{key} = {toml_value(setting.value)}"
        head = re.search(rf"^[ \t]*\[{re.escape(table)}\][ \t]*(?:#.*)?$", text, re.MULTILINE)
        if head is None:
            text = f"{text.rstrip()}\n\n[{table}]\n{line}\n".lstrip()
            continue
        following = re.search(r"^[ \t]*\[", text[head.end() :], re.MULTILINE)
        end = head.end() + (following.start() if following else len(text) - head.end())
        body = text[head.end() : end]
        present = re.search(rf"^[ \t]*{re.escape(key)}[ \t]*=.*$", body, re.MULTILINE)
        body = body[: present.start()] + line + body[present.end() :] if present else f"\n{line}{body}"
        text = text[: head.end()] + body + text[end:]
    try:
        parsed = tomllib.loads(text)
        for setting in tuning.settings:
            table, _, key = setting.name.rpartition(".")
            if str(parsed[table][key]) != setting.value:
                raise ConfigError(f"{path}: {setting.name} is set in a form that cannot be edited here; set it by hand")
    except (tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} cannot be edited ({error}); nothing was changed") from error
    return text


def _record_path(state: Path, target: str) -> Path:
    return state / f"{target}.json"


def _read(path: Path) -> str | None:
    try:
        if path.stat().st_size > LARGEST:
            raise ConfigError(f"{path} is larger than any file of settings; nothing was changed")
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not text; nothing was changed") from error
    except OSError as error:
        raise _refusal(path, error) from error


def _write(path: Path, text: str) -> None:
    """Replace a file in one step, keeping its permissions."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, path.stat().st_mode & 0o7777 if path.exists() else 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
        raise _refusal(path, error) from error


def _refusal(path: Path, error: OSError) -> ConfigError:
    hint = "run it with sudo, or take the text without --apply and put it there yourself, or name a file with --to"
    reason = error.strerror or str(error)
    return ConfigError(f"{path} cannot be written: {reason}; nothing was changed. {hint[0].upper()}{hint[1:]}")
