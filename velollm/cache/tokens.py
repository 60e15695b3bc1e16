"""Text to tokens. Code, quotations and formulas become one verbatim token each, so no later rule can look inside them.

A token is a plain string without white space: words and numbers in lower case,
`,` and `.` for pauses and sentence ends,
verbatim spans behind a back-tick or a double quote with their spaces made visible.
"""

from __future__ import annotations

import re
import unicodedata

import attrs

from velollm.cache.lexicon import (
    ARTICLES,
    CASE_SENSITIVE,
    CONTRACTIONS,
    MISSPELLINGS,
    NAMESAKES,
    NUMBER_WORDS,
    QUESTION_WORDS,
    UNITS,
)

__all__ = ["THOUSANDS", "Text", "is_verbatim", "part", "tokenize"]

_SMART = str.maketrans(
    {
        "\u2018": "'", "\u2019": "'", "\u02bc": "'", "\u00b4": "'", "\u201c": '"', "\u201d": '"', "\u201e": '"',
        "\u00ab": '"', "\u00bb": '"', "\u2010": "-", "\u2011": "-", "\u2013": " , ", "\u2014": " , ", "\u2026": " . ",
        "\u00a0": " ", "\u202f": " ", "\u2009": " ", "\u200b": "", "\ufeff": "", "\u00bf": " ", "\u00a1": " ",
    }
)  # fmt: skip
_SPAN = re.compile(r"```.*?```|`[^`]+`|\"[^\"]*\"|(?<![\w'])'[^'\n]+'(?!\w)", re.DOTALL)
_MARKS = re.compile("[`\"']")
# Most of a prompt is words, with a pause behind some of them.
_CHUNKS = re.compile(r"([A-Za-z]+)([.,;:!?)…]*)(?!\S)|(\S+)")
_SPELLED = {word: (number,) for word, number in NUMBER_WORDS.items()} | {
    word: tuple(spelled.split()) for word, spelled in CONTRACTIONS.items()
}
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*'?\Z")
_HYPHENATED = re.compile(r"[^\W_]+(?:-[^\W_]+)+\Z")
_NUMBER = re.compile(r"[-+]?\d[\d.,]*\Z")
_MEASURE = re.compile(r"([-+]?\d[\d.,]*)(°?[A-Za-z]{1,3}|%)\Z")
_MONEY = re.compile(r"([$€£¥])(\d[\d.,]*)\Z")
_NAME = re.compile(r"\.?[^\W_]+(?:[./&][^\W_]+)*(?:\+\+|#)?\Z")
_INITIALS = re.compile(r"(?:[A-Za-z]\.){2,}[A-Za-z]?\Z")
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_PAYLOAD = re.compile(r":\s+(?=\S)")
_PREAMBLE = re.compile(
    r"(?:(?:hi|hello|hey)(?: there)?[,.! ]*)?"
    r"(?:(?:so|ok|please|here is|here's|i have|i've got|i got|my|this is)\b[ ,]*)*"
    r"(?:(?:a|one|another|my|the|just|quick|short|simple|small|little|dumb|silly|stupid) )*"
    r"(?:one|questions?(?: (?:for you|is|about [\w ]{1,30}))?"
    r"|(?:(?:can|could|would) you )?(?:please )?help(?: me)?(?: out)?(?: with this)?)?\Z"
)
_WH_IS = frozenset(["what", "who", "where", "when", "why", "how", "that", "it", "there", "here", "he", "she"])
_CLOSERS = ".,;:!?)…"
_PAUSES = frozenset(",.")
_TO_MEND = frozenset([*MISSPELLINGS, "dose", "doe", *_PAUSES])
_ENDS = frozenset(".!?;")
_EMOJI = frozenset("🙂😊😀😃😄🙏👋👍😁🤗❤")


@attrs.frozen(kw_only=True)
class Text:
    """A prompt in tokens. `payload` is what follows an instruction's colon, verbatim; `names` are the words that the
    writer capitalised inside a sentence, in lower case."""

    tokens: tuple[str, ...]
    payload: str
    names: frozenset[str]


def is_verbatim(token: str) -> bool:
    """True for code, quotations, formulas and symbols: tokens that must agree to the letter."""
    return token[0] in '`"' or not (token[0].isalnum() or token in (".", ","))


def tokenize(text: str) -> Text:
    """Split one prompt. Linear in its length; the caller bounds the length."""
    text, payload = part(text)
    shouted, cased = _casing(text)
    out: list[str] = []
    names: set[str] = set()
    position = 0
    for span in _SPAN.finditer(text) if _MARKS.search(text) else ():
        _plain(text[position : span.start()], out, names, shouted, cased)
        mark = "`" if span.group()[0] == "`" else '"'
        out.append(mark + "␣".join(span.group().strip("`\"'").split(" ")).replace("\n", "␤"))
        position = span.end()
    _plain(text[position:] if position else text, out, names, shouted, cased)
    return Text(tokens=tuple(_mend(out)), payload=payload, names=frozenset(names))


