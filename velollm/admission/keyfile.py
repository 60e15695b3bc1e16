"""The file of API keys: TOML, readable by its owner only, hashes in place of keys, read anew when it changes.

[[keys]]
name = "alice"
hash = "sha256:SALT:DIGEST"      # or key = "…" in plain text, which is hashed when the file is first read
priority = "normal"
rpm = 60
"""

from __future__ import annotations

import json
import logging
import os
import re
import stat
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any, TypeAlias

from velollm.admission.keys import CLASSES, LONGEST, SHORTEST, Key, KeyRing, hash_key, new_key
from velollm.errors import ConfigError

__all__ = ["KeyFile", "add_key", "list_keys", "read_keys", "revoke_key"]

logger = logging.getLogger("velollm.keys")

Table: TypeAlias = dict[str, Any]

HASH = re.compile(r"sha256:([0-9a-f]{32}):([0-9a-f]{64})")
PLAIN = re.compile(r"""^(\s*)key(\s*=\s*)(["'])(.*)\3(\s*(?:#.*)?)$""")
FIELDS = ("name", "key", "hash", "priority", "max_priority", "rpm", "tpm", "models", "admin")
CHECK_SECONDS = 1.0  # so often, at most, is looked whether the file has changed


class KeyFile:
    """The keys of a file, as they are now. A file that becomes unreadable or wrong leaves the keys as they were.

    Raises `ConfigError` when it cannot be read at the beginning.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = monotonic) -> None:
        self.path = path
        self._clock = clock
        self._ring = read_keys(path)
        self._seen = _stamp(path)
        self._checked = clock()

    def __len__(self) -> int:
        return len(self._ring)

    def find(self, text: str) -> Key | None:
        """The key, or None."""
        now = self._clock()
        if now - self._checked >= CHECK_SECONDS:
            self._checked = now
            self._reload()
        return self._ring.find(text)

    def _reload(self) -> None:
        stamp = _stamp(self.path)
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            self._ring = read_keys(self.path)
        except ConfigError as error:
            logger.error("%s; the keys stay as they were", error.message)
            return
        self._seen = _stamp(self.path)  # reading may have hashed plain keys
        logger.info("%s was read anew: %d keys", self.path, len(self._ring))


def read_keys(path: Path) -> KeyRing:
    """The keys in a TOML file: `[[keys]]` with `name`, and `hash` or `key`. Plain keys are replaced by their hashes.

    Raises `ConfigError`.
    """
    text, items = _tables(path)
    if not items:
        raise ConfigError(f"the keys file {path} must hold [[keys]] tables, and nothing else")
    keys = [_key(item, number, path) for number, item in enumerate(items, 1)]
    names = [key.name for key in keys]
    if len(set(names)) < len(names):
        raise ConfigError(f"{path}: two keys have the name {max(names, key=names.count)!r}")
    if any("key" in item for item in items):
        _hide(path, text)
        keys = list_keys(path)  # with the salts that stand in the file from now on: what they part outlives a restart
    elif path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        logger.warning("%s can be read by other users: chmod 600 %s", path, path)
    return KeyRing(keys)


def add_key(path: Path, name: str, **allowed: Any) -> str:
    """Add a key with what it allows (fields of `Key`) to the file, which is made if need be; returns the key itself.

    Raises `ConfigError` when the name is taken, or a value makes no sense.
    """
    text, items = _tables(path) if path.exists() else ("", [])
    if any(item.get("name") == name for item in items):
        raise ConfigError(f"{path} has a key called {name!r} already: revoke it first, or take another name")
    secret = new_key()
    table: Table = {"name": name, "hash": hash_key(secret)}
    table.update({key: value for key, value in allowed.items() if value not in (None, (), [], False)})
    _key(table, len(items) + 1, path)
    block = "[[keys]]\n" + "".join(f"{key} = {_toml(value)}\n" for key, value in table.items())
    new = f"{text.rstrip()}\n\n{block}" if text.strip() else block
    tomllib.loads(new)
    _write(path, new)
    if any("key" in item for item in items):
        read_keys(path)
    return secret


def list_keys(path: Path) -> list[Key]:
    """The keys of the file, in order. Raises `ConfigError`."""
    return [_key(item, number, path) for number, item in enumerate(_tables(path)[1], 1)]


def revoke_key(path: Path, name: str) -> None:
    """Take a key out of the file. Raises `ConfigError` when there is none of this name."""
    text, items = _tables(path)
    if not any(item.get("name") == name for item in items):
        known = ", ".join(str(item.get("name")) for item in items) or "none"
        raise ConfigError(f"{path} has no key called {name!r}; it has: {known}")
    blocks = re.split(r"(?m)^(?=\s*\[\[\s*keys\s*\]\])", text)
    kept = [block for block in blocks if not _is_block_of(block, name)]
    new = "".join(kept)
    left = tomllib.loads(new).get("keys", [])
    if left != [item for item in items if item.get("name") != name]:
        raise ConfigError(f"{path} is not written as `velollm keys` writes it: take {name!r} out by hand")
    _write(path, new)


# ---- inside ----------------------------------------------------------------------------------------------------------


def _tables(path: Path) -> tuple[str, list[Table]]:
    """The text of the file and its tables, which may be none."""
    try:
        text = path.read_text(encoding="utf-8")
        raw = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"the keys file {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        raise ConfigError(f"the keys file {path} is not valid TOML") from None  # its words could show a key
    items = raw.get("keys", [])
    if raw.keys() - {"keys"} or not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ConfigError(f"the keys file {path} must hold [[keys]] tables, and nothing else")
    return text, items


def _key(item: Table, number: int, path: Path) -> Key:
    where = f"{path}, [[keys]] number {number}"
    unknown = sorted(item.keys() - set(FIELDS))
    if unknown:
        raise ConfigError(f"{where}: {unknown[0]} is unknown; known are: {', '.join(FIELDS)}")
    name, plain, hashed = item.get("name"), item.get("key"), item.get("hash")
    if not isinstance(name, str) or not name.strip() or not name.isprintable() or len(name) > 100:
        raise ConfigError(f"{where}: name is missing, or no name")
    if (plain is None) == (hashed is None):
        raise ConfigError(f"{where}: either key or hash is needed")
    if plain is not None:
        if not isinstance(plain, str) or not 1 <= len(plain.encode()) <= LONGEST:
            raise ConfigError(f"{where}: key must be a text of at most {LONGEST} bytes")
        if len(plain.encode()) < SHORTEST:
            logger.warning("the key %r has fewer than %d bytes, which can be guessed", name, SHORTEST)
        hashed = hash_key(plain)
    match = HASH.fullmatch(hashed) if isinstance(hashed, str) else None
    if match is None:
        raise ConfigError(f"{where}: hash must look like sha256:SALT:DIGEST, in hexadecimal digits")
    return Key(name=name, salt=bytes.fromhex(match[1]), digest=bytes.fromhex(match[2]), **_allowed(item, where))


def _allowed(item: Table, where: str) -> Table:
    """What a key allows, with every value checked."""
    found: Table = {}
    for field in ("priority", "max_priority"):
        value = item.get(field)
        if value is not None and value not in CLASSES:
            raise ConfigError(f"{where}: {field} must be one of {', '.join(CLASSES)}")
        found[field] = value
    for field in ("rpm", "tpm"):
        value = item.get(field)
        if value is not None and (type(value) is not int or not 0 < value < 1 << 53):
            raise ConfigError(f"{where}: {field} must be a whole number above 0")
        found[field] = value
    models = item.get("models", ())
    models = (models,) if isinstance(models, str) else models
    if not isinstance(models, list | tuple) or not all(isinstance(glob, str) and glob for glob in models):
        raise ConfigError(f'{where}: models must be names or patterns, like ["llama3*"]')
    found["models"] = tuple(models)
    admin = item.get("admin", False)
    if not isinstance(admin, bool):
        raise ConfigError(f"{where}: admin must be true or false")
    found["admin"] = admin
    return found


def _toml(value: Any) -> str:
    """A value of a key's field; JSON's strings are TOML's."""
    if isinstance(value, tuple):
        value = list(value)
    return json.dumps(value, ensure_ascii=False)


def _is_block_of(block: str, name: str) -> bool:
    try:
        items = tomllib.loads(block).get("keys", [])
    except tomllib.TOMLDecodeError:
        return False
    return len(items) == 1 and items[0].get("name") == name


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _write(path: Path, text: str) -> None:
    """Replace the file in one step, readable by its owner only."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        number, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(number, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise ConfigError(f"the keys file {path} cannot be written: {error.strerror}") from error


def _hide(path: Path, text: str) -> None:
    """Write the file anew with hashes in place of keys."""
    new = "\n".join(_hidden(line) for line in text.splitlines()) + "\n"
    if any("key" in item for item in tomllib.loads(new)["keys"]):
        logger.warning('%s holds keys in plain text in a way that cannot be rewritten; use one line: key = "..."', path)
        return
    try:
        _write(path, new)
    except ConfigError as error:
        logger.warning("%s holds keys in plain text: %s", path, error.message)


def _hidden(line: str) -> str:
    match = PLAIN.match(line)
    if match is None:
        return line
    value = tomllib.loads(line)["key"]
    return f'{match[1]}hash{match[2]}"{hash_key(value)}"'
