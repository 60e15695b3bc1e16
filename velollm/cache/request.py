"""A chat request as the cache sees it: its eligibility, and its keys, each derived when it is first asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from hashlib import blake2b
from typing import Any

import orjson
import xxhash

from velollm.cache.canonical import Canonical, canonicalize
from velollm.cache.eligibility import Controls, Eligibility, assess
from velollm.cache.guards import Question, read
from velollm.cache.keys import RequestKeys, Unhashable, derive_keys, document_of, prompt_of, tenant_digest
from velollm.cache.sketch import sketch
from velollm.cache.unread import Unread

__all__ = ["Request", "alias_of", "prepare", "read_prompt"]


class Request:
    """One request. `key` is what identical requests share: single-flight may key on it. `alias` and `scope` are only
    asked for where the canonical and semantic tiers are open. `vector` is the embedder's, once it was asked (empty
    where it had none); `compared` is False once shadow mode has passed the request over.
    """

    def __init__(
        self,
        tenant: bytes,
        model: str,
        document: bytes,
        body: Mapping[str, Any],
        variant: str,
        prompt: str | None,
        eligibility: Eligibility,
        controls: Controls,
    ) -> None:
        self.tenant = tenant
        self.model = model
        self.document = document  # the body, as JSON
        self.variant = variant
        self.prompt = prompt
        self.eligibility = eligibility
        self.controls = controls
        self.vector: Sequence[float] | None = None
        self.compared = True
        self._body = body
        self._sketch: int | None = None

    @classmethod
    def of(cls, unread: Unread) -> Request:
        """The request whose answer was kept unread."""
        body = orjson.loads(unread.document)
        return cls(
            unread.tenant, unread.model, unread.document, body, unread.variant, prompt_of(body), unread.eligibility,
            unread.controls,
        )  # fmt: skip

    @cached_property
    def _keys(self) -> RequestKeys:
        if not self.document:
            return RequestKeys(tenant=self.tenant, exact=b"", document=b"", prompt=None)
        return derive_keys(self.tenant, self._body, self.variant)

    @property
    def key(self) -> bytes:
        """What identical requests share."""
        return self._keys.exact

    @property
    def sketch(self) -> int:
        """A number that two requests share if one may have the answer of the other; it takes less time than a key.

        What other tenants have asked has other sketches, so that the time that is spent on it tells nobody anything."""
        if self._sketch is None:
            aliased = "canonical" in self.eligibility.tiers
            asked = sketch(self.prompt or "") if aliased else self.prompt
            self._sketch = hash((self.tenant, self.model, asked))
        return self._sketch

    @cached_property
    def check(self) -> bytes:
        """The digest that guards the exact key against collisions."""
        return self._keys.check

    @cached_property
    def canonical(self) -> Canonical | None:
        """The canonical form of the prompt, where that tier is open."""
        return canonicalize(self.prompt) if self.prompt is not None and "canonical" in self.eligibility.tiers else None

    @property
    def is_read(self) -> bool:
        """Whether the canonical form has been asked for already."""
        return "canonical" in self.__dict__

    @cached_property
    def scope(self) -> bytes:
        """The semantic scope."""
        return self._keys.scope

    @cached_property
    def scope_check(self) -> bytes:
        """The independent digest of the scope."""
        return self._keys.scope_check

    @cached_property
    def alias(self) -> bytes:
        """The canonical key."""
        return _alias(self.scope, self.canonical)

    @cached_property
    def alias_check(self) -> bytes:
        """Guards the alias: the independent digest of the scope, then that of the canonical text."""
        return self.scope_check + _text_check(self.canonical)

    @cached_property
    def question(self) -> Question | None:
        """The prompt, read for the semantic tier, where that tier is open."""
        return read(self.canonical) if "semantic" in self.eligibility.tiers and self.canonical is not None else None


def alias_of(prompt: str, scope: bytes, scope_check: bytes) -> tuple[bytes, bytes]:
    """Alias and its guard of a prompt that was kept in this scope."""
    canonical = canonicalize(prompt)
    return _alias(scope, canonical), scope_check + _text_check(canonical)


def _alias(scope: bytes, canonical: Canonical | None) -> bytes:
    return xxhash.xxh3_128_digest(b"alias" + scope + (b"" if canonical is None else canonical.signature))


def _text_check(canonical: Canonical | None) -> bytes:
    text = "" if canonical is None else f"{canonical.bare}\x00{canonical.payload}"
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def prepare(
    tenant: str | None, body: Mapping[str, Any], controls: Controls, variant: str, max_temperature: float
) -> Request:
    """Assess a request, which will be able to derive its keys. A body without canonical form is a bypass, never an
    error."""
    prompt, document, model = prompt_of(body), b"", body.get("model")
    try:
        document = document_of(body)
    except Unhashable:
        eligibility = Eligibility(read=False, write=False, tiers=(), reason="invalid")
    else:
        eligibility = assess(body, prompt, controls, max_temperature)
    name = model if isinstance(model, str) else ""
    return Request(tenant_digest(tenant), name, document, body, variant, prompt, eligibility, controls)


def read_prompt(prompt: str) -> Question | None:
    """Read a stored prompt for the semantic tier."""
    return read(canonicalize(prompt))
