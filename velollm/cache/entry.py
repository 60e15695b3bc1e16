"""One stored answer, and its bytes: a magic number, a CRC-32, a JSON header, the answer. Never pickle."""

from __future__ import annotations

import zlib
from typing import Final

import attrs
import orjson

__all__ = ["Damaged", "Entry", "Form", "decode", "encode"]

_MAGIC: Final = b"VLC2"
# What a prompt takes in the semantic index, as measured: its reading, its trigrams, its places in their lists.
_INDEXED_COST: Final = 2048
_INDEXED_COST_PER_LETTER: Final = 90
_ENTRY_COST: Final = 896


class Damaged(ValueError):
    """Bytes that are not an entry, or no longer the entry that was written."""


@attrs.frozen(kw_only=True)
class Form:
    """What an entry in memory is found by: the request's sketch, and, until a request with the same sketch comes, scope
    and prompt, of which its alias will be made."""

    sketch: int
    scope: bytes = b""
    prompt: str = attrs.field(default="", repr=False)


@attrs.frozen(kw_only=True)
class Entry:
    """`alias` is the canonical key and `scope` the semantic scope, both empty where the tier is closed to the request.
    `floor` is how near a question must be for the semantic tier to answer it. Times are seconds of the epoch.
    With a `form`, the alias may be yet to come; `alias_check` is then the digest of the scope alone."""

    key: bytes
    check: bytes
    tenant: bytes
    model: str
    created: float
    expires: float
    answer: bytes = attrs.field(repr=False)
    alias: bytes = b""
    alias_check: bytes = b""
    scope: bytes = b""
    prompt: str = attrs.field(default="", repr=False)
    tags: tuple[str, ...] = ()
    floor: float = 0.0
    form: Form | None = None

    @property
    def is_unnamed(self) -> bool:
        """Whether its alias is yet to come."""
        return self.form is not None and self.form.scope != b""

    @property
    def size(self) -> int:
        """Bytes that the entry costs in memory, its place in the semantic index included."""
        indexed = _INDEXED_COST + _INDEXED_COST_PER_LETTER * len(self.prompt) if self.scope else 0
        letters = len(self.prompt) + (len(self.form.prompt) if self.form is not None else 0)
        return _ENTRY_COST + len(self.answer) + 2 * letters + indexed


def encode(entry: Entry) -> bytes:
    """The bytes of an entry, for a store outside this process."""
    header = orjson.dumps(
        [
            entry.key.hex(), entry.check.hex(), entry.tenant.hex(), entry.model, entry.created, entry.expires,
            entry.alias.hex(), entry.alias_check.hex(), entry.scope.hex(), entry.prompt, entry.tags,
            entry.floor,
        ]
    )  # fmt: skip
    body = len(header).to_bytes(4, "big") + header + entry.answer
    return _MAGIC + zlib.crc32(body).to_bytes(4, "big") + body


def decode(data: bytes) -> Entry:
    """Read an entry back. Raises Damaged on anything but the bytes `encode` made."""
    if data[:4] != _MAGIC or len(data) < 12:
        raise Damaged("not an entry of this version")
    body = memoryview(data)[8:]
    if zlib.crc32(body) != int.from_bytes(data[4:8], "big"):
        raise Damaged("checksum does not match")
    end = 4 + int.from_bytes(body[:4], "big")
    try:
        values = orjson.loads(body[4:end])
        key, check, tenant, model, created, expires, alias, alias_check, scope, prompt, tags, floor = values
        return Entry(
            key=bytes.fromhex(key), check=bytes.fromhex(check), tenant=bytes.fromhex(tenant), model=str(model),
            created=float(created), expires=float(expires), answer=bytes(body[end:]), alias=bytes.fromhex(alias),
            alias_check=bytes.fromhex(alias_check), scope=bytes.fromhex(scope), prompt=str(prompt),
            tags=tuple(map(str, tags)), floor=float(floor),
        )  # fmt: skip
    except (ValueError, TypeError) as error:
        raise Damaged(f"header does not read: {error}") from error
