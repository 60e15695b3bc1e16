"""An answer in memory that nobody has asked for again: what its entry is made of when somebody may."""

from __future__ import annotations

import attrs

from velollm.cache.eligibility import Controls, Eligibility

__all__ = ["Unread"]

_COST = 512  # bytes, beside those that it holds


@attrs.define(kw_only=True, eq=False)
class Unread:
    """The `document` of a request, which is its body as JSON, and the `answer` to it; `sketch` is what a request must
    share that may be the same. Of everything that follows from it nothing is worked out, and it is a single object for
    the collector of garbage. Times are seconds of the epoch."""

    sketch: int
    document: bytes = attrs.field(repr=False)
    answer: bytes = attrs.field(repr=False)
    created: float
    expires: float
    tenant: bytes
    variant: str
    model: str
    eligibility: Eligibility
    controls: Controls
    tags: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes that it takes in memory."""
        return _COST + len(self.document) + len(self.answer)
