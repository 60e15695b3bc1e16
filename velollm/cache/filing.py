"""Where an answer goes: into a store as an entry; in memory, as it came, until a request comes that may be the same.

Most requests are made once: what their answers would be found by is worked out when somebody may be looking.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from velollm.cache.eligibility import Tier
from velollm.cache.entry import Entry, Form
from velollm.cache.request import Request, alias_of
from velollm.cache.stores import MemoryStore, Store
from velollm.cache.unread import Unread

__all__ = ["Filing", "tight"]

LONGEST_UNREAD = 4096  # bytes of a request as JSON: the keys of a longer one take less room


class Filing:
    """Puts answers into `store`. `modes` are those of the tiers; `ttl` is in seconds, and `jitter` the share of it by
    which entries may expire early; `floor` tells of a key how near a question must be for the semantic tier."""

    def __init__(
        self,
        store: Store,
        modes: Mapping[Tier, str],
        *,
        ttl: float,
        jitter: float,
        rng: random.Random,
        floor: Callable[[bytes], float],
    ) -> None:
        self._store = store
        self._memory = store if isinstance(store, MemoryStore) else None
        if self._memory is not None:
            self._memory.on_read = self._read
        self._modes = modes
        self._ttl, self._jitter, self._rng = ttl, jitter, rng
        self._floor = floor

    def keep(self, request: Request, answer: bytes, tags: tuple[str, ...], now: float) -> tuple[int, Entry | None]:
        """Keep an answer, which came `now`: the store's ticket (0 where it is too large), and the entry, if one had to
        be made of it."""
        ticket = self._lay_by(request, answer, tags, now)
        if ticket:
            return ticket, None
        entry = self._entry(request, answer, tags, now)
        return self._store.put(entry), entry

    def read_alike(self, request: Request) -> bool:
        """Have all in memory that might answer the request ready to be found; whether there can be anything."""
        memory = self._memory
        if memory is None:
            return True
        alike = memory.alike(request.sketch)
        for entry in alike or ():
            if entry.form is not None:
                alias, check = alias_of(entry.form.prompt, entry.form.scope, entry.alias_check)
                memory.name(entry, alias, check)
        return alike is not None

    def _lay_by(self, request: Request, answer: bytes, tags: tuple[str, ...], now: float) -> int:
        """Keep an answer in memory unread: a ticket, or 0 where an entry has to be made of it at once."""
        if self._memory is None or request.is_read or len(request.document) > LONGEST_UNREAD:
            return 0
        if self._is_semantic(request) and request.compared:
            return 0  # it is to be found by its meaning, too
        unread = Unread(
            sketch=request.sketch, document=tight(request.document), answer=answer, created=now,
            expires=now + self._seconds(request), tenant=request.tenant, variant=request.variant, model=request.model,
            eligibility=request.eligibility, controls=request.controls, tags=tags,
        )  # fmt: skip
        return self._memory.lay_by(unread)

    def _read(self, unread: Unread) -> None:
        self._store.put(self._entry(Request.of(unread), unread.answer, unread.tags, unread.created))

    def _entry(self, request: Request, answer: bytes, tags: tuple[str, ...], now: float) -> Entry:
        memory, form, later = self._memory, None, False
        semantic = self._is_semantic(request)
        aliased = semantic or ("canonical" in request.eligibility.tiers and self._modes["canonical"] != "off")
        if memory is not None:
            later = aliased and not semantic and not request.is_read and memory.may_wait(request.sketch)
            form = Form(
                sketch=request.sketch,
                scope=request.scope if later else b"",
                prompt=(request.prompt or "") if later else "",
            )
        return Entry(
            key=request.key, check=request.check, tenant=request.tenant, model=request.model, created=now,
            expires=now + self._seconds(request) * (1 - self._jitter * self._rng.random()), answer=answer, tags=tags,
            alias=request.alias if aliased and not later else b"",
            alias_check=request.scope_check if later else request.alias_check if aliased else b"", form=form,
            scope=request.scope if semantic else b"",
            prompt=request.prompt or "" if semantic else "", floor=self._floor(request.key) if semantic else 0.0,
        )  # fmt: skip

    def _is_semantic(self, request: Request) -> bool:
        return "semantic" in request.eligibility.tiers and self._modes["semantic"] != "off"

    def _seconds(self, request: Request) -> float:
        asked = request.controls.ttl
        return self._ttl if asked is None else min(self._ttl, asked)


def tight(written: bytes) -> bytes:
    """A copy of what orjson wrote, which leaves its buffer as large as it was: a page for the shortest answer."""
    return bytes(memoryview(written))
