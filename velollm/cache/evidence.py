"""What shadow mode found out about a route: counts that add up, and its last disagreements with the words of both
questions. Bounded; on a medium, bytes with a checksum."""

from __future__ import annotations

import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from typing import Final

import attrs
import orjson

from velollm.cache.entry import Damaged
from velollm.cache.selection import Selection

__all__ = ["ROUTES", "Disagreement", "Evidence", "Ledger", "decode_evidence", "encode_evidence"]

ROUTES: Final = 256
_EXAMPLES: Final = 10
_LONGEST_ROUTE: Final = 200
_MAGIC: Final = b"VLE1"


@attrs.frozen(kw_only=True)
class Disagreement:
    """A question, the stored one whose answer it would have got, and how far the model's own agreed with that. Who
    asked is kept beside it, so that a purge finds it."""

    asked: str
    stored: str
    agreement: float
    tenant: bytes
    model: str
    tags: tuple[str, ...] = ()


@attrs.define(kw_only=True)
class Evidence:
    """Of `asked` questions that were looked at, `compared` would have been answered and `agreed` answered as the model
    did, which would have saved `tokens` and `seconds`; `skipped` ones came too fast to be looked at. Times are seconds
    of the epoch, 0 where nothing was asked."""

    asked: int = 0
    compared: int = 0
    agreed: int = 0
    tokens: int = 0
    seconds: float = 0.0
    skipped: int = 0
    first: float = 0.0
    last: float = 0.0
    disagreements: list[Disagreement] = attrs.field(factory=list)

    def add(self, other: Evidence) -> None:
        """Take in what was found later."""
        self.asked += other.asked
        self.compared += other.compared
        self.agreed += other.agreed
        self.tokens += other.tokens
        self.seconds += other.seconds
        self.skipped += other.skipped
        self.first = min(self.first or other.first, other.first or self.first)
        self.last = max(self.last, other.last)
        self.disagreements = [*self.disagreements, *other.disagreements][-_EXAMPLES:]

    def forget(self, selection: Selection) -> bool:
        """Drop the words that a purge covers; whether there were any."""
        kept = [one for one in self.disagreements if not selection.covers(one)]
        changed = len(kept) < len(self.disagreements)
        self.disagreements = kept
        return changed


class Ledger:
    """Evidence by route, the one that was heard of last kept longest. Safe to call from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._routes: OrderedDict[str, Evidence] = OrderedDict()

    def __len__(self) -> int:
        return len(self._routes)

    def add(self, route: str, evidence: Evidence) -> None:
        """Add to what is known of a route."""
        route = route[:_LONGEST_ROUTE]
        with self._lock:
            known = self._routes.pop(route, None) or Evidence()
            known.add(evidence)
            self._routes[route] = known
            while len(self._routes) > ROUTES:
                self._routes.popitem(last=False)

    def take(self) -> dict[str, Evidence]:
        """All of it, which is then gone from here."""
        with self._lock:
            taken, self._routes = dict(self._routes), OrderedDict()
            return taken

    def copies(self) -> Iterator[tuple[str, Evidence]]:
        """Every route with its evidence as it is now."""
        with self._lock:
            return iter([(route, attrs.evolve(evidence)) for route, evidence in self._routes.items()])

    def forget(self, selection: Selection) -> None:
        """Drop what a purge covers: the words, or all there is."""
        with self._lock:
            if selection.everything:
                self._routes.clear()
            for evidence in self._routes.values():
                evidence.forget(selection)


def encode_evidence(evidence: Evidence) -> bytes:
    """The bytes of a route's evidence."""
    said = [[d.asked, d.stored, d.agreement, d.tenant.hex(), d.model, d.tags] for d in evidence.disagreements]
    counts = attrs.astuple(evidence, recurse=False)[:-1]
    body = orjson.dumps([*counts, said])
    return _MAGIC + zlib.crc32(body).to_bytes(4, "big") + body


def decode_evidence(data: bytes) -> Evidence:
    """Read it back. Raises Damaged on anything but the bytes that `encode_evidence` made."""
    body = data[8:]
    if data[:4] != _MAGIC or zlib.crc32(body) != int.from_bytes(data[4:8], "big"):
        raise Damaged("not the evidence of this version, or damaged")
    try:
        asked, compared, agreed, tokens, seconds, skipped, first, last, said = orjson.loads(body)
        return Evidence(
            asked=int(asked), compared=int(compared), agreed=int(agreed), tokens=int(tokens), seconds=float(seconds),
            skipped=int(skipped), first=float(first), last=float(last),
            disagreements=[
                Disagreement(
                    asked=str(one), stored=str(other), agreement=float(score), tenant=bytes.fromhex(tenant),
                    model=str(model), tags=tuple(map(str, tags)),
                )
                for one, other, score, tenant, model, tags in said[-_EXAMPLES:]
            ],
        )  # fmt: skip
    except (ValueError, TypeError) as error:
        raise Damaged(f"evidence does not read: {error}") from error
