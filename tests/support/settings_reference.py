"""The table of all settings in docs/configuration.md, written from the settings themselves.

python tests/support/settings_reference.py       writes it anew
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

from velollm.config import Option, options, show_seconds, show_size

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"
BEGIN, END = "<!-- settings: written by tests/support/settings_reference.py -->\n", "<!-- end of settings -->\n"


def table() -> str:
    """All of them, a table for each section."""
    parts = []
    for section, group in groupby(options(), key=lambda option: option.section):
        if not section:
            continue  # [[backends]], described by hand
        rows = "\n".join(_row(option) for option in group)
        parts.append(f"\n### `[{section}]`\n\n| key | flag | default | what |\n|---|---|---|---|\n{rows}\n")
    return "".join(parts) + "\n"


def _row(option: Option) -> str:
    words = option.about.removesuffix("; repeatable")
    if option.choices and set(option.choices) != {"on", "off"}:
        words += ": " + ", ".join(f"`{choice}`" for choice in option.choices)
    text = words.replace("|", "\\|")
    return f"| `{option.key}` | `{option.flag}` | {_default(option)} | {text} |"


def _default(option: Option) -> str:
    value: Any = option.default
    if value is None:
        return "-"
    if value == ():
        return "none"
    if isinstance(value, bool):
        return "`true`" if value else "`false`"
    if value == 0 and "auto" in option.metavar:
        return '`"auto"`'
    if option.metavar == "SIZE":
        value = show_size(value)
    elif option.metavar == "SECONDS":
        value = show_seconds(value)
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


def page() -> str:
    """The page as it should be."""
    text = PAGE.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return head + BEGIN + table() + END + tail


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
