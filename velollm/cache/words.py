"""Single words: their stems, their synonyms, whether English knows them, and whether one is a slip of another."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache, lru_cache
from importlib.resources import files

import attrs

from velollm.cache.lexicon import ENDING_IE, IRREGULAR_PASTS, IRREGULAR_PLURALS, NOT_PLURAL, PLATFORMS

__all__ = ["Synonyms", "base_of_gerund", "base_of_past", "is_known", "is_slip", "is_slip_of_name", "stem", "synonyms"]

_PREFIXES = (
    "re",
    "un",
    "non",
    "pre",
    "over",
    "under",
    "mis",
    "anti",
    "auto",
    "multi",
    "sub",
    "super",
    "inter",
    "micro",
)
# Chemistry and medicine tell their substances apart by the last syllable, so a slip there is never taken for one.
_TELLING_ENDS = re.compile(
    r"(?:ine|one|ol|ide|ate|ite|ase|ose|in|yl|ene|ane|yne|ic|ous|ium|um|azole|amide|pril|sartan|statin|mab|nib|vir|tide|al)\Z"
)
_MIN_SLIP = 4
_BEGIN = 3  # letters by which a page of the dictionary is found
_TWO_SLIPS = 8
_LONG_NAME = 8
_LONGEST_ACRONYM = 3


@lru_cache(maxsize=16384)
def stem(word: str) -> str:
    """The singular of a plural, the base of a third person: `boxes` → `box`, `works` → `work`. Nothing else is cut."""
    if word in IRREGULAR_PLURALS:
        return IRREGULAR_PLURALS[word]
    if (
        len(word) < 4
        or word[-1] != "s"
        or not word.isalpha()
        or word in NOT_PLURAL
        or word.endswith(("ss", "us", "is"))
    ):
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-1] if word[:-1] in ENDING_IE else word[:-3] + "y"
    if word.endswith(("sses", "xes", "ches", "shes", "zzes")):
        return word[:-2]
    return word[:-1]


def base_of_gerund(word: str) -> str | None:
    """`changing` → `change`; None for what is not a verb in -ing."""
    return _base(word, "ing")


def base_of_past(word: str) -> str | None:
    """`invented` → `invent`, `fell` → `fall`; None for what is not a past tense."""
    return IRREGULAR_PASTS.get(word) or _base(word, "ed")


def _base(word: str, ending: str) -> str | None:
    bare = word.removesuffix(ending)
    if bare == word or len(bare) < 2 or not re.search("[aeiouy]", bare):
        return None
    undoubled = bare[:-1] if len(bare) > 3 and bare[-1] == bare[-2] and bare[-1] not in "sl" else ""
    for candidate in (undoubled, bare + "e", bare):
        if len(candidate) > 2 and (len(candidate) == 3 or _listed(candidate)):
            return candidate
    return None


@attrs.frozen(kw_only=True)
class Synonyms:
    """Words and phrases by the one word that stands for them all. Keys and values are stems."""

    words: dict[str, str]
    phrases: dict[str, tuple[tuple[tuple[str, ...], str], ...]]
    known: frozenset[str]

    def unify(self, tokens: list[str], names: frozenset[str]) -> list[str]:
        """Replace each word and phrase by its representative; words the writer capitalised are left as they are,
        unless they are short enough for initials (`PC`, `US`)."""
        out: list[str] = []
        i = 0
        while i < len(tokens):
            token = tokens[i]
            for phrase, word in self.phrases.get(token, ()):
                if tuple(tokens[i : i + len(phrase)]) == phrase:
                    out.append(word)
                    i += len(phrase)
                    break
            else:
                named = token in names and token not in PLATFORMS and len(token) > _LONGEST_ACRONYM
                out.append(token if named else self.words.get(token, token))
                i += 1
        return out

    @classmethod
    def parse(cls, lines: Iterable[str]) -> Synonyms:
        """Read the data file. A word in two groups would join them, so it is an error."""
        words: dict[str, str] = {}
        phrases: dict[str, list[tuple[tuple[str, ...], str]]] = {}
        seen: set[str] = set()
        for line in lines:
            if not line.strip() or line.startswith("#"):
                continue
            terms = [" ".join(stem(w) for w in term.split()) for term in line.split(",")]
            head = terms[0].replace(" ", "_")
            for term in dict.fromkeys(terms):
                if term in seen:
                    raise ValueError(f"synonyms: {term!r} is in two groups")
                seen.add(term)
                parts = tuple(term.split())
                if len(parts) > 1:
                    phrases.setdefault(parts[0], []).append((parts, head))
                elif term != head:
                    words[term] = head
        ordered = {k: tuple(sorted(v, key=lambda p: -len(p[0]))) for k, v in phrases.items()}
        return cls(words=words, phrases=ordered, known=frozenset(seen))


@cache
def synonyms() -> Synonyms:
    """The synonyms that come with the package."""
    text = (files(__package__) / "data" / "synonyms.txt").read_text(encoding="utf-8")
    return Synonyms.parse(text.splitlines())


@cache
def _dictionary() -> bytes:
    """Sorted words, one a line. Kept as the bytes they are: a list of them would take seven times the memory."""
    return b"\n" + (files(__package__) / "data" / "words.txt").read_bytes()


@lru_cache(maxsize=16384)
def is_known(word: str) -> bool:
    """Whether a word is English or a well-known technical name. Words under four letters always are."""
    if len(word) < _MIN_SLIP or word in PLATFORMS or not word.isascii() or not word.isalpha():
        return True
    if _listed(word) or word in synonyms().known:
        return True
    return any(word.startswith(p) and len(word) - len(p) >= _MIN_SLIP and _listed(word[len(p) :]) for p in _PREFIXES)


def _listed(word: str) -> bool:
    return word.isalpha() and _dictionary().find(f"\n{word}\n".encode(), *_page(word[:_BEGIN])) >= 0


@lru_cache(maxsize=32768)
def _page(begin: str) -> tuple[int, int]:
    """Where in the dictionary the words are that begin so."""
    return _line(begin.encode()), _line(begin.encode() + b"~") + 1


def _line(wanted: bytes) -> int:
    """Where the first line begins that is not before `wanted`, its line break included."""
    listed = _dictionary()
    low, high = 0, len(listed) - 1
    while low < high:
        start = listed.rfind(b"\n", low, (low + high) // 2 + 1)
        end = listed.index(b"\n", start + 1)
        if listed[start + 1 : end] < wanted:
            low = end
        else:
            high = start
    return low


def is_slip(wrong: str, right: str) -> bool:
    """Whether `wrong` is a misspelling of `right`: no word of its own, one edit away (two in long words).

    A slip between two real words (`form`, `from`) is a different question, and so is one between two unknown names.
    """
    if min(len(wrong), len(right)) < _MIN_SLIP or wrong == right or abs(len(wrong) - len(right)) > 1:
        return False
    if not (wrong.isalpha() and right.isalpha() and wrong.islower() and right.islower()):
        return False
    if is_known(wrong) or not is_known(right):
        return False
    ends = _TELLING_ENDS.search(wrong), _TELLING_ENDS.search(right)
    if ends[0] is not None and ends[1] is not None and ends[0].group() != ends[1].group():
        return False
    close = wrong[0] == right[0] and (len(right) >= _TWO_SLIPS or (len(right) >= 6 and _bones(wrong) == _bones(right)))
    return _edits(wrong, right) <= (2 if close else 1)


def is_slip_of_name(one: str, other: str) -> bool:
    """Whether two spellings of a name may be slips at all: no dictionary has all names, so the ear must agree
    (`Germny`), or the name be long. `Osama` is not `Obama`."""
    return min(len(one), len(other)) >= _LONG_NAME or _bones(one) == _bones(other)


def _bones(word: str) -> str:
    """The consonants, doubled ones once: what the ear keeps of a word."""
    return re.sub(r"(.)\1", r"\1", re.sub("[aeiouy]", "", word))


def _edits(a: str, b: str) -> int:
    """Optimal string alignment distance: insertions, deletions, substitutions, swaps of neighbours."""
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, row = row, [i, *[0] * len(b)]
        for j, y in enumerate(b, 1):
            row[j] = min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                row[j] = min(row[j], before[j - 2] + 1)
        before = above
    return row[-1]
