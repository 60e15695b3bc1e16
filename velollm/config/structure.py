"""Turns plain dictionaries into `Settings`, strictly, and says of every fault where it stands and what was meant."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, Literal, TypeAlias, get_args, get_origin

import attrs
from cattrs import ClassValidationError, Converter, ForbiddenExtraKeysError, IterableValidationError
from cattrs.errors import AttributeValidationNote, IterableValidationNote
from cattrs.gen import make_dict_structure_fn

from velollm.config.settings import BackendSettings, Settings
from velollm.config.units import Concurrency, Seconds, Size, parse_concurrency, parse_seconds, parse_size
from velollm.errors import ConfigError

__all__ = ["Path", "nearest", "structure"]

Path: TypeAlias = tuple[str | int, ...]

TRUE = frozenset({"on", "true", "yes", "1"})
FALSE = frozenset({"off", "false", "no", "0"})


def structure(raw: Mapping[str, Any], where: Callable[[Path], str]) -> Settings:
    """The settings that `raw` spells out; `where` says, for messages, where the value of a path was set.

    Raises `ConfigError` that tells of every fault, one a line.
    """
    try:
        return _converter().structure(raw, Settings)
    except ClassValidationError as error:
        faults = [_describe(path, fault, where) for path, fault in _faults(error, ())]
        raise ConfigError("\n".join(dict.fromkeys(faults))) from None


def nearest(word: str, known: list[str]) -> str:
    """`; did you mean X?`, or nothing when nothing is near."""
    found = get_close_matches(word.lower(), known, n=1, cutoff=0.6)
    return f"; did you mean {found[0]}?" if found else ""


def _describe(path: Path, fault: Exception, where: Callable[[Path], str]) -> str:
    if isinstance(fault, ForbiddenExtraKeysError):
        unknown = sorted(fault.extra_fields)[0]
        known = [field.name for field in attrs.fields(fault.cl)]
        what = f"{unknown} is unknown" if path else f"the section [{unknown}] is unknown"
        return f"{where((*path, unknown))}: {what}{nearest(unknown, known) or _choice(known)}"
    if isinstance(fault, KeyError):
        return f"{where(path)}: {path[-1]} is missing"
    key = getattr(fault, "key", None)
    if key is not None:
        path = (*path, key)
    name = ".".join(str(part) for part in path if isinstance(part, str))
    return f"{where(path)}: {name} {fault}"


def _choice(known: list[str]) -> str:
    return f"; known are: {', '.join(known)}"


def _faults(error: Exception, path: Path) -> Iterator[tuple[Path, Exception]]:
    """The single faults inside a group of them, each with its path."""
    if not isinstance(error, (ClassValidationError, IterableValidationError)):
        yield path, error
        return
    for fault in error.exceptions:
        note = next((n for n in getattr(fault, "__notes__", ()) if not type(n) is str), None)  # noqa: E714
        inner = path
        if isinstance(note, AttributeValidationNote):
            inner = (*path, note.name)
        elif isinstance(note, IterableValidationNote):
            inner = (*path, note.index)
        yield from _faults(fault, inner)


# ---- how values are read ---------------------------------------------------------------------------------------------


def _converter() -> Converter:
    converter = Converter(forbid_extra_keys=True)
    converter.register_structure_hook_func(lambda kind: kind is Size, lambda value, _: parse_size(value))
    converter.register_structure_hook_func(lambda kind: kind is Seconds, lambda value, _: parse_seconds(value))
    converter.register_structure_hook_func(lambda kind: kind is Concurrency, lambda value, _: parse_concurrency(value))
    converter.register_structure_hook(int, _int)
    converter.register_structure_hook(float, _float)
    converter.register_structure_hook(bool, _bool)
    converter.register_structure_hook(str, _str)
    converter.register_structure_hook_func(lambda kind: _origin(kind) is Literal, _literal)
    converter.register_structure_hook_func(lambda kind: kind == tuple[str, ...], _strings)
    converter.register_structure_hook_func(
        lambda kind: kind == tuple[BackendSettings, ...], lambda value, _: _backends(value, converter)
    )
    converter.register_structure_hook_factory(attrs.has, lambda cls: _table(cls, converter))
    converter.register_structure_hook_func(
        lambda kind: _origin(kind) is Mapping, lambda value, kind: _mapping(value, kind, converter)
    )
    return converter


def _origin(kind: Any) -> Any:
    return get_origin(kind)


def _table(cls: Any, converter: Converter) -> Any:
    plain = make_dict_structure_fn(cls, converter, _cattrs_forbid_extra_keys=True)

    def structure_table(value: Any, kind: Any) -> Any:
        if not isinstance(value, Mapping):
            raise ValueError("must be a table")
        return plain(value, kind)

    return structure_table


def _backends(value: Any, converter: Converter) -> tuple[BackendSettings, ...]:
    if not isinstance(value, (list, tuple)):
        raise ValueError("must be an array of tables, each headed [[backends]]")
    return tuple(converter.structure(value, list[BackendSettings]))


def _mapping(value: Any, kind: Any, converter: Converter) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError("must be a table")
    of = get_args(kind)[1]
    result, faults = {}, []
    for key, item in value.items():
        try:
            result[key] = converter.structure(item, of)
        except Exception as error:
            error.add_note(IterableValidationNote("", key, of))
            faults.append(error)
    if faults:
        raise IterableValidationError("", faults, kind)
    return result


def _int(value: Any, _: Any) -> int:
    if isinstance(value, str) and value.strip().lstrip("-").isdecimal() and len(value) < 20:
        return int(value)
    if type(value) is not int:
        raise ValueError(f"must be a whole number, not {value!r}")
    return value


def _float(value: Any, _: Any) -> float:
    try:
        number = float(value) if type(value) in (int, float, str) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"must be a number, not {value!r}")
    return number


def _bool(value: Any, _: Any) -> bool:
    word = value.strip().lower() if isinstance(value, str) else None
    if word in TRUE:
        return True
    if word in FALSE:
        return False
    if type(value) is not bool:
        raise ValueError(f"must be on or off (true or false), not {value!r}")
    return value


def _str(value: Any, _: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be text, not {value!r}")
    return value


def _literal(value: Any, kind: Any) -> Any:
    known = [str(word) for word in get_args(kind)]
    if value not in known:
        raise ValueError(f"must be one of {', '.join(known)}, not {value!r}")
    return value


def _strings(value: Any, _: Any) -> tuple[str, ...]:
    if isinstance(value, str):  # of an environment variable
        value = [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"must be a list of texts, not {value!r}")
    return tuple(value)
