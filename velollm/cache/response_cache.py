"""The response cache: three tiers over one store. Plain calls without I/O of their own; the store and the clock are
given.

    cache = ResponseCache(semantic="on")
    hit = cache.lookup("tenant", body)          # Hit | None
    cache.store("tenant", body, answer)

A proxy calls `prepare` once, keys its single-flight on `request.key`, asks `find`, and later `keep` and
`record_shadow`."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from time import thread_time
from typing import Any, Literal

import attrs
import orjson

from velollm.cache.eligibility import NO_CONTROLS, Controls, Tier, why_not_stored
from velollm.cache.entry import Entry
from velollm.cache.evidence import Disagreement, Evidence
from velollm.cache.explanation import Explanation, TierVerdict
from velollm.cache.filing import Filing, tight
from velollm.cache.guards import Question
from velollm.cache.keys import tenant_digest
from velollm.cache.request import Request, prepare, read_prompt
from velollm.cache.results import CacheStats, Found, Hit, Receipt
from velollm.cache.semantic import Embedder, Match, SemanticIndex
from velollm.cache.shadow import AGREES, Allowance, RouteReport, agreement, answer_text, answer_tokens, report
from velollm.cache.soon import Soon
from velollm.cache.stores import Selection, Store, open_store
from velollm.config.units import parse_size

__all__ = ["Mode", "ResponseCache"]

Mode = Literal["on", "shadow", "off"]
_MODES = ("on", "shadow", "off")
_INDEX_ROOM = 10_000  # bytes of a prompt of usual length
_QUOTED = 200  # letters of a question in the report
_log = logging.getLogger("velollm.cache")


class ResponseCache:
    """See the module's docstring. Safe to call from any thread.

    `exact`, `canonical`, `semantic`: the mode of each tier. `size`: bytes, or text such as `64MiB`. `ttl`: seconds.
    `store`: `memory`, `sqlite:PATH`, `redis://...`, or a Store. `embedder`: text to vector, for retrieval only.
    `max_temperature`: the semantic tier is closed above it; a request without a temperature counts as eligible.
    `shared`: let tenants see each other's entries. `jitter`: the share of the ttl by which entries may expire early, so
    that they do not all expire at once. `max_indexed`: prompts in the semantic index (default: what fits into `size`).
    """

    def __init__(
        self,
        *,
        semantic: Mode = "shadow",
        canonical: Mode = "on",
        exact: Mode = "on",
        size: int | str = "64MiB",
        ttl: float = 3600.0,
        store: str | Store = "memory",
        embedder: Embedder | None = None,
        clock: Callable[[], float] = time.time,
        rng: random.Random | None = None,
        max_temperature: float = 0.0,
        shared: bool = False,
        jitter: float = 0.1,
        max_indexed: int | None = None,
    ) -> None:
        self.modes: dict[Tier, Mode] = {"exact": exact, "canonical": canonical, "semantic": semantic}
        for tier, mode in self.modes.items():
            if mode not in _MODES:
                raise ValueError(f"{tier}: {mode!r} is not one of {', '.join(_MODES)}")
        if ttl <= 0 or not 0 <= jitter < 1:
            raise ValueError("ttl must be above 0, and jitter from 0 to below 1")
        self.ttl, self._shared, self._max_temperature, self._clock = ttl, shared, max_temperature, clock
        self._lock = threading.RLock()
        self.size = parse_size(size)
        self._index = SemanticIndex(max_indexed or max(16, self.size // _INDEX_ROOM))
        self.embedder = embedder
        self._allowance = Allowance(clock)
        self._counts: Counter[str] = Counter()
        self._store: Store = open_store(store, self.size, clock) if isinstance(store, str) else store
        self._store.on_forget = self._forget
        self.store_blocks = self._store.may_block
        self.store_persists = self._store.persistent
        self._filing = Filing(
            self._store, self.modes, ttl=ttl, jitter=jitter, rng=rng or random.Random(),  # noqa: S311  # no secret
            floor=self._index.floor,
        )  # fmt: skip
        self._soon = Soon()
        self._loader: threading.Thread | None = None
        self._closing = False
        if self._store.persistent and self.modes["semantic"] != "off":
            self._loader = threading.Thread(target=self._load, name="velollm-cache-index", daemon=True)
            self._loader.start()

    # -- the short way

    def lookup(self, tenant: str | None, body: Mapping[str, Any], controls: Controls | None = None) -> Hit | None:
        """The stored answer to a request, or None."""
        return self.find(self.prepare(tenant, body, controls)).hit

    def store(
        self, tenant: str | None, body: Mapping[str, Any], answer: Any, controls: Controls | None = None
    ) -> Receipt:
        """Keep the answer to a request, if both are eligible."""
        return self.keep(self.prepare(tenant, body, controls), answer)

    # -- the way of a proxy

    def prepare(
        self, tenant: str | None, body: Mapping[str, Any], controls: Controls | None = None, *, variant: str = ""
    ) -> Request:
        """Assess a request and derive its keys; `request.key` is what identical requests share. `variant` is what
        decides the answer but is not in the body, such as the digest of the resolved model."""
        owner = None if self._shared else tenant
        return prepare(owner, body, controls or NO_CONTROLS, variant, self._max_temperature)

    def find(self, request: Request, modes: Mapping[Tier, Mode] | None = None) -> Found:
        """Search the tiers that are open to the request, the surest first. `modes` overrides the cache's for one
        route."""
        found = self.find_sure(request, modes)
        if found is None:
            return self.find_semantic(request, modes)
        if found.compare and found.shadow is None:
            return attrs.evolve(found, shadow=self._would_be(request))
        return found

    def find_sure(self, request: Request, modes: Mapping[Tier, Mode] | None = None) -> Found | None:
        """The first half of `find`, which needs no embedder: None if the semantic tier may answer."""
        if self._soon.concerns(request):
            self._soon.settle()
        counts = self._counts
        counts["lookups"] += 1
        if not request.eligibility.read:
            counts[f"bypass {request.eligibility.reason}"] += 1
            return Found(reason=request.eligibility.reason)
        shadow: Hit | None = None
        compare = False
        unheard = not self._filing.read_alike(request)
        for tier in request.eligibility.tiers:
            mode = (modes or self.modes).get(tier, "off")
            if mode == "off":
                continue
            if tier == "semantic":
                if mode == "on":
                    return None
                compare = True
                continue
            if unheard:
                continue
            hit = self._search(tier, request)
            if hit is not None and mode == "on":
                counts[f"hit {tier}"] += 1
                return Found(hit=hit)
            shadow = shadow or hit
        counts["shadow" if shadow else "misses"] += 1
        return Found(shadow=shadow, compare=compare and shadow is None)

    def find_semantic(self, request: Request, modes: Mapping[Tier, Mode] | None = None) -> Found:
        """The second half: the semantic tier, where it may answer."""
        hit = self._search("semantic", request)
        answers = hit is not None and (modes or self.modes)["semantic"] == "on"
        self._counts["hit semantic" if answers else "shadow" if hit else "misses"] += 1
        return Found(hit=hit) if answers else Found(shadow=hit)

    def _would_be(self, request: Request) -> Hit | None:
        """What the semantic tier would say to a request that was counted as a miss."""
        hit = self._search("semantic", request)
        if hit is not None:
            self._counts["misses"] -= 1
            self._counts["shadow"] += 1
        return hit

    @property
    def may_compare(self) -> bool:
        """Whether shadow mode has any of its time left."""
        return self._allowance.left()

    def compare(
        self, request: Request, answer: Any, *, route: str = "", seconds: float = 0.0, tags: tuple[str, ...] = ()
    ) -> Hit | None:
        """Shadow mode, when the model has answered: what the semantic tier would have said, entered into the report.

        It may take a twentieth of a core; what comes beyond that is not compared, and not indexed either."""
        if not self._allowance.left():
            request.compared = False
            self._counts["not compared"] += 1
            self._note(route, Evidence(skipped=1))
            return None
        began = thread_time()
        would = self._would_be(request)
        self.record_shadow(request, would, answer, route=route, seconds=seconds, tags=tags)
        self._allowance.spend(thread_time() - began)
        return would

    def keep(self, request: Request, answer: Any, *, tags: tuple[str, ...] = (), now: float | None = None) -> Receipt:
        """Keep an answer, which came `now`. Nothing is kept that is incomplete, an error, or barred by the request."""
        reason = why_not_stored(answer) if request.eligibility.write else request.eligibility.reason
        data = b""
        if reason is None:
            try:
                data = tight(orjson.dumps(answer))
            except TypeError as error:
                reason = "not-json"
                _log.debug("answer not stored: %s", error)
        if reason is not None:
            self._counts[f"refused {reason}"] += 1
            return Receipt(stored=False, reason=reason)
        now = self._clock() if now is None else now
        ticket, entry = self._filing.keep(request, data, tags, now)
        if not ticket:
            self._counts["refused oversized"] += 1
            return Receipt(stored=False, reason="oversized")
        self._counts["stores"] += 1
        if entry is not None and entry.scope and request.compared and request.question is not None:
            began = thread_time()
            self._enter(entry, request.question, self._vector(request))
            self._allowance.spend(thread_time() - began)
        return Receipt(stored=True, ticket=ticket, store=self._store)

    def keep_soon(self, request: Request, keep: Callable[[], None]) -> bool:
        """Have `keep` called by `settle`, or when it matters. Returns whether nothing waited: `settle` is then due."""
        return self._soon.add(request, keep)

    def settle(self, most: int | None = None) -> bool:
        """Keep what is to be kept soon, or the first `most` of it; whether more of it waits."""
        return self._soon.settle(most)

    def now(self) -> float:
        """The time by the cache's clock, in seconds of the epoch."""
        return self._clock()

    def record_shadow(
        self,
        request: Request,
        would: Hit | None,
        answer: Any,
        *,
        route: str = "",
        seconds: float = 0.0,
        tags: tuple[str, ...] = (),
    ) -> bool:
        """Compare a would-be hit with the model's real answer (None: there was no would-be hit). An entry whose answer
        disagreed is from then on not used for prompts as far away. Returns whether they agree."""
        found = Evidence(asked=1)
        if would is not None:
            score = agreement(answer_text(would.answer), answer_text(answer))
            found.compared = 1
            if score >= AGREES:
                found.agreed, found.tokens, found.seconds = 1, answer_tokens(answer), max(0.0, seconds)
            else:
                self._distrust(would)
                quoted = Disagreement(
                    asked=(request.prompt or "")[:_QUOTED], stored=would.prompt[:_QUOTED], agreement=round(score, 3),
                    tenant=request.tenant, model=request.model, tags=tags,
                )  # fmt: skip
                found.disagreements.append(quoted)
        self._note(route, found)
        return found.agreed == 1

    def _note(self, route: str, found: Evidence) -> None:
        found.first = found.last = self._clock()
        self._store.add_evidence(route.encode("utf-8", "replace").decode(), found)

    def report(self) -> list[RouteReport]:
        """The evidence of shadow mode by route, as far back as the store has it."""
        self.settle()
        return report(self._store.evidence())

    # -- control

    def explain(self, tenant: str | None, body: Mapping[str, Any], controls: Controls | None = None) -> Explanation:
        """What each tier says to a request, and which guard refused which neighbour. Counts nothing, changes
        nothing."""
        self.settle()
        request = self.prepare(tenant, body, controls)
        self._filing.read_alike(request)
        verdicts: list[TierVerdict] = []
        answered: Tier | None = None
        for tier, mode in self.modes.items():
            verdict = self._explain_tier(tier, mode, request)
            verdicts.append(verdict)
            if answered is None and verdict.outcome == "hit":
                answered = tier
        return Explanation(
            key=request.key.hex(), reason=request.eligibility.reason, tier=answered, verdicts=tuple(verdicts),
            canonical=request.canonical.clauses if request.canonical else "",
            intents=tuple(sorted(request.question.form.intents)) if request.question else (),
            body=request.question.form.body if request.question else (),
        )  # fmt: skip

    def purge(self, *, model: str | None = None, tag: str | None = None, tenant: str | None = None) -> int:
        """Drop the entries that meet every criterion given; with none, all. Returns how many."""
        self.settle()
        owner = None if tenant is None else tenant_digest(tenant)
        return self._store.purge(Selection(model=model, tag=tag, tenant=owner))

    @property
    def store_degraded(self) -> bool:
        """Whether what the answers are kept in does not work now, so that they are kept in memory alone."""
        return self._store.degraded

    @property
    def store_failures(self) -> int:
        """How often it failed."""
        return self._store.failures

    def stats(self) -> CacheStats:
        """The counters."""
        self.settle()
        counts = dict(self._counts)
        return CacheStats(
            lookups=counts.get("lookups", 0), hits=_by_word(counts, "hit "), shadow_hits=counts.get("shadow", 0),
            not_compared=counts.get("not compared", 0),
            misses=counts.get("misses", 0), bypasses=_by_word(counts, "bypass "), stores=counts.get("stores", 0),
            refused=_by_word(counts, "refused "), indexed=len(self._index), store=attrs.asdict(self._store.stats()),
        )  # fmt: skip

    def entries(self) -> list[Entry]:
        """Every live entry, for an export."""
        self.settle()
        return list(self._store.entries())

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until the store has written all that was kept so far, and the index has been rebuilt."""
        self.settle()
        if self._loader is not None:
            self._loader.join(timeout)
        return self._store.flush(timeout)

    def close(self) -> None:
        """Write what is left and close the store."""
        self.settle()
        self._closing = True
        if self._loader is not None:
            self._loader.join(5.0)
        self._store.close()

    def __enter__(self) -> ResponseCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- within

    def _search(self, tier: Tier, request: Request) -> Hit | None:
        if tier == "exact":
            entry = self._store.get(request.key)
            return self._hit(entry, request, tier) if entry is not None and entry.check == request.check else None
        if tier == "canonical":
            entry = self._store.find(request.alias)
            return (
                self._hit(entry, request, tier)
                if entry is not None and entry.alias_check == request.alias_check
                else None
            )
        question = request.question
        if question is None:
            return None
        with self._lock:
            match = self._index.search(request.scope, question)
        if match is None and (vector := self._vector(request)) is not None:
            with self._lock:
                match = self._index.search(request.scope, question, vector)
        return None if match is None else self._semantic_hit(match, request)

    def _semantic_hit(self, match: Match, request: Request) -> Hit | None:
        entry = self._store.get(match.key)
        if entry is None:
            self._forget(match.key)
            return None
        if entry.prompt != match.prompt or entry.alias_check[:16] != request.alias_check[:16]:
            return None
        return self._hit(entry, request, "semantic", match.similarity)

    def _hit(self, entry: Entry, request: Request, tier: Tier, near: float = 1.0) -> Hit | None:
        now = self._clock()
        age = max(0.0, now - entry.created)
        limit = request.controls.max_age
        if entry.tenant != request.tenant or entry.expires <= now or (limit is not None and age > limit):
            return None
        try:
            answer = orjson.loads(entry.answer)
        except orjson.JSONDecodeError:
            answer = None
        if why_not_stored(answer) is not None:  # a shared store was written by somebody else
            self._counts["poisoned"] += 1
            return None
        return Hit(answer=answer, tier=tier, age=age, similarity=near, key=entry.key, prompt=entry.prompt)

    def _enter(self, entry: Entry, question: Question, vector: Sequence[float] | None) -> None:
        with self._lock:
            self._index.add(entry.key, entry.scope, entry.prompt, question, vector)
            if entry.floor:
                self._index.distrust(entry.key, entry.floor)

    def embeds(self, request: Request) -> bool:
        """Whether the embedder is asked about a request, which takes time."""
        return self.embedder is not None and request.question is not None and request.question.odd

    def _vector(self, request: Request) -> Sequence[float] | None:
        """The embedder's vector of a request, asked for once."""
        if self.embedder is not None and request.question is not None and request.vector is None:
            request.vector = self._embed(request.question) or ()
        return request.vector or None

    def _embed(self, question: Question) -> Sequence[float] | None:
        """The embedder's vector, or None: an embedder that fails costs no more than what it would have found. It is
        asked for questions with a word that no dictionary knows; those without are found by their words."""
        if self.embedder is None or not question.odd:
            return None
        try:
            return self.embedder(question.canonical.clauses)
        except Exception as error:  # an embedder may be anybody's
            level = logging.DEBUG if self._counts["embedder failures"] else logging.WARNING
            self._counts["embedder failures"] += 1
            _log.log(level, "the embedder failed (%r): trigrams retrieve instead", error)
            return None

    def _distrust(self, would: Hit) -> None:
        if would.tier != "semantic":
            return
        with self._lock:
            self._index.distrust(would.key, would.similarity)
        entry = self._store.get(would.key)
        if entry is not None and entry.floor < would.similarity:
            self._store.put(entry := attrs.evolve(entry, floor=would.similarity))
            self._enter_again(entry)

    def _forget(self, key: bytes) -> None:
        with self._lock:
            self._index.discard(key)

    def _load(self) -> None:
        """Rebuild the index from the store; runs in its own thread and never stops the cache from answering."""
        for entry in self._store.entries():
            if self._closing:
                return
            self._enter_again(entry)

    def _enter_again(self, entry: Entry) -> None:
        question = read_prompt(entry.prompt) if entry.scope else None
        if question is not None:
            self._enter(entry, question, self._embed(question))

    def _explain_tier(self, tier: Tier, mode: Mode, request: Request) -> TierVerdict:
        if mode == "off" or tier not in request.eligibility.tiers or not request.eligibility.read:
            why = "off" if mode == "off" else request.eligibility.reason
            return TierVerdict(tier=tier, outcome="closed", reason=why)
        hit = self._search(tier, request)
        if hit is not None:
            outcome: Literal["hit", "shadow"] = "hit" if mode == "on" else "shadow"
            return TierVerdict(tier=tier, outcome=outcome, prompt=hit.prompt, similarity=hit.similarity)
        if tier != "semantic" or request.question is None:
            return TierVerdict(tier=tier, outcome="miss")
        vector = self._vector(request)
        with self._lock:
            near = self._index.nearest(request.scope, request.question, vector)
        refused = tuple((m.prompt, m.similarity, str(m.refusal)) for m in near)
        return TierVerdict(tier=tier, outcome="miss", reason=refused[0][2] if refused else "", refused=refused)


def _by_word(counts: Mapping[str, int], prefix: str) -> dict[str, int]:
    return {name.removeprefix(prefix): n for name, n in counts.items() if name.startswith(prefix)}
