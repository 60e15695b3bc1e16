"""Every kind of damage in every family's format: what was meant comes out, or nothing does."""

from __future__ import annotations

from typing import Any

import pytest
from support.toolcall_damage import AROUND, CALLS, INSIDE, NONE_ADDED, NOTE, ROUTE
from support.toolcall_formats import FORMATS, TOOLS

from velollm.toolcalls import fix


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
