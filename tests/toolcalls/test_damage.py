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
def test_what_stands_around_a_call(damage: str) -> None:
    for family, write in FORMATS.items():
        assert calls_of(AROUND[damage](write(CALLS))) == list(CALLS), family


@pytest.mark.parametrize("damage", INSIDE)
def test_what_is_wrong_inside(damage: str) -> None:
    for family, write in FORMATS.items():
        text = write(CALLS)
        broken = INSIDE[damage](text)
        if damage == "prefix of a name" and "functions.functions" in broken:
            continue
        expected: list[Any] = list(CALLS)
        if damage in NONE_ADDED and broken != text:
            expected = [CALLS[0], ("plan_route", {**ROUTE, "options": {**ROUTE["options"], "depart": None}})]
        assert calls_of(broken) == expected, family


def test_unescaped_quotes_in_a_text() -> None:
    for family, write in FORMATS.items():
        (name, note), route = calls_of(write(CALLS).replace('"Hi there, it', '"Hi "there", it'))
        assert name == "write_note", family
        assert note["body"] in (NOTE["body"], "Hi \"there\", it's 5 o'clock"), family
        assert route == CALLS[1], family


def test_a_cut_call_never_runs() -> None:
    """Every beginning of the text: whole calls may run, of the one that is cut nothing does."""
    for write in FORMATS.values():
        text = write(CALLS)
        for end in range(0, len(text), 2):
            for call in fix(text[:end], TOOLS, "length").calls:
                assert (call.name, call.arguments) in CALLS, text[:end]


def test_a_cut_value_is_never_completed() -> None:
    """Where nothing says that the limit was reached, brackets are supplied, but no part of any value."""
    meant = set(leaves([NOTE, ROUTE]))
    for write in FORMATS.values():
        text = write(CALLS)
        for end in range(1, len(text), 2):
            for call in fix(text[:end], TOOLS).calls:
                assert set(leaves(call.arguments)) <= meant, text[:end]


def leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in leaves(item)]
    if isinstance(value, list):
        return [leaf for item in value for leaf in leaves(item)]
    return [value]
