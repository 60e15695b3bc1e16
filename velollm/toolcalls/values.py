"""Values as a model wrote them: numbers keep their lexeme, text from markup stays undecoded until a schema asks."""

from __future__ import annotations

import re

__all__ = ["Bare", "Lexeme", "Raw", "Unreadable", "plain", "to_number"]

_DECIMAL = re.compile(r"[-+]?(?:\d[\d_]*(?:\.[\d_]*)?|\.\d[\d_]*)(?:[eE][-+]?\d+)?")
_HEX = re.compile(r"[-+]?0[xX][0-9a-fA-F]{1,16}")
_MAX_DIGITS = 400  # a double ends at 309 digits; longer lexemes are noise, and int() is quadratic


class Unreadable(ValueError):
    """The text is no value, or its last value was cut off."""

    def __init__(self, message: str, pos: int, *, cut: bool = False) -> None:
        super().__init__(message)
        self.pos = pos
        self.cut = cut


class Lexeme(str):
    """A number as it was written: `01067`, `7.10`, `1_024`, or NaN and its kin, which no schema accepts."""

    __slots__ = ()


class Bare(str):
    """A word without quotes where JSON wants a value."""

    __slots__ = ()


class Raw(str):
    """Text between tags, or a quoted scalar of a family whose template quotes everything."""

    __slots__ = ()


def to_number(lexeme: str) -> int | float | None:
    """The number a lexeme stands for; None for what is none or is not finite."""
    if len(lexeme) > _MAX_DIGITS:
        return None
    if lexeme.isdecimal() and lexeme.isascii():
        return int(lexeme)
    if _HEX.fullmatch(lexeme):
        return int(lexeme, 16)
    if not _DECIMAL.fullmatch(lexeme):
        return None
    digits = lexeme.replace("_", "")
    try:
        return int(digits)
    except ValueError:
        number = float(digits)
    return number if number - number == 0.0 else None


def plain(value: object) -> object:
    """`value` as ordinary Python data, where no schema says otherwise.

    Raises:
        Unreadable: it holds NaN or an infinity.
        RecursionError: it is nested too deeply.
    """
    kind = type(value)
    if kind is str or value is None or kind is bool or kind is int or kind is float:
        return value
    if kind is dict:
        return {key: plain(item) for key, item in value.items()}  # type: ignore[attr-defined]
    if kind is list:
        return [plain(item) for item in value]  # type: ignore[attr-defined]
    if kind is Lexeme:
        number = to_number(value)  # type: ignore[arg-type]
        if number is None:
            raise Unreadable(f"{value!s:.40} is no finite number", 0)
        return number
    return str(value)
