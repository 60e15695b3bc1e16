"""API keys and what each allows. Keys are known by their salted hashes only. No I/O."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from functools import lru_cache

import attrs

from velollm.control_headers import Priority

__all__ = ["CLASSES", "CURRENT", "LONGEST", "SHORTEST", "Key", "KeyRing", "Priority", "hash_key", "new_key"]


CLASSES: tuple[Priority, ...] = ("interactive", "normal", "batch")  # the most urgent first
SHORTEST = 16
LONGEST = 512


@attrs.frozen(kw_only=True)
class Key:
    """A key by its name: 16 bytes of salt, the SHA-256 of salt and key, and what it allows.

    `priority` is the class of requests that name none, `max_priority` the most urgent they may name (by default the
    same, or any). `rpm` and `tpm` are requests and tokens a minute; `models` are patterns of names (all, when empty).
    """

    name: str
    salt: bytes
    digest: bytes
    priority: Priority | None = None
    max_priority: Priority | None = None
    rpm: int | None = None
    tpm: int | None = None
    models: tuple[str, ...] = ()
    admin: bool = False

    def may_use(self, model: str) -> bool:
        """Whether a model of this name may be asked; Ollama's `:latest` may be left out."""
        if not self.models:
            return True
        return any(
            _pattern(glob).fullmatch(name) for glob in self.models for name in (model, model.removesuffix(":latest"))
        )

    @property
    def cache_salt(self) -> str:
        """What keeps this key's cached answers apart from all others'; nobody can tell it from the name."""
        return hmac.new(self.salt, b"velollm cache " + self.name.encode(), hashlib.sha256).hexdigest()


# The key of the request that is being answered, where a gate has found one: layers read it.
CURRENT: ContextVar[Key | None] = ContextVar("velollm_key", default=None)


class KeyRing:
    """Tells whose key a text is; every attempt takes the same work, whether it is right or wrong."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self._keys = list(keys)

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[Key]:
        return iter(self._keys)

    def find(self, text: str) -> Key | None:
        """The key, or None."""
        given = text.encode("utf-8", "surrogateescape")
        found: Key | None = None
        for key in self._keys:
            if hmac.compare_digest(hashlib.sha256(key.salt + given[:LONGEST]).digest(), key.digest):
                found = key
        return found if len(given) <= LONGEST else None


def new_key() -> str:
    """A key that nobody can guess: 256 bits."""
    return "velo-" + secrets.token_urlsafe(32)


def hash_key(text: str, salt: bytes | None = None) -> str:
    """What stands in the file for the key `text`: `sha256:SALT:DIGEST`."""
    salt = secrets.token_bytes(16) if salt is None else salt
    return f"sha256:{salt.hex()}:{hashlib.sha256(salt + text.encode()).hexdigest()}"


@lru_cache(maxsize=1024)
def _pattern(glob: str) -> re.Pattern[str]:
    """`*` and `?` stop at slashes: `small*` is no way to a backend called `small`. `**` and a lone `*` do not stop."""
    if glob == "*":
        return re.compile(r".*", re.DOTALL)
    words = {"**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*|\*|\?)", glob)
    return re.compile("".join(words.get(part) or re.escape(part) for part in parts), re.DOTALL)