def part(text: str) -> tuple[str, str]:
    """A prompt in plain punctuation, without what says only that a question comes, parted into what is read and a
    payload that is not."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", text).translate(_SMART)
    return _split_payload(_unquoted(text.strip()))


def _unquoted(text: str) -> str:
    """A prompt that stands in quotation marks as a whole is no quotation."""
    whole = text[:1] == '"' == text[-1:] and len(text) > 2 and text.count('"') == 2 and " " in text
    return text[1:-1].strip() if whole else text


def _split_payload(text: str) -> tuple[str, str]:
    """`Translate to French: good morning` is an instruction and its payload; the payload is compared to the letter."""
    found = _PAYLOAD.search(text) if ":" in text else None
    if found is None or text.startswith("`"):
        return text, ""
    head = text[: found.start()]
    if _is_preamble(head):
        return text[found.end() :], ""
    if head.count("`") % 2 or head.count('"') % 2:
        return text, ""
    return head, text[found.end() :]


def _is_preamble(head: str) -> bool:
    """`I have a question: ...` carries no instruction of its own."""
    return _PREAMBLE.match(head.lower()) is not None


def _casing(text: str) -> tuple[bool, bool]:
    """Whether the text is shouted, and whether its capitals carry information (neither shouted nor Title Case)."""
    words = [w for w in text.split() if w[0].isalpha()]
    small = [w for w in words if not w[0].isupper()]
    shouted = False
    if len(words) > 1 and not (small and small[0][0].islower()):
        letters = "".join(words)
        shouted = letters.upper() == letters and letters.lower() != letters
    titled = len(words) > 3 and len(small) <= 1
    return shouted, not shouted and not titled


def _plain(text: str, out: list[str], names: set[str], shouted: bool, cased: bool) -> None:
    for word, tail, other in _CHUNKS.findall(text):
        if not word:
            _odd(other, out, names, shouted, cased)
            continue
        if word == "us" or not word.islower():
            _word(word, out, names, shouted, cased)
        elif word in _SPELLED:
            out.extend(_SPELLED[word])
        else:
            out.append(word)
        if tail:
            out.append("," if _ENDS.isdisjoint(tail) else ".")


def _odd(raw: str, out: list[str], names: set[str], shouted: bool, cased: bool) -> None:
    """What is more than a word."""
    opening = raw.lstrip("(")
    core = opening if _INITIALS.match(opening) else opening.rstrip(_CLOSERS)
    if opening.count("(") and "(" in core and core.count("(") != core.count(")"):
        core = core + ")"
    if not any(c.isalnum() for c in core):
        core = opening if len(opening) > 1 and any(c not in _CLOSERS for c in opening) else core
    tail = opening[len(core) :]
    if len(opening) < len(raw):
        out.append(",")
    if core:
        _chunk(core, out, names, shouted, cased)
    if tail:
        out.append("." if any(c in _ENDS for c in tail) else ",")


def _chunk(core: str, out: list[str], names: set[str], shouted: bool, cased: bool) -> None:
    if _WORD.match(core):
        _word(core, out, names, shouted, cased)
    elif _NUMBER.match(core):
        out.append(THOUSANDS.sub("", core))
    elif (found := _MONEY.match(core)) is not None:
        out.extend((found[1], THOUSANDS.sub("", found[2])))
    elif (found := _MEASURE.match(core)) is not None and found[2].lower().lstrip("°") in UNITS | {"%"}:
        out.extend((THOUSANDS.sub("", found[1]), found[2] if found[2] in ("M", "G", "T") else found[2].lower()))
    elif _INITIALS.match(core):
        _word(core.replace(".", ""), out, names, shouted, cased)
    elif _HYPHENATED.match(core):
        for part in core.split("-"):
            _chunk(part, out, names, shouted, cased)
    elif core.lower() in CONTRACTIONS:
        out.extend(CONTRACTIONS[core.lower()].split())
    elif core == "%":
        out.append(core)
    elif core == "-":
        out.append(",")
    elif _NAME.match(core):
        out.append(core.lower())
    elif not all(c in _EMOJI or c == "\ufe0f" for c in core):
        out.append("`" + core)


def _word(raw: str, out: list[str], names: set[str], shouted: bool, cased: bool) -> None:
    word = raw.lower()
    first = not out or out[-1] == "."
    if cased and raw[0].isupper() and not first and word not in ("i", "i'm", "i've", "i'd", "i'll"):
        names.add(word.removesuffix("'s").removesuffix("'"))
    if word in CONTRACTIONS:
        out.extend(CONTRACTIONS[word].split())
    elif "'" in word:
        _apostrophe(word, out)
    elif not shouted and _keeps_case(raw, word, out, first, cased):
        out.append(raw if raw.isupper() else raw.capitalize())
    elif word == "us" and out and out[-1] == "the":
        out.append("US")
    else:
        out.append(NUMBER_WORDS.get(word, word))


def _keeps_case(raw: str, word: str, out: list[str], first: bool, cased: bool) -> bool:
    if len(raw) == 1:
        return raw == "A" and cased and not first
    if word not in CASE_SENSITIVE and not (word in NAMESAKES and out and out[-1] in ARTICLES):
        return False
    return raw.isupper() or (cased and not first and raw[0].isupper())


def _apostrophe(word: str, out: list[str]) -> None:
    stem, _, suffix = word.rpartition("'")
    if suffix == "t" and stem.endswith("n"):
        out.extend((stem[:-1], "not"))
    elif suffix in ("re", "ve", "ll", "d", "m"):
        out.extend((stem, {"re": "are", "ve": "have", "ll": "will", "d": "would", "m": "am"}[suffix]))
    elif suffix == "s":
        out.extend((stem, "is" if stem in _WH_IS else "'s"))
    elif suffix == "":
        out.extend((stem, "'s"))
    else:
        out.append(word)


def _mend(tokens: list[str]) -> list[str]:
    """Slips of function words, doubled and trailing pauses."""
    while tokens and tokens[-1] in _PAUSES:
        tokens.pop()
    if _TO_MEND.isdisjoint(tokens):
        return tokens
    out: list[str] = []
    for token in tokens:
        word = MISSPELLINGS.get(token, token)
        if word in ("dose", "doe") and out and out[-1] in QUESTION_WORDS:
            word = "does"
        if word in _PAUSES:
            if not out:
                continue
            if out[-1] in _PAUSES:
                out[-1] = "." if "." in (word, out[-1]) else ","
                continue
        out.append(word)
    return out
