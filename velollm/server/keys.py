"""The file of API keys. Keys are kept as salted hashes; one written in plain text is hashed when the file is read."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import attrs

from velollm.errors import ConfigError

__all__ = ["Key", "KeyRing", "hash_key", "read_keys"]

logger = logging.getLogger("velollm.keys")

HASH = re.compile(r"sha256:([0-9a-f]{32}):([0-9a-f]{64})")
PLAIN = re.compile(r"""^(\s*)key(\s*=\s*)(["'])(.*)\3(\s*(?:#.*)?)$""")
SHORTEST = 16
LONGEST = 512


@attrs.frozen(kw_only=True)
class Key:
    """A key by its name, the 16 bytes of salt, and the SHA-256 of salt and key."""

    name: str
    salt: bytes
    digest: bytes


class KeyRing:
    """Tells whose key a text is; every attempt takes the same work, whether it is right or wrong."""

    def __init__(self, keys: list[Key]) -> None:
        self._keys = keys

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, text: str) -> str | None:
        """The name of the key, or None."""
        given = text.encode("utf-8", "surrogateescape")
        found: str | None = None
        for key in self._keys:
            if hmac.compare_digest(hashlib.sha256(key.salt + given[:LONGEST]).digest(), key.digest):
                found = key.name
        return found if len(given) <= LONGEST else None


def hash_key(text: str, salt: bytes | None = None) -> str:
    """What stands in the file for the key `text`: `sha256:SALT:DIGEST`."""
    salt = secrets.token_bytes(16) if salt is None else salt
    return f"sha256:{salt.hex()}:{hashlib.sha256(salt + text.encode()).hexdigest()}"


def read_keys(path: Path) -> KeyRing:
    """The keys in a TOML file: `[[keys]]` with `name`, and `hash` or `key`. Plain keys are replaced by their hashes.

    Raises `ConfigError`.
    """
    try:
        text = path.read_text(encoding="utf-8")
        raw = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"the keys file {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        raise ConfigError(f"the keys file {path} is not valid TOML") from None  # its words could show a key
    items = raw.get("keys")
    if set(raw) != {"keys"} or not isinstance(items, list) or not items:
        raise ConfigError(f"the keys file {path} must hold [[keys]] tables, and nothing else")
    keys = [_key(item, number, path) for number, item in enumerate(items, 1)]
    names = [key.name for key in keys]
    if len(set(names)) < len(names):
        raise ConfigError(f"{path}: two keys have the name {max(names, key=names.count)!r}")
    if any("key" in item for item in items):
        _hide(path, text)
    elif path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        logger.warning("%s can be read by other users: chmod 600 %s", path, path)
    return KeyRing(keys)


def _key(item: Any, number: int, path: Path) -> Key:
    where = f"{path}, [[keys]] number {number}"
    if not isinstance(item, dict):
        raise ConfigError(f"{where} is no table")
    unknown = sorted(item.keys() - {"name", "key", "hash"})
    if unknown:
        raise ConfigError(f"{where}: {unknown[0]} is unknown; known are: name, key, hash")
    name, plain, hashed = item.get("name"), item.get("key"), item.get("hash")
    if not isinstance(name, str) or not name.strip():
        raise ConfigError(f"{where}: name is missing")
    if (plain is None) == (hashed is None):
        raise ConfigError(f"{where}: either key or hash is needed")
    if plain is not None:
        if not isinstance(plain, str) or not SHORTEST <= len(plain.encode()) <= LONGEST:
            raise ConfigError(f"{where}: key must be a text of {SHORTEST} to {LONGEST} bytes")
        hashed = hash_key(plain)
    match = HASH.fullmatch(hashed) if isinstance(hashed, str) else None
    if match is None:
        raise ConfigError(f"{where}: hash must look like sha256:SALT:DIGEST, in hexadecimal digits")
    return Key(name=name, salt=bytes.fromhex(match[1]), digest=bytes.fromhex(match[2]))


def _hide(path: Path, text: str) -> None:
    """Write the file anew with hashes in place of keys, readable by its owner only."""
    lines = [_hidden(line) for line in text.splitlines()]
    new = "\n".join(lines) + "\n"
    if any("key" in item for item in tomllib.loads(new)["keys"]):
        logger.warning('%s holds keys in plain text in a way that cannot be rewritten; use one line: key = "..."', path)
        return
    try:
        number, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(number, "w", encoding="utf-8") as file:
            file.write(new)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except OSError as error:
        logger.warning("%s holds keys in plain text, and cannot be rewritten: %s", path, error.strerror)


def _hidden(line: str) -> str:
    match = PLAIN.match(line)
    if match is None:
        return line
    value = tomllib.loads(line)["key"]
    return f'{match[1]}hash{match[2]}"{hash_key(value)}"'
