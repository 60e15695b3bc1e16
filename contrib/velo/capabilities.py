"""What the engine is and can do, in whichever process it runs."""

from __future__ import annotations

from velollm.backend import Capabilities

__all__ = ["CAPABILITIES", "kind_of"]

CAPABILITIES = Capabilities(json_schema=True, grammar=True, tools=True, tool_choice=True, tokenize=True, priority=True)


def kind_of(device: int | None) -> str:
    """What it is called: as `--engine` says it, with a `device` and without."""
    return "velo" if device is None else "cuda"
