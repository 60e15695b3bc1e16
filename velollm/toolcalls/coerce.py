"""Schema-led coercion (rule 8): a value takes the type the schema names, by the few conversions that lose nothing."""

from __future__ import annotations

from typing import Any

from velollm.toolcalls.fitting import Context, Mismatch
from velollm.toolcalls.lenient import read_json
from velollm.toolcalls.values import Bare, Lexeme, Raw, Unreadable, to_number

__all__ = ["coerce", "matches_type", "same"]

_BOOLEANS = {"true": True, "false": False}
_ECHO = frozenset({"value", "type", "description", "title", "name"})  # what a schema's echo holds beside a value
_OWN: dict[type, str] = {dict: "object", list: "array", bool: "boolean", type(None): "null"}


def matches_type(value: Any, kind: str) -> bool:
    """Whether plain data is of this JSON type."""
    if kind == "null":
        return value is None
    if kind == "boolean":
        return isinstance(value, bool)
    if kind == "integer":
        return not isinstance(value, bool) and (
            isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        )
    if kind == "number":
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "string":
        return isinstance(value, str)
    return isinstance(value, dict if kind == "object" else list)


def same(value: Any, choice: Any) -> bool:
    """JSON equality: true is not 1, 3.0 is 3, a lexeme is its number."""
    if type(value) is Lexeme:
        if isinstance(choice, bool) or not isinstance(choice, int | float):
            return False
        return to_number(value) == choice
    if isinstance(value, bool) or isinstance(choice, bool):
        return value is choice
    if isinstance(value, str) and isinstance(choice, str):
        return str(value) == choice
    if isinstance(value, list) and isinstance(choice, list):
        return len(value) == len(choice) and all(map(same, value, choice))
    if isinstance(value, dict) and isinstance(choice, dict):
        return value.keys() == choice.keys() and all(same(item, choice[key]) for key, item in value.items())
    return bool(value == choice)


def coerce(value: Any, types: frozenset[str], ctx: Context, path: str) -> Any:
    """`value` as one of `types`.

    Raises:
        Mismatch: none of the contract's conversions leads there.
    """
    kind = type(value)
    if kind is str or kind is Raw or kind is Bare:
        return str(value) if "string" in types else _from_text(value, types, ctx, path)
    if kind is Lexeme:
        return _from_lexeme(value, types, ctx, path)
    if kind is int or kind is float:
        return _from_lexeme(Lexeme(repr(value)), types, ctx, path)
    if _OWN.get(kind, "") in types:
        return value
    if kind is dict and "value" in value and value.keys() <= _ECHO and "array" not in types:
        ctx.note("unwrapped_arguments")
        return coerce(value["value"], types, ctx, path)
    if kind is list and len(value) == 1 and type(value[0]) is not list:
        ctx.note("unwrapped_scalar")
        return coerce(value[0], types, ctx, path)
    if (kind is dict or kind is bool) and "array" in types:
        ctx.note("wrapped_scalar")
        return [value]
    raise _mismatch(path, value, types)


def _mismatch(path: str, value: Any, types: frozenset[str]) -> Mismatch:
    return Mismatch(path, f"{value!r:.60} is no {' or '.join(sorted(types))}")


def _from_lexeme(value: Lexeme, types: frozenset[str], ctx: Context, path: str) -> Any:
    number = to_number(value)
    if number is not None:
        if "number" in types:
            return number
        if "integer" in types and number == int(number):
            if isinstance(number, float):
                ctx.note("type_coerced")
            return int(number)
        if "string" in types:
            ctx.note("type_coerced")
            return str(value)
        if "array" in types:
            ctx.note("wrapped_scalar")
            return [value]
    raise _mismatch(path, value, types)


def _from_text(value: str, types: frozenset[str], ctx: Context, path: str) -> Any:
    """Text where the schema wants no string."""
    text = value.strip()
    made: Any = value
    lowered = text.lower()
    number = to_number(text) if ("number" in types or "integer" in types) else None
    if number is not None and ("number" in types or number == int(number)):
        made = number if "number" in types else int(number)
    elif "boolean" in types and lowered in _BOOLEANS:
        made = _BOOLEANS[lowered]
    elif "null" in types and lowered in ("null", "none"):
        return None
    elif text[:1] in ("{", "[") and ("object" in types or "array" in types):
        made = _from_json(text, types, ctx, path)
    elif "array" in types:
        if text[:1] in ("(",) or not text:
            raise _mismatch(path, value, types)
        ctx.note("wrapped_scalar")
        return [value]
    else:
        raise _mismatch(path, value, types)
    if not (ctx.quoted or type(value) is Raw):
        ctx.note("type_coerced")
    return made


def _from_json(text: str, types: frozenset[str], ctx: Context, path: str) -> Any:
    try:
        reading = read_json(text)
    except Unreadable:
        raise _mismatch(path, text, types) from None
    if text[reading.end :].strip() or reading.supplied:
        raise _mismatch(path, text, types)
    for kind in reading.repairs:
        ctx.note(kind)
    return coerce(reading.value, types, ctx, path)
