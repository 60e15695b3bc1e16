"""Arguments as a schema wants them: coercion, enums, blanks, keys, alternatives, limits."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.toolcall_formats import tool

from velollm.toolcalls import fix

NOTHING = object()


def fitted(properties: dict[str, Any], given: Any, *, required: Any = (), **more: Any) -> Any:
    """What arguments become; NOTHING where there is no call."""
    made = tool("f", required, **properties)
    made["function"]["parameters"].update(more)
    text = given if isinstance(given, str) else json.dumps(given)
    result = fix([{"function": {"name": "f", "arguments": text}}], [made])
    assert bool(result.calls) != bool(result.errors)
    return result.calls[0].arguments if result.calls else NOTHING


@pytest.mark.parametrize(
    ("kind", "written", "meant"),
    [
        # what stays
        ("integer", "5", 5),
        ("number", "5", 5),
        ("number", "5.5", 5.5),
        ("string", '"5"', "5"),
        ("string", '"true"', "true"),
        ("string", '"null"', "null"),
        ("string", '""', ""),
        ("string", '"a &amp; b"', "a &amp; b"),
        ("string", '"{\\"a\\": 1}"', '{"a": 1}'),
        ("boolean", "false", False),
        ("array", "[]", []),
        ("object", "{}", {}),
        ({"type": ["string", "integer"]}, '"5"', "5"),
        ({"type": ["string", "integer"]}, "5", 5),
        ({"type": ["integer", "null"]}, "null", None),
        # what is coerced
        ("integer", '"5"', 5),
        ("integer", "5.0", 5),
        ("integer", '"-12"', -12),
        ("integer", '" 7 "', 7),
        ("number", '"7.10"', 7.1),
        ("number", '"1e3"', 1000.0),
        ("boolean", '"true"', True),
        ("boolean", '"False"', False),
        ("array", '"x"', ["x"]),
        ("array", "3", [3]),
        ({"type": "array", "items": {"type": "integer"}}, '"3"', [3]),
        ({"type": "array", "items": {"type": "integer"}}, '["1", 2.0]', [1, 2]),
        ({"type": "array", "items": {"type": "string"}}, "[1, 2.50]", ["1", "2.50"]),
        ("string", '["x"]', "x"),
        ("integer", "[4]", 4),
        ("object", '"{\\"a\\": 1}"', {"a": 1}),
        ("array", '"[1, 2]"', [1, 2]),
        ("string", "1067", "1067"),
        ("string", "01067", "01067"),
        ("string", "7.10", "7.10"),
        ("string", "1e5", "1e5"),
        ({"type": ["integer", "null"]}, '"null"', None),
        ({"type": ["integer", "null"]}, '"4"', 4),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, '"4"', 4),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, '"4"', "4"),
        ({"oneOf": [{"type": "boolean"}, {"type": "integer"}]}, '"true"', True),
        # what must not be
        ("integer", "5.5", NOTHING),
        ("integer", '"five"', NOTHING),
        ("integer", "true", NOTHING),
        ("integer", '""', NOTHING),
        ("integer", '"1,000"', NOTHING),
        ("number", "NaN", NOTHING),
        ("number", "Infinity", NOTHING),
        ("number", '"-Infinity"', NOTHING),
        ("number", "1e999", NOTHING),
        ("boolean", "1", NOTHING),
        ("boolean", '"yes"', NOTHING),
        ("string", "true", NOTHING),
        ("string", "{}", NOTHING),
        ("string", '["a", "b"]', NOTHING),
        ("string", "null", NOTHING),
        ("object", '"x"', NOTHING),
        ("object", "[1]", NOTHING),
        ("array", "null", NOTHING),
    ],
)
def test_a_required_value(kind: Any, written: str, meant: Any) -> None:
    got = fitted({"v": kind}, f'{{"v": {written}}}', required=["v"])
    assert got == (NOTHING if meant is NOTHING else {"v": meant})
    if meant is not NOTHING:
        assert type(got["v"]) is type(meant)


COLOURS = {"type": "string", "enum": ["dark_red", "Light Blue", "none"]}


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("dark_red", "dark_red"),
        ("DARK_RED", "dark_red"),
        ("dark-red", "dark_red"),
        ("Dark Red", "dark_red"),
        ("darkRed", "dark_red"),
        ("light_blue", "Light Blue"),
        (" none ", "none"),
        ("red", NOTHING),
        ("dark", NOTHING),
        ("dark_redd", NOTHING),
        ("darkred!", NOTHING),
        ("crimson", NOTHING),
    ],
)
def test_enums_take_case_and_separator_variants_alone(written: str, meant: Any) -> None:
    got = fitted({"c": COLOURS}, {"c": written}, required=["c"])
    assert got == (NOTHING if meant is NOTHING else {"c": meant})


def test_enums_of_other_types() -> None:
    assert fitted({"n": {"enum": [1, 2]}}, {"n": "2"}) == {"n": 2}
    assert fitted({"n": {"enum": [1, 2]}}, {"n": 2.0}) == {"n": 2}
    assert fitted({"n": {"enum": [1, 2]}}, {"n": 3}) is NOTHING
    assert fitted({"n": {"enum": [True, "auto"]}}, {"n": "true"}) == {"n": True}
    assert fitted({"n": {"const": "x"}}, {"n": "X"}) == {"n": "x"}
    assert fitted({"n": {"type": "array", "items": COLOURS}}, {"n": ["DARK_RED"]}) == {"n": ["dark_red"]}


@pytest.mark.parametrize(
    ("kind", "written", "meant"),
    [
        ("integer", "null", {}),
        ("string", "null", {}),
        ("integer", '""', {}),
        ("integer", '"null"', {}),
        ("boolean", '"None"', {}),
        ("array", "null", {}),
        (COLOURS, '""', {}),
        (COLOURS, "null", {}),
        ("string", '""', {"v": ""}),
        ("string", '"None"', {"v": "None"}),
        ("string", '"null"', {"v": "null"}),
        ({"type": ["string", "null"]}, "null", {"v": None}),
        ({"type": "integer", "nullable": True}, "null", {"v": None}),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "null", {"v": None}),
    ],
)
def test_a_blank_for_an_optional_value(kind: Any, written: str, meant: Any) -> None:
    assert fitted({"v": kind}, f'{{"v": {written}}}') == meant


def test_keys() -> None:
    assert fitted({"card_id": "string"}, {"cardId": "x"}) == {"card_id": "x"}
    assert fitted({"cardId": "string"}, {"card-id": "x"}) == {"cardId": "x"}
    assert fitted({"card_id": "string"}, {"Card ID": "x", "": 1}) == {"card_id": "x"}
    assert fitted({"card_id": "string"}, {"card": "x"}) == {"card": "x"}
    assert fitted({"card_id": "string"}, {"card": "x"}, required=["card_id"]) is NOTHING
    assert fitted({"a": "string"}, {"a": "x", "b": 1}) == {"a": "x", "b": 1}
    assert fitted({"a": "string"}, {"a": "x", "b": 1}, additionalProperties=False) == {"a": "x"}
    assert fitted({"a": "string"}, {"a": "x", "A": "y"}) == {"a": "x", "A": "y"}
    assert fitted({"a_b": "string", "ab": "string"}, {"AB": "y"}) == {"AB": "y"}
    assert fitted({}, {"x_1": "5"}, patternProperties={"^x_": {"type": "integer"}}) == {"x_1": 5}
    assert fitted({}, {"y": "5"}, additionalProperties={"type": "integer"}) == {"y": 5}


def test_nesting() -> None:
    inner = {"type": "object", "properties": {"on": {"type": "boolean"}, "n": {"type": "integer"}}, "required": ["n"]}
    assert fitted({"o": inner}, {"o": {"ON": "true", "n": "4"}}) == {"o": {"on": True, "n": 4}}
    assert fitted({"o": inner}, {"o": {"on": True}}) is NOTHING
    assert fitted({"l": {"type": "array", "items": inner}}, {"l": {"n": 1}}) == {"l": [{"n": 1}]}
    assert fitted({"l": {"type": "array", "items": inner}}, {"l": '[{"n": 1}, {"n": "2"}]'}) == {
        "l": [{"n": 1}, {"n": 2}]
    }
    pair = {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}]}
    assert fitted({"p": pair}, {"p": [1, "2"]}) == {"p": ["1", 2]}


def test_references_and_logic() -> None:
    defs = {"$defs": {"port": {"type": "integer", "maximum": 65535}}}
    assert fitted({"p": {"$ref": "#/$defs/port"}}, {"p": "80"}, **defs) == {"p": 80}
    assert fitted({"p": {"$ref": "#/$defs/port"}}, {"p": 99999}, **defs) is NOTHING
    both = {"allOf": [{"type": "integer"}, {"minimum": 3}]}
    assert fitted({"p": both}, {"p": "4"}) == {"p": 4}
    assert fitted({"p": both}, {"p": 2}) is NOTHING
    assert fitted({"p": {"type": "integer", "not": {"const": 4}}}, {"p": 4}) is NOTHING
    assert fitted({"a": "string", "b": "string"}, {"a": "x"}, dependentRequired={"a": ["b"]}) is NOTHING
    either = {
        "anyOf": [{"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}, {"type": "string"}]
    }
    assert fitted({"e": either}, {"e": {"x": "3"}}) == {"e": {"x": 3}}
    assert fitted({"e": either}, {"e": "x"}) == {"e": "x"}


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "integer", "minimum": 1, "maximum": 5}, [1, 5, "3"], [0, 6, "9", -1]),
        ({"type": "number", "exclusiveMinimum": 0, "multipleOf": 0.5}, [0.5, 3], [0, 0.3]),
        ({"type": "string", "minLength": 2, "maxLength": 3}, ["ab", "abc"], ["a", "abcd"]),
        ({"type": "string", "pattern": "^[A-Z]{2}$"}, ["AB"], ["ab", "ABC"]),
        ({"type": "array", "minItems": 1, "maxItems": 2, "uniqueItems": True}, [[1], [1, 2]], [[], [1, 2, 3], [1, 1]]),
        ({"type": "object", "minProperties": 1}, [{"a": 1}], [{}]),
        ({"type": "array", "contains": {"type": "integer"}}, [["a", 1]], [["a"]]),
    ],
)
def test_limits(schema: Any, good: list[Any], bad: list[Any]) -> None:
    assert all(fitted({"v": schema}, {"v": value}, required=["v"]) is not NOTHING for value in good)
    assert all(fitted({"v": schema}, {"v": value}, required=["v"]) is NOTHING for value in bad)


def test_one_level_too_deep() -> None:
    for key in ("arguments", "input", "parameters", "properties"):
        assert fitted({"a": "integer"}, {key: {"a": "1"}}) == {"a": 1}
    assert fitted({"a": "integer"}, {"arguments": '{"a": 1}'}) == {"a": 1}
    assert fitted({"input": "object"}, {"input": {"a": 1}}) == {"input": {"a": 1}}
    assert fitted({"a": "integer"}, {"type": "object", "properties": {"a": 1}, "required": ["a"]}) == {"a": 1}
    assert fitted({"a": "integer"}, {"type": "object", "properties": {"a": {"type": "integer"}}}) is NOTHING


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (r'"a\nb"', "a\nb"),
        ('"a\nb\tc"', "a\nb\tc"),
        (r'"it\'s"', "it's"),
        (r'"\d+\.\w"', r"\d+\.\w"),
        (r'"\bword\d"', r"\bword\d"),
        (r'"\bword"', "\bword"),
        (r'"C:\new\table"', r"C:\new\table"),
        (r'"C:\\new\\table"', r"C:\new\table"),
        (r'"\u00e9\ud83d\ude00"', "é😀"),
        (r'"a\/b"', "a/b"),
        ('"say "hi" now"', 'say "hi" now'),
    ],
)
def test_escapes(written: str, meant: str) -> None:
    assert fitted({"v": "string"}, f'{{"v": {written}}}', required=["v"]) == {"v": meant}
