"""Readers of JSON fields that all dialects share: each returns a value of the promised type or raises `RequestError`.

`null` for an optional field is the same as its absence. `path` is where the object stands (`messages[2]`, empty at the
top); the error's `param` is that path with the field's name. Values of wrong fields are never quoted at length.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from typing import Any, NoReturn, TypeAlias

from velollm.errors import RequestError

__all__ = [
    "at",
    "expect_list",
    "expect_object",
    "expect_str",
    "fail",
    "get_bool",
    "get_choice",
    "get_int",
    "get_int_list",
    "get_list",
    "get_number",
    "get_object",
    "get_str",
    "get_str_list",
    "hint",
    "kind",
    "need_list",
    "need_object",
    "need_str",
    "rest",
    "unknown_value",
]

JSON: TypeAlias = dict[str, Any]

EXACT = 2.0**53  # from here on, a whole number that is written as a float may be another one

LONGEST_QUOTE = 40


def at(path: str, key: str | int) -> str:
    """The path of `key` below `path`: `at("messages", 2)` is `messages[2]`, `at("messages[2]", "role")` its role."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    return f"{path}.{key}" if path else key


def kind(value: Any) -> str:
    """The JSON type of a value in words, article included."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int):
        return "an integer"
    if isinstance(value, float):
        return "a number"
    if isinstance(value, str):
        return "a string"
    return "an array" if isinstance(value, list) else "an object"


def fail(path: str, problem: str) -> NoReturn:
    """Raise the `RequestError` that says `problem` of the field at `path` (`"must be a string"`)."""
    raise RequestError(f"{path or 'the request body'} {problem}", param=path or None)


def hint(word: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` when one of `known` is near to `word`, else an empty string."""
    near = get_close_matches(word.lower(), known, n=1, cutoff=0.7) if 0 < len(word) <= LONGEST_QUOTE else []
    return f"; did you mean {near[0]!r}?" if near else ""


def unknown_value(path: str, word: str, known: Collection[str]) -> NoReturn:
    """Raise the error for a word that is none of `known`, with the nearest known one."""
    shown = word if len(word) <= LONGEST_QUOTE else word[:LONGEST_QUOTE] + "…"
    options = ", ".join(repr(option) for option in known)
    fail(path, f"is {shown!r}, which is none of {options}{hint(word, known)}")


def _wrong(path: str, wanted: str, value: Any) -> NoReturn:
    if value is None:
        fail(path, f"is required and must be {wanted}")
    fail(path, f"must be {wanted}, not {kind(value)}")


# ---- a value that must be there --------------------------------------------------------------------------------------


def expect_object(value: Any, path: str = "") -> JSON:
    """`value` itself if it is an object."""
    if isinstance(value, dict):
        return value
    _wrong(path, "an object", value)


def expect_list(value: Any, path: str, *, min_length: int = 0, max_length: int | None = None) -> list[Any]:
    """`value` itself if it is an array of a permitted length."""
    if not isinstance(value, list):
        _wrong(path, "an array", value)
    if len(value) < min_length:
        fail(path, "must not be empty" if min_length == 1 else f"must have at least {min_length} items")
    if max_length is not None and len(value) > max_length:
        fail(path, f"must have at most {max_length} items, not {len(value)}")
    return value


def expect_str(value: Any, path: str, *, empty: bool = True) -> str:
    """`value` itself if it is a string (and not an empty one, unless `empty`)."""
    if not isinstance(value, str):
        _wrong(path, "a string", value)
    if not empty and not value:
        fail(path, "must not be empty")
    return value


def need_object(source: Mapping[str, Any], key: str, path: str = "") -> JSON:
    """The object under `key`, which must be there."""
    return expect_object(source.get(key), at(path, key))


def need_list(
    source: Mapping[str, Any], key: str, path: str = "", *, min_length: int = 0, max_length: int | None = None
) -> list[Any]:
    """The array under `key`, which must be there."""
    return expect_list(source.get(key), at(path, key), min_length=min_length, max_length=max_length)


