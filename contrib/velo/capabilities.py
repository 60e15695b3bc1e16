"""What the engine can do, in whichever process it runs."""

from __future__ import annotations

from velollm.backend import Capabilities

__all__ = ["CAPABILITIES"]

CAPABILITIES = Capabilities(json_schema=True, grammar=True, tools=True, tool_choice=True, tokenize=True, priority=True)
