"""What a repair gives back: the calls, the text beside them, what was wrong, and what was mended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import orjson
from attrs import define, field, frozen

__all__ = ["Call", "FixError", "FixResult"]


@define(slots=True)
class Call:
    """A call that validates. Unpacks as `name, arguments = call`."""

    name: str
    arguments: dict[str, Any]
    id: str | None = field(default=None, kw_only=True, eq=False)

    def __iter__(self) -> Iterator[Any]:
        return iter((self.name, self.arguments))

    def __getitem__(self, index: int | str) -> Any:
        if isinstance(index, str):
            return {"name": self.name, "arguments": self.arguments, "id": self.id}[index]
        return (self.name, self.arguments)[index]

    def __len__(self) -> int:
        return 2

    @property
    def arguments_json(self) -> str:
        """The arguments as the JSON text that OpenAI's dialect carries."""
        try:
            return orjson.dumps(self.arguments).decode()
        except TypeError:  # an integer beyond 64 bits
            import json

            return json.dumps(self.arguments, ensure_ascii=False)


@frozen(kw_only=True)
class FixError:
    """Why something that looked like a call is none. `kind` is a stable word, `message` is for people."""

    kind: str
    message: str
    name: str | None = None


@define(slots=True)
class FixResult:
    """`content` is None where nothing but calls was said; without calls it is the text, untouched."""

    calls: list[Call] = field(factory=list)
    content: str | None = None
    errors: list[FixError] = field(factory=list)
    repairs: Counter[str] = field(factory=Counter)
    reasoning: str | None = None

    @property
    def repaired(self) -> int:
        """How many repairs were made, of all kinds."""
        return sum(self.repairs.values())

    @property
    def header(self) -> str | None:
        """The value of `x-velollm-tool-calls`; None when nothing was repaired."""
        if not self.repairs:
            return None
        return f"repaired={self.repaired}; kinds={','.join(sorted(self.repairs))}"
