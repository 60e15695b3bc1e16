"""What a question asks, apart from how it is put: `How do I`, `How can I`, `What is the best way to` are one frame.

`parse` turns the canonical clauses of a prompt into a `Form`: the intents it can be read as, its tense and modality,
and the ordered words of its body. Two prompts mean the same when their forms meet (guards.py).
"""

from __future__ import annotations

import re

import attrs

from velollm.cache.canonical import Canonical
from velollm.cache.frame_rules import FRAMES, REWRITES, first_frame, may_rewrite
from velollm.cache.lexicon import (
    ABOUT_WORDS,
    ANYONE,
    ARTICLES,
    CONTAINERS,
    EVERYONE,
    FRONTED,
    KEEPS_NEGATION,
    MAKING_FOOD,
    MEDIUMS,
    MODALS,
    OWNERS,
    PLATFORMS,
    POSSESSED,
    PREPOSITIONS,
    PRESENT_FORMS,
    SUBORDINATORS,
    TENSES,
)
from velollm.cache.tokens import is_verbatim
from velollm.cache.words import base_of_gerund, base_of_past, stem, synonyms

__all__ = ["Form", "parse"]

_CLAUSE_START = re.compile(r"(?:what|which|who|when|where|why|how)\b")
_QUESTION_START = re.compile(r"(?:what|which|who|when|where|why|how|is|are|can|could|should|do|does|did|will|would)\b")

# `My phone got wet, what ...` is two sentences.
_SITUATION = re.compile(
    r"((?:i|we|my|our|the|it|there) [^,]{4,100}) , "
    r"(?=(?:what|how|where|when|why|who|which|should|can|could|is|are|do)\b)"
)
_PASSIVE = re.compile(r"how (?:can|could|should|may|must|do) (.+) be (\w+)$")
_ASIDE = re.compile(r"(.+?) , ((?:in|on|with|using|for) [^,]{1,40}) , (.+)")


@attrs.frozen(kw_only=True)
class Form:
    """`articles` holds each article with the word it stands before; `plain` is the body before plurals were cut."""

    intents: frozenset[str]
    moods: frozenset[str]
    body: tuple[str, ...]
    plain: tuple[str, ...]
    articles: tuple[tuple[str, str], ...]
    preface: str
    payload: str


def parse(canonical: Canonical) -> Form | None:
    """The form of a prompt, or None where there are no words to read (several lines, or empty)."""
    preface, _, sentence = canonical.clauses.rpartition(" . ")
    if not sentence:
        return None
    if (found := _SITUATION.match(sentence)) is not None:
        preface = f"{preface} . {found[1]}" if preface else found[1]
        sentence = sentence[found.end() :]
    preface = " ".join(word for word in preface.split(" ") if word != "the")
    sentence = _unfront(sentence)
    sentence = _active(" ".join(t for t in sentence.split(" ") if t != ","))
    if may_rewrite(sentence):
        for pattern, replacement in REWRITES:
            sentence = pattern.sub(replacement, sentence, count=1)
    intents, moods, rest = _frame(sentence)
    return _body(intents, moods, rest, canonical, preface)


def _unfront(sentence: str) -> str:
    """`In Excel, how do I ...` → `how do I ... in Excel`. `Python: how ...` arrives as a payload and is left alone."""
    if sentence.count(" , ") > 1:
        sentence = _ASIDE.sub(r"\1 \3 \2", sentence)
    first, _, rest = sentence.partition(" ")
    if first in SUBORDINATORS:
        front, _, main = sentence.partition(" , ")
        return f"{main} {front}" if _QUESTION_START.match(main) else sentence
    if first in FRONTED:
        front, comma, main = sentence.partition(" , ")
        if comma and len(front.split()) <= 8:
            return f"{main} {front}"
        found = _CLAUSE_START.search(rest)
        if found is not None and 0 < found.start() <= 48:
            front = f"{first} {rest[: found.start()].strip()}"
            return f"{rest[found.start() :]} {front}"
    return sentence


def _active(sentence: str) -> str:
    """`how can pip be installed` → `how do i install pip`."""
    found = _PASSIVE.match(sentence)
    verb = None if found is None else base_of_past(found[2])
    return sentence if found is None or verb is None else f"how do i {verb} {found[1]}"


def _frame(sentence: str) -> tuple[frozenset[str], set[str], str]:
    number = first_frame(sentence)
    if number is None:
        readings = {"DO", "WHAT"} if " of " in sentence or " 's " in sentence else {"DO"}
        return frozenset(readings), set(), sentence
    pattern, intents = FRAMES[number]
    found = pattern.match(sentence)
    groups = {} if found is None else found.groupdict()
    moods = {m for word in (groups.get("aux") or "").split() if (m := TENSES.get(word) or MODALS.get(word))}
    if "not" in (groups.get("neg") or ""):
        moods.add("not")
    verb = "make " if "RECIPE" in intents else ""
    return intents, moods, f"{verb}{groups.get('lead') or ''} {groups.get('rest') or ''}".strip()


