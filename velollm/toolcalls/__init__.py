"""Tool calls, made whole: a library of its own.

    from velollm.toolcalls import fix
    result = fix(answer_text, tools)
    for name, arguments in result.calls:
        run(name, **arguments)
    print(result.content, result.errors)

Pure and sans-IO: text in, values out.
"""

from __future__ import annotations

from velollm.toolcalls.families import family_of
from velollm.toolcalls.fixer import fix
from velollm.toolcalls.result import Call, FixError, FixResult
from velollm.toolcalls.stream import StreamEvent, StreamFixer
from velollm.toolcalls.tools import InvalidToolError, check_tools

__all__ = [
    "Call",
    "FixError",
    "FixResult",
    "InvalidToolError",
    "StreamEvent",
    "StreamFixer",
    "check_tools",
    "family_of",
    "fix",
]
