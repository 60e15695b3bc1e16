"""Texts to ask about: made of common words that are one token each in usual vocabularies, different for every seed."""

from __future__ import annotations

from random import Random
from typing import Any

__all__ = ["ASSISTANT", "TOOLS", "passage", "program", "subject"]

NOUNS = (
    "river", "house", "market", "garden", "window", "letter", "winter", "road", "bridge", "teacher", "machine",
    "music", "paper", "kitchen", "summer", "forest", "island", "station", "engine", "captain", "doctor", "village",
    "mountain", "horse", "ship", "city", "field", "story", "picture", "morning", "evening", "table", "wall", "door",
    "light", "voice", "water", "stone", "glass", "silver", "train", "school", "family", "friend", "question",
    "answer", "country", "weather", "animal", "flower",
)  # fmt: skip
VERBS = (
    "found", "carried", "opened", "watched", "followed", "crossed", "painted", "built", "remembered", "closed",
    "reached", "moved", "turned", "washed", "sold", "kept", "wrote", "heard", "lifted", "covered", "repaired",
    "gave", "took", "brought", "left", "saw", "held", "made", "broke", "filled",
)  # fmt: skip
ADJECTIVES = (
    "old", "quiet", "green", "small", "heavy", "bright", "cold", "early", "narrow", "warm", "empty", "gentle",
    "distant", "broken", "simple", "strange", "careful", "famous", "golden", "dark", "young", "tall", "open",
    "deep", "soft",
)  # fmt: skip
PLACES = ("near the", "behind the", "across the", "under the", "beside the", "before the", "after the", "inside the")
WORDS_OF_SENTENCE = 11  # what `_sentence` makes, with its full stop

ASSISTANT = (
    "You are a careful assistant. Answer in plain English, in full sentences, and at length when that helps. "
    "Use a tool when one fits; say so when you do not know."
)
TOOLS: tuple[dict[str, Any], ...] = tuple(
    {
        "type": "function",
        "function": {
            "name": name,
            "description": about,
            "parameters": {
                "type": "object",
                "properties": {word: {"type": "string", "description": said} for word, said in fields},
                "required": [fields[0][0]],
            },
        },
    }
    for name, about, fields in (
        ("read_file", "Read a text file of the project.", (("path", "Where it lies."), ("lines", "Which, as 10-40."))),
        ("search", "Find text in the project.", (("query", "What to look for."), ("folder", "Where."))),
        ("run_tests", "Run tests and report what failed.", (("target", "Which tests."), ("options", "Further flags."))),
        ("write_file", "Replace a file.", (("path", "Where it lies."), ("content", "Its whole new text."))),
    )
)


def subject(random: Random) -> str:
    """What a story may be about."""
    one, other = random.choice(ADJECTIVES), random.choice(ADJECTIVES)
    return f"the {one} {random.choice(NOUNS)} and a {other} {random.choice(NOUNS)}"


def passage(random: Random, words: int) -> str:
    """Prose of about `words` words."""
    return " ".join(_sentence(random) for _ in range(max(1, round(words / WORDS_OF_SENTENCE))))


def program(random: Random, words: int) -> str:
    """Python functions of about `words` tokens."""
    lines: list[str] = []
    size = 0
    while size < words:
        one, two, three = random.sample(NOUNS, 3)
        verb = random.choice(VERBS)
        lines += [
            f"def {verb}_{one}({two}, {three}):",
            f'    """Return the {one} of {two}."""',
            f"    total = {random.randrange(100)}",
            f"    for item in {two}:",
            f"        if item.{three} > {random.randrange(100)}:",
            f"            total += item.{one} * {three}",
            "    return total",
            "",
        ]
        size += 70
    return "\n".join(lines)


def _sentence(random: Random) -> str:
    first, second, third = random.choice(NOUNS), random.choice(NOUNS), random.choice(NOUNS)
    one, two = random.choice(ADJECTIVES), random.choice(ADJECTIVES)
    return f"The {one} {first} {random.choice(VERBS)} the {two} {second} {random.choice(PLACES)} {third}."