def _body(intents: frozenset[str], moods: set[str], rest: str, canonical: Canonical, preface: str) -> Form:
    howto = bool(intents & {"HOWTO", "RECIPE"})
    articles: list[tuple[str, str]] = []
    plain: list[str] = []
    tokens = _inner_not(rest.split(), moods, intents)
    for i, word in enumerate(tokens):
        before = tokens[i - 1] if i else ""
        if word in ARTICLES or word == "some":
            after = stem(tokens[i + 1]) if i + 1 < len(tokens) else ""
            articles.append(("a" if word == "an" else word, after))
        elif word == "'s" or (word in PRESENT_FORMS and before != "to") or (howto and word in OWNERS):
            continue
        elif word in TENSES or word in MODALS:
            moods.add(TENSES.get(word) or MODALS[word])
        elif word == "there" and before in ("is", "are", "was", "were", ""):
            continue
        else:
            plain.append(word)
    _drop_recipient(plain, intents)
    _untense(plain, moods, intents)
    if (howto or "TIPS" in intents) and plain:
        plain[0] = base_of_gerund(plain[0]) or plain[0]
    if intents & {"HOWMUCH", "COUNT", "YESNO"} and moods & {"can", "should", "must"}:
        plain[:] = ["i" if w in ANYONE else w for w in plain]
    if howto and len(plain) > 1 and plain[0] in MAKING_FOOD and plain[1] not in PREPOSITIONS:
        plain[0] = "make"
    elif "WHY" in intents and plain and plain[0] in EVERYONE:
        plain[0] = "people"
    stems = [t if is_verbatim(t) else stem(t) for t in plain]
    if not (intents & {"MEAN", "STANDS"} or ABOUT_WORDS.intersection(plain)):
        stems = synonyms().unify(stems, canonical.names)
    body = _settle(stems)
    return Form(
        intents=intents, moods=frozenset(moods), body=tuple(body), plain=tuple(plain), articles=tuple(articles),
        preface=preface, payload=canonical.payload,
    )  # fmt: skip


def _untense(plain: list[str], moods: set[str], intents: frozenset[str]) -> None:
    """`when the wall fell` is `when did the wall fall`."""
    if not moods and intents & {"WHEN", "WHY", "HOW", "WHERE"} and len(plain) > 1:
        for i in range(1, len(plain)):
            if (base := base_of_past(plain[i])) is not None:
                plain[i] = base
                moods.add("past")
                return


def _inner_not(tokens: list[str], moods: set[str], intents: frozenset[str]) -> list[str]:
    """`why does my laptop not charge` is `why doesn't my laptop charge`: the negation of an inverted clause moves
    out."""
    if tokens.count("not") != 1 or not intents & {"WHY", "YESNO"}:
        return tokens
    at = tokens.index("not")
    subject = tokens[:at]
    short = len(subject) <= 1 or (len(subject) <= 3 and subject[0] in POSSESSED | ARTICLES)
    if not short or KEEPS_NEGATION & set(subject):
        return tokens
    moods.add("not")
    return subject + tokens[at + 1 :]


def _drop_recipient(plain: list[str], intents: frozenset[str]) -> None:
    if not intents & {"DO", "GIVE", "WRITE", "EXPLAIN", "SUGGEST"}:
        return
    if len(plain) > 2 and plain[-2] in ("for", "to") and plain[-1] in ("me", "us"):
        del plain[-2:]
    if len(plain) > 2 and plain[1] in ("me", "us"):
        del plain[1]


def _settle(body: list[str]) -> list[str]:
    """Put phrases whose place is free into one order: the platform last, `from` before `to`, operands sorted."""
    body = ["with" if t == "using" else t for t in body]
    moved: list[str] = []
    i = 0
    while i < len(body) - 1:
        ends = i + 2 == len(body) or body[i + 2] in PREPOSITIONS
        if body[i] in MEDIUMS and body[i + 1] in PLATFORMS and ends:
            moved += ["in", body[i + 1]]
            del body[i : i + 2]
        else:
            if body[i] == "of" and body[i + 1] in CONTAINERS:
                body[i] = "in"
            i += 1
    return _sort_operands(_from_before_to(body)) + moved


def _segments(body: list[str]) -> list[list[str]]:
    out: list[list[str]] = [[]]
    for token in body:
        if token in PREPOSITIONS:
            out.append([token])
        else:
            out[-1].append(token)
    return out


def _from_before_to(body: list[str]) -> list[str]:
    if "from" not in body or "to" not in body:
        return body
    parts = _segments(body)
    starts = [part[0] if part else "" for part in parts]
    if starts.count("from") == 1 and starts.count("to") == 1 and starts.index("to") < starts.index("from"):
        parts.insert(starts.index("to"), parts.pop(starts.index("from")))
    return [token for part in parts for token in part]


def _sort_operands(body: list[str]) -> list[str]:
    """`difference between X and Y` has no order; `from X to Y` has."""
    if (
        "between" not in body
        or body.count("and") != 1
        or not {"difference", "distance", "similarity", "compare"} & set(body)
    ):
        return body
    start, middle = body.index("between"), body.index("and")
    left, right = body[start + 1 : middle], body[middle + 1 :]
    if middle < start or set(right) & PREPOSITIONS:
        return body
    first, second = sorted((left, right))
    return [*body[: start + 1], *first, "and", *second]
