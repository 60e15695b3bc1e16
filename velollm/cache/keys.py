"""Keys: one canonical JSON form of everything that can change the answer, and the digests taken from it.

The exact key covers the whole request. The scope covers all of it but the last user text, which the canonical and
semantic tiers compare in their own way. Neither contains a tenant's name: a keyed digest of it stands in front of both.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, lru_cache
from hashlib import blake2b
from typing import Any, Final

import attrs
import orjson
import xxhash

from velollm.cache.pleasantries import skip_pleasantries

__all__ = ["IGNORED_FIELDS", "RequestKeys", "Unhashable", "derive_keys", "document_of", "prompt_of", "tenant_digest"]

# Fields that route, bill or frame a request and never change its answer. What is not listed here is part of the key.
IGNORED_FIELDS: Final = frozenset(
    [
        "stream",
        "stream_options",
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "priority",
        "keep_alive",
        "request_id",
    ]
)
_DEFAULTS: Final[dict[str, object]] = {
    "n": 1,
    "logprobs": False,
    "top_logprobs": 0,
    "tools": [],
    "functions": [],
    "stop": [],
    "logit_bias": {},
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "response_format": {"type": "text"},
}
_VERSION: Final = b"velollm.cache/1"
_PLAIN: Final = frozenset({"role", "content"})


class Unhashable(ValueError):
    """A request that has no canonical JSON form: NaN apart, what JSON itself cannot carry, or nested past any use."""


@attrs.frozen(kw_only=True)
class RequestKeys:
    """`exact` is the XXH3-128 of `document` under the tenant; `check` is an independent digest, compared on every
    hit. `prompt` is the last user text, or None where it is not plain text; `head` and `earlier` are what the scope is
    made of: the request but its messages, and the turns before the prompt."""

    tenant: bytes
    exact: bytes
    document: bytes = attrs.field(repr=False)
    prompt: str | None
    head: bytes = attrs.field(default=b"", repr=False)
    earlier: list[Any] = attrs.field(factory=list, repr=False)

    @property
    def check(self) -> bytes:
        """BLAKE2b-128 of the request, keyed by the tenant: an XXH3 collision, found or forged, is not a hit."""
        return blake2b(self.document, digest_size=16, key=self.tenant).digest()

    @property
    def scope(self) -> bytes:
        """What must agree to the letter before the last user text is compared at all."""
        return xxhash.xxh3_128_digest(self.tenant + _VERSION + self._scope_document)

    @property
    def scope_check(self) -> bytes:
        """The independent digest of the scope."""
        return blake2b(self._scope_document, digest_size=16, key=self.tenant).digest()

    @cached_property
    def _scope_document(self) -> bytes:
        if self.prompt is None:
            return b""
        return self.head + orjson.dumps(skip_pleasantries(self.earlier), option=orjson.OPT_SORT_KEYS)


@lru_cache(maxsize=4096)
def tenant_digest(tenant: str | None) -> bytes:
    """A tenant by a digest, so that a store never holds an API key. None is the tenant of all who have none."""
    name = b"" if tenant is None else b"\x01" + tenant.encode("utf-8", "surrogatepass")
    return blake2b(name, digest_size=16, person=b"velollm-tenant").digest()


def derive_keys(tenant: bytes, body: Mapping[str, Any], variant: str = "") -> RequestKeys:
    """Derive the keys of an OpenAI chat request. `tenant` is a digest of the tenant, `variant` whatever else decides
    the answer and is not in the body: the digest of the resolved model, an index build. Raises Unhashable."""
    fields = {
        name: _number(value) if type(value) is float else value
        for name, value in body.items()
        if value is not None and name not in IGNORED_FIELDS
    }
    for name in fields.keys() & _DEFAULTS.keys():
        if fields[name] == _DEFAULTS[name]:
            del fields[name]
    if "tools" not in fields and fields.get("tool_choice") in ("auto", "none"):
        del fields["tool_choice"]
    listed = fields.pop("messages", ())
    messages = [_message(m) for m in listed] if isinstance(listed, list | tuple) else []
    head = document_of([variant, fields])
    document = head + document_of(messages)
    return RequestKeys(
        tenant=tenant, exact=xxhash.xxh3_128_digest(tenant + _VERSION + document), document=document,
        prompt=_prompt(messages[-1]) if messages else None, head=head, earlier=messages[:-1],
    )  # fmt: skip


def _number(value: float) -> float:
    """0.0 and 0 are one number; True is not."""
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


def _message(message: Any) -> Any:
    """A message without empty fields, a single text part as plain text."""
    if type(message) is dict and message.keys() == _PLAIN and type(message["content"]) is str and message["role"]:
        return message
    if not isinstance(message, Mapping):
        return message
    out = {k: v for k, v in message.items() if v is not None and (v != [] or k != "tool_calls")}
    content = out.get("content")
    if isinstance(content, list) and len(content) == 1:
        part = content[0]
        if isinstance(part, Mapping) and part.keys() == {"type", "text"} and part["type"] == "text":
            out["content"] = part["text"]
    return out


def document_of(value: object) -> bytes:
    """A value as JSON, in the one way that equal ones have. Raises Unhashable."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except (TypeError, ValueError, RecursionError) as error:
        raise Unhashable(str(error)) from error


def prompt_of(body: Mapping[str, Any]) -> str | None:
    """The last user text, if the last message is the user's, is plain text and carries nothing else."""
    messages = body.get("messages")
    return _prompt(_message(messages[-1])) if isinstance(messages, list | tuple) and messages else None


def _prompt(last: Any) -> str | None:
    if isinstance(last, dict) and last.get("role") == "user" and last.keys() == _PLAIN:
        content = last["content"]
        return content if isinstance(content, str) else None
    return None
