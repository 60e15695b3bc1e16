"""Whether two prompts ask the same: default-deny. Every token of the difference must be accounted for, or the hit is
refused.

Similarity plays no part here. A refusal names the guard and the words, so that `explain` can say why.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import attrs

from velollm.cache.canonical import Canonical
from velollm.cache.frames import Form, parse
from velollm.cache.lexicon import NEGATIONS, OPEN_LISTS, PLATFORMS, PREPOSITIONS, PRONOUNS, QUESTION_WORDS, UNITS
from velollm.cache.tokens import is_verbatim
from velollm.cache.words import is_known, is_slip, is_slip_of_name, stem

__all__ = ["HEAD_LINKS", "Question", "Refusal", "judge", "read"]

# Intents to which one and many are the same: `what are black holes` is `what is a black hole`.
_LOOSE_NUMBER = frozenset(
    ["HOWTO", "RECIPE", "WHAT", "WHATDO", "WHY", "HOW", "COUNT", "PURPOSE", "WHERE", "WHO",
     "EXPLAIN", "MEAN", "TIPS", "WHEN", "HOWMUCH"]
)  # fmt: skip
_LOOSE_ARTICLE = frozenset(["HOWTO", "RECIPE", "TIPS"])
HEAD_LINKS = ("of", "in", "for", "on")
_MAX_SLIPS = 3
_MAX_STRAY = 5


@attrs.frozen(kw_only=True)
class Refusal:
    """A guard that refused, and the words it could not account for."""

    guard: str
    detail: str

    def __str__(self) -> str:
        return f"{self.guard}: {self.detail}" if self.detail else self.guard


_DIFFERENT = Refusal(guard="word", detail="")


@attrs.frozen(kw_only=True)
class Question:
    """A prompt, read: its canonical form and its frame. `figures` are the words of its body that are no words, numbers
    above all: no guard lets two questions pass that differ in one. `odd`: a word in it may be a slip of another."""

    canonical: Canonical
    form: Form
    figures: frozenset[str]
    odd: bool


def read(canonical: Canonical) -> Question | None:
    """Read a prompt for the semantic tier, or None where it has no form to compare."""
    form = parse(canonical)
    if form is None or not form.body:
        return None
    return Question(
        canonical=canonical,
        form=form,
        figures=frozenset([word for word in form.body if not word.isalpha()]),
        odd=not all(map(is_known, canonical.clauses.split(" "))),
    )


def judge(asked: Question, stored: Question, *, brief: bool = False) -> Refusal | None:
    """None if both prompts ask the same; else the guard that stands between them (`brief`: a guard, without words)."""
    refusal = _meet(asked.form, stored.form, brief)
    if refusal is None or refusal.guard in ("payload", "context") or _beyond_mending(asked.form, stored.form):
        return refusal
    mended = _mend(asked.canonical, stored.canonical)
    if mended is not None:
        left, right = parse(mended[0]), parse(mended[1])
        if left is not None and right is not None and _meet(left, right, brief=True) is None:
            return None
    return refusal


def _beyond_mending(a: Form, b: Form) -> bool:
    """Whether the difference has a number or code in it, which no corrected slip takes away."""
    return any(not word.isalpha() for word in set(a.body) ^ set(b.body))


def _meet(a: Form, b: Form, brief: bool) -> Refusal | None:
    if a.payload != b.payload:
        return Refusal(guard="payload", detail="the text after the colon differs")
    if a.preface != b.preface:
        return Refusal(guard="context", detail="the sentences before the question differ")
    if a.body != b.body and not _same_by_compounding(a.body, b.body):
        return _DIFFERENT if brief else _difference(a, b)
    common = a.intents & b.intents
    if not common:
        return Refusal(guard="question", detail=f"{_names(a.intents)} is not {_names(b.intents)}")
    return _moods(a, b) or _articles(a, b, common) or _number(a, b, common)


def _names(intents: frozenset[str]) -> str:
    return "/".join(sorted(intents)).lower()


def _moods(a: Form, b: Form) -> Refusal | None:
    differing = a.moods ^ b.moods
    if not differing or (differing == {"past"} and "ABOUT" in a.intents | b.intents):
        return None
    guard = "negation" if "not" in differing else "tense"
    return Refusal(guard=guard, detail=", ".join(sorted(differing)))


def _articles(a: Form, b: Form, common: frozenset[str]) -> Refusal | None:
    """`a president` is not `the president`, where both say which."""
    if common & _LOOSE_ARTICLE:
        return None
    mine, theirs = _by_noun(a.articles), _by_noun(b.articles)
    for noun in sorted(mine.keys() & theirs.keys()):
        some_or_all = noun in OPEN_LISTS and mine[noun] | theirs[noun] == {"some", "the"}
        if mine[noun] != theirs[noun] and not some_or_all:
            return Refusal(guard="article", detail=f"{'/'.join(sorted(mine[noun] ^ theirs[noun]))} {noun}".strip())
    return None


def _by_noun(articles: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for article, noun in articles:
        found.setdefault(noun, set()).add(article)
    return found


def _number(a: Form, b: Form, common: frozenset[str]) -> Refusal | None:
    """`write poems` is not `write a poem`; `what are black holes` is `what is a black hole`."""
    if common & _LOOSE_NUMBER:
        return None
    differing = {stem(w) for w in set(a.plain) - set(b.plain)} & {stem(w) for w in set(b.plain) - set(a.plain)}
    return Refusal(guard="singular", detail=", ".join(sorted(differing))) if differing else None


def _same_by_compounding(a: tuple[str, ...], b: tuple[str, ...]) -> bool:
    """`capital of Peru` is `Peru('s) capital`, `branch in git` is `git branch`: a phrase behind its head may stand
    before it. Only one side is ever rewritten, so two arguments cannot trade places."""
    if sorted(t for t in a if t not in HEAD_LINKS) != sorted(t for t in b if t not in HEAD_LINKS):
        return False
    return b in _compounds(a, 2) or a in _compounds(b, 2)


def _compounds(body: tuple[str, ...], depth: int) -> Iterator[tuple[str, ...]]:
    for i, token in enumerate(body):
        if token not in HEAD_LINKS or not 0 < i < len(body) - 1:
            continue
        end = next((j for j in range(i + 1, len(body)) if body[j] in PREPOSITIONS or body[j] == "|"), len(body))
        phrase, start = body[i + 1 : end], i - 1
        if not 0 < len(phrase) <= 3:
            continue
        while start >= 0 and body[start] not in PREPOSITIONS and body[start] != "|":
            made = body[:start] + phrase + body[start:i] + body[end:]
            yield made
            if depth > 1:
                yield from _compounds(made, depth - 1)
            start -= 1


def _mend(a: Canonical, b: Canonical) -> tuple[Canonical, Canonical] | None:
    """Both prompts with the slips of one corrected after the other; None if there is nothing to correct."""
    left, right = a.clauses.split(" "), b.clauses.split(" ")
    _join(left, right)
    _join(right, left)
    stray_left = [t for t in dict.fromkeys(left) if t not in right and t not in (",", ".")]
    stray_right = [t for t in dict.fromkeys(right) if t not in left and t not in (",", ".")]
    if len(stray_left) > _MAX_STRAY + 2 or len(stray_right) > _MAX_STRAY + 2:
        return None
    names = a.names | b.names
    mended = 0
    for word in stray_left:
        for other in stray_right:
            if names & {word, other} and not is_slip_of_name(word, other):
                continue
            if is_slip(word, other):
                left = [other if t == word else t for t in left]
            elif is_slip(other, word):
                right = [word if t == other else t for t in right]
            else:
                continue
            mended += 1
            stray_right.remove(other)
            break
    if mended > _MAX_SLIPS:
        return None
    clauses = " ".join(left), " ".join(right)
    if clauses == (a.clauses, b.clauses):
        return None
    return attrs.evolve(a, clauses=clauses[0]), attrs.evolve(b, clauses=clauses[1])


def _join(tokens: list[str], others: list[str]) -> None:
    """`ice cream` becomes `icecream` if that is how the other prompt writes it."""
    words = set(others)
    i = 0
    while i + 1 < len(tokens):
        joined = tokens[i] + tokens[i + 1]
        if len(joined) > 4 and joined in words and joined not in tokens and joined.isalpha():
            tokens[i : i + 2] = [joined]
        i += 1


def _difference(a: Form, b: Form) -> Refusal:
    left, right = Counter(a.body), Counter(b.body)
    words = sorted(((left - right) + (right - left)).keys(), key=_weight)
    if not words:
        return Refusal(guard="order", detail="the same words stand in another order")
    return Refusal(guard=_guard_of(words[0]), detail=", ".join(words[:6]))


def _weight(word: str) -> int:
    order = ("code", "number", "negation", "unit", "question word", "person", "preposition", "technology", "word")
    return order.index(_guard_of(word))


def _guard_of(word: str) -> str:
    if is_verbatim(word):
        return "code"
    if any(c.isdigit() for c in word):
        return "number"
    for guard, members in (
        ("negation", NEGATIONS),
        ("question word", QUESTION_WORDS),
        ("person", PRONOUNS),
        ("preposition", PREPOSITIONS),
        ("technology", PLATFORMS),
        ("unit", UNITS),
    ):
        if word in members:
            return guard
    return "word"
