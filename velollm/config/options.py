"""The settings as the command line and the environment see them: one option for each key of each section."""

from __future__ import annotations

import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import attrs

from velollm.config.settings import Settings

__all__ = ["BACKEND", "Option", "options"]

PREFIX = "VELOLLM_"


@attrs.frozen(kw_only=True)
class Option:
    """One setting: `--flag`, `VELOLLM_FLAG`, `VELOLLM_SECTION__KEY`, or `key` below `[section]` in TOML.

    `choices` are the words it takes, where it takes only some; `many` says that it may be repeated.
    """

    section: str
    key: str
    flag: str
    about: str
    metavar: str
    default: Any
    choices: tuple[str, ...] = ()
    many: bool = False

    @property
    def path(self) -> tuple[str, ...]:
        """Where its value lies in the TOML file."""
        return (self.section, self.key) if self.section else (self.key,)

    @property
    def dest(self) -> str:
        """The name of its value among parsed arguments."""
        return ".".join(self.path)

    @property
    def variables(self) -> tuple[str, ...]:
        """The environment variables that set it; the last counts most."""
        flag = PREFIX + self.flag.removeprefix("--").replace("-", "_").upper()
        return (flag, PREFIX + "__".join(self.path).upper()) if self.section else (flag,)


BACKEND = Option(
    section="", key="backends", flag="--backend", metavar="[NAME=]URL", default=(), many=True,
    about="an engine: http://host:port (asked what it is), ollama://, llamacpp://, openai+http://host/v1; repeatable",
)  # fmt: skip


def options() -> tuple[Option, ...]:
    """All of them, in the order of the sections."""
    found = [BACKEND]
    sections = get_type_hints(Settings)
    for section in attrs.fields(Settings):
        kind = sections[section.name]
        if attrs.has(kind):
            hints = get_type_hints(kind)
            found += [_option(section.name, field, hints[field.name]) for field in attrs.fields(kind)]
    return tuple(found)


def _option(section: str, field: attrs.Attribute[Any], hint: Any) -> Option:
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(part for part in get_args(hint) if part is not type(None))
    choices: tuple[str, ...] = ("on", "off") if hint is bool else ()
    if get_origin(hint) is Literal:
        choices = get_args(hint)
    return Option(
        section=section,
        key=field.name,
        flag=field.metadata["flag"] or "--" + field.name.replace("_", "-"),
        about=field.metadata["about"],
        metavar=field.metadata["metavar"] or ("" if choices else field.name.upper().replace("_", "-")),
        default=field.default,
        choices=choices,
        many=get_origin(hint) is tuple,
    )
