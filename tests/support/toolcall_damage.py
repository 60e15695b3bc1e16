"""Every kind of damage that models and engines do to a tool call; each leaves whole what was meant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from support.toolcall_formats import Calls

__all__ = ["AROUND", "CALLS", "INSIDE", "NONE_ADDED", "NOTE", "ROUTE"]

NOTE: dict[str, Any] = {"path": "a/b.md", "body": "Hi there, it's 5 o'clock", "mode": "new"}
ROUTE: dict[str, Any] = {"stops": ["x y", "z"], "options": {"avoid": ["tolls"], "limit_km": 40}}
CALLS: Calls = [("write_note", NOTE), ("plan_route", ROUTE)]

Damage = Callable[[str], str]


def swap(old: str, new: str) -> Damage:
    return lambda text: text.replace(old, new)


AROUND: dict[str, Damage] = {
    "end of turn": lambda text: text + "<|im_end|>",
    "end token, line": lambda text: text + "<|eot_id|>\n",
    "white space": lambda text: f"\n\n  {text}  \n\n",
    "leaked role": lambda text: "<|im_start|>assistant\n" + text,
    "announced": lambda text: "I'll do that now.\n\n" + text,
    "reasoning": lambda text: f"<think>\nHm, I could.\n</think>\n{text}",
    "reasoning without its opening": lambda text: f"Hm, I could.\n</think>\n{text}",
    "CRLF": lambda text: text.replace("\n", "\r\n"),
    "last character lost": lambda text: text[:-1],
    "said twice": lambda text: f"{text}\n{text}",
}
INSIDE: dict[str, Damage] = {
    "single quotes": swap('"path": "a/b.md"', "'path': 'a/b.md'"),
    "typographic quotes": swap('"path": "a/b.md"', "“path”: “a/b.md”"),
    "trailing comma": swap('"mode": "new"}', '"mode": "new",}'),
    "comment": swap('"mode": "new"}', '"mode": "new" // as asked\n}'),
    "comma lost": swap('"a/b.md", "body"', '"a/b.md" "body"'),
    "comma doubled": swap('"a/b.md", "body"', '"a/b.md",, "body"'),
    "semicolon": swap('"a/b.md", "body"', '"a/b.md"; "body"'),
    "key without quotes": swap('"body":', "body:"),
    "key without its closing quote": swap('"body":', '"body:'),
    "equals sign": swap('"body": ', '"body"= '),
    "integer in quotes": swap('"limit_km": 40', '"limit_km": "40"'),
    "integer with a point": swap('limit_km": 40', 'limit_km": 40.0'),
    "object as text": swap(
        '"options": {"avoid": ["tolls"], "limit_km": 40}',
        '"options": "{\\"avoid\\": [\\"tolls\\"], \\"limit_km\\": 40}"',
    ),
    "item instead of list": swap('["tolls"]', '"tolls"'),
    "closing brace lost": swap('"limit_km": 40}}', '"limit_km": 40}'),
    "closing brace of the wrong kind": swap('"limit_km": 40}}', '"limit_km": 40}]'),
    "closing brace too many": swap('"mode": "new"}', '"mode": "new"}}'),
    "None for null": swap('"limit_km": 40', '"limit_km": 40, "depart": None'),
    "spread over lines": swap(', "', ',\n   "'),
    "another key": swap('"mode": "new"}', '"mode": "new", "": "x"}'),
    "case of a key": lambda text: (
        text.replace('"body"', '"Body"').replace("=body>", "=Body>").replace(">body<", ">Body<")
    ),
    "case of an enum": lambda text: (
        text.replace('"new"', '"NEW"').replace(">new<", ">NEW<").replace("\nnew\n", "\nNEW\n")
    ),
    "case of a name": swap("write_note", "writeNote"),
    "separator of a name": swap("plan_route", "plan-route"),
    "prefix of a name": swap("plan_route", "functions.plan_route"),
}
NONE_ADDED = {"None for null"}
