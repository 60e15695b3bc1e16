"""Every kind of damage in every family's format: what was meant comes out, or nothing does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from support.toolcall_formats import FORMATS, TOOLS, Calls

from velollm.toolcalls import fix

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


def calls_of(text: str) -> list[tuple[str, dict[str, Any]]]:
    return [(call.name, call.arguments) for call in fix(text, TOOLS).calls]


@pytest.mark.parametrize("damage", AROUND)
@pytest.mark.parametrize("family", sorted(FORMATS))
def test_what_stands_around_a_call(family: str, damage: str) -> None:
    assert calls_of(AROUND[damage](FORMATS[family](CALLS))) == list(CALLS)


@pytest.mark.parametrize("damage", INSIDE)
@pytest.mark.parametrize("family", sorted(FORMATS))
def test_what_is_wrong_inside(family: str, damage: str) -> None:
    text = FORMATS[family](CALLS)
    broken = INSIDE[damage](text)
    if damage == "prefix of a name" and "functions.functions" in broken:
        return
    expected: list[Any] = list(CALLS)
    if damage in NONE_ADDED and broken != text:
        expected = [CALLS[0], ("plan_route", {**ROUTE, "options": {**ROUTE["options"], "depart": None}})]
    assert calls_of(broken) == expected


@pytest.mark.parametrize("family", sorted(FORMATS))
def test_unescaped_quotes_in_a_text(family: str) -> None:
    broken = FORMATS[family](CALLS).replace('"Hi there, it', '"Hi "there", it')
    (name, note), route = calls_of(broken)
    assert name == "write_note"
    assert note["body"] in (NOTE["body"], "Hi \"there\", it's 5 o'clock")
    assert route == CALLS[1]


@pytest.mark.parametrize("family", sorted(FORMATS))
def test_a_cut_call_never_runs(family: str) -> None:
    """Every beginning of the text: whole calls may run, of the one that is cut nothing does."""
    text = FORMATS[family](CALLS)
    for end in range(len(text)):
        for call in fix(text[:end], TOOLS, "length").calls:
            assert (call.name, call.arguments) in CALLS, text[:end]


@pytest.mark.parametrize("family", sorted(FORMATS))
def test_a_cut_value_is_never_completed(family: str) -> None:
    """Where nothing says that the limit was reached, brackets are supplied, but no part of any value."""
    text = FORMATS[family](CALLS)
    meant = set(leaves([NOTE, ROUTE]))
    for end in range(len(text)):
        for call in fix(text[:end], TOOLS).calls:
            assert set(leaves(call.arguments)) <= meant, text[:end]


def leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in leaves(item)]
    if isinstance(value, list):
        return [leaf for item in value for leaf in leaves(item)]
    return [value]