def need_str(source: Mapping[str, Any], key: str, path: str = "", *, empty: bool = True) -> str:
    """The string under `key`, which must be there."""
    return expect_str(source.get(key), at(path, key), empty=empty)


# ---- a value that may be there ---------------------------------------------------------------------------------------


def get_object(source: Mapping[str, Any], key: str, path: str = "") -> JSON | None:
    """The object under `key`, or None."""
    value = source.get(key)
    return None if value is None else expect_object(value, at(path, key))


def get_list(
    source: Mapping[str, Any], key: str, path: str = "", *, min_length: int = 0, max_length: int | None = None
) -> list[Any] | None:
    """The array under `key`, or None."""
    value = source.get(key)
    if value is None:
        return None
    return expect_list(value, at(path, key), min_length=min_length, max_length=max_length)


def get_str(source: Mapping[str, Any], key: str, path: str = "") -> str | None:
    """The string under `key`, or None."""
    value = source.get(key)
    return value if value is None or isinstance(value, str) else _wrong(at(path, key), "a string", value)


def get_choice(source: Mapping[str, Any], key: str, known: Collection[str], path: str = "") -> str | None:
    """The string under `key`, one of `known`, or None."""
    value = get_str(source, key, path)
    if value is not None and value not in known:
        unknown_value(at(path, key), value, known)
    return value


def get_bool(source: Mapping[str, Any], key: str, path: str = "") -> bool | None:
    """The boolean under `key`, or None."""
    value = source.get(key)
    return value if value is None or isinstance(value, bool) else _wrong(at(path, key), "a boolean", value)


def get_int(
    source: Mapping[str, Any], key: str, path: str = "", *, low: int | None = None, high: int | None = None
) -> int | None:
    """The integer under `key`, or None; `5.0` is an integer, `true` is not. `low` and `high` are permitted values."""
    value = source.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        if not (isinstance(value, float) and value.is_integer()):
            _wrong(at(path, key), "an integer", value)
        if abs(value) >= EXACT:
            fail(at(path, key), "is too large for an integer: send one of 64 bits")
        value = int(value)
    _in_range(value, low, high, at(path, key))
    return value


def get_number(
    source: Mapping[str, Any], key: str, path: str = "", *, low: float | None = None, high: float | None = None
) -> float | None:
    """The finite number under `key`, or None; an integer stays an integer. `low` and `high` are permitted values."""
    value = source.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        _wrong(at(path, key), "a number", value)
    if not math.isfinite(value):
        fail(at(path, key), "must be a finite number")
    _in_range(value, low, high, at(path, key))
    return value


def get_str_list(
    source: Mapping[str, Any], key: str, path: str = "", *, lone: bool = False, max_length: int | None = None
) -> list[str] | None:
    """The array of strings under `key`, or None. With `lone` a single string stands for an array of one."""
    value = source.get(key)
    if lone and isinstance(value, str):
        return [value]
    if value is None:
        return None
    items = expect_list(value, at(path, key), max_length=max_length)
    for number, item in enumerate(items):
        if not isinstance(item, str):
            _wrong(at(at(path, key), number), "a string", item)
    return items


def get_int_list(source: Mapping[str, Any], key: str, path: str = "", *, low: int | None = None) -> list[int] | None:
    """The array of integers under `key` (token ids, say), or None."""
    items = get_list(source, key, path)
    for number, item in enumerate(items or ()):
        if isinstance(item, bool) or not isinstance(item, int):
            _wrong(at(at(path, key), number), "an integer", item)
        _in_range(item, low, None, at(at(path, key), number))
    return items


def rest(source: Mapping[str, Any], known: Collection[str]) -> JSON:
    """The fields of an object that are not `known`: what goes into `extra`."""
    return {key: value for key, value in source.items() if key not in known}


def _in_range(value: float, least: float | None, most: float | None, path: str) -> None:
    if least is not None and value < least:
        fail(path, f"must be at least {least}")
    if most is not None and value > most:
        fail(path, f"must be at most {most}")
