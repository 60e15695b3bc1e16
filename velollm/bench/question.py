"""What is asked: the values that a workload is made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import attrs

__all__ = ["JSON", "Question"]

JSON: TypeAlias = Mapping[str, Any]


@attrs.frozen(kw_only=True)
class Question:
    """One request, in OpenAI's words: `messages` of a chat (with `tools`), a bare `prompt`, or `inputs` to embed.

    `group` says which requests belong together (those that share a prefix), `max_tokens` how long the answer may be.
    """

    messages: tuple[JSON, ...] = ()
    tools: tuple[JSON, ...] = ()
    prompt: str | None = None
    inputs: tuple[str, ...] = ()
    max_tokens: int | None = None
    group: str = ""

    @property
    def text(self) -> str:
        """All that is asked, as one text."""
        if self.prompt is not None:
            return self.prompt
        if self.inputs:
            return "\n".join(self.inputs)
        return "\n".join(str(message.get("content") or "") for message in self.messages)
