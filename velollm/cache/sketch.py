"""A sketch of a prompt: what its canonical form cannot change. Two prompts with the same form have the same sketch.

It takes a fraction of the time, so a prompt whose sketch nobody has seen needs no canonical form to be told apart from
all that is kept. Built from the long words and long numbers that none of the rules in `tokens` and `canonical` adds,
replaces or takes away.
"""

from __future__ import annotations

import re
from typing import Final

from velollm.cache.canonical import COURTESY, is_kept_by_line
from velollm.cache.lexicon import CONTRACTIONS, GERUNDS, MISSPELLINGS, NUMBER_WORDS
from velollm.cache.tokens import THOUSANDS, part

__all__ = ["sketch"]

_PIECES: Final = re.compile(r"[^\W\d_]{5,}|[0-9]{3,}")
_ASCII_PIECES: Final = re.compile(r"[a-z]{5,}|[0-9]{3,}")  # the same, of ASCII in lower case, but quicker
_INITIALS: Final = re.compile(r"(?<![^\W_])(?:[a-z]\.){4,}")
_CHANGED: Final = frozenset(
    _ASCII_PIECES.findall(
        " ".join(
            text.lower()
            for table in (CONTRACTIONS, GERUNDS, MISSPELLINGS, NUMBER_WORDS)
            for pair in table.items()
            for text in pair
        )
        + " ".join(COURTESY)
    )
)


def sketch(prompt: str) -> int:
    """A number that differs between prompts only if their canonical forms do; it means nothing outside this process."""
    whole = prompt.isascii() and ":" not in prompt and '"' not in prompt
    text = (prompt if whole or is_kept_by_line(prompt) else " ".join(part(prompt))).lower()
    if text.count(".") > 3 and _INITIALS.search(text):
        text = _INITIALS.sub(lambda found: found[0].replace(".", ""), text)
    if "," in text:
        text = THOUSANDS.sub("", text)
    if "'" in text:
        text = text.replace("n't", " ")
    pieces = _ASCII_PIECES if text.isascii() else _PIECES
    return hash(frozenset(pieces.findall(text)) - _CHANGED)
