"""What a purge means."""

from __future__ import annotations

from typing import Protocol

import attrs

__all__ = ["Selection"]


class _Marked(Protocol):
    @property
    def model(self) -> str: ...

    @property
    def tags(self) -> tuple[str, ...]: ...

    @property
    def tenant(self) -> bytes: ...


@attrs.frozen(kw_only=True)
class Selection:
    """What to purge: what meets every criterion given; with none given, all."""

    model: str | None = None
    tag: str | None = None
    tenant: bytes | None = None

    @property
    def everything(self) -> bool:
        """Whether no criterion is given."""
        return self.model is None and self.tag is None and self.tenant is None

    def covers(self, one: _Marked) -> bool:
        """Whether an entry, or words from one, meet every criterion."""
        return (
            (self.model is None or one.model == self.model)
            and (self.tag is None or self.tag in one.tags)
            and (self.tenant is None or one.tenant == self.tenant)
        )
