"""The canonical form: one question however it is cased, punctuated, contracted or dressed in courtesy.

What is taken away can never change the answer. Anything subtler is left to the frames and guards of the semantic tier.
"""

# ruff: noqa: E501  # a rule is one line

from __future__ import annotations

import re

import attrs
import xxhash

from velollm.cache.lexicon import CLOSING_WORDS, GERUNDS, QUESTION_WORDS, QUOTED_VERBS
from velollm.cache.tokens import Text, tokenize

__all__ = ["COURTESY", "Canonical", "canonicalize", "is_kept_by_line", "strip_courtesy"]

_WH = "(?:what|which|who|whom|whose|when|where|why|how|if|whether)"
# Verbs that ask for a text, so that "can you ..." in front of them is a request and never a question about ability.
_ASK = (
    "(?:tell|explain|write|list|give|show|describe|suggest|recommend|define|summarize|summarise|translate|generate|"
    "provide|teach|outline|help|compose|draft|rewrite|recite|compare|elaborate|clarify|enumerate|name|advise|share)"
)
_START = (
    f"(?:{_WH}|{_ASK}|can|could|would|will|may|do|does|is|are|i|please|quick|sorry|just|so|in|for|the|a|make|create)"
)
_GREETING = re.compile(
    r"(?:hi|hiya|hello|hey|heya|howdy|yo|greetings|good (?:morning|afternoon|evening|day)|dear)"
    r"(?: (?:there|again|all|everyone|everybody|assistant|ai|bot|chatgpt|friend|buddy|mate|team|folks))*"
    rf"(?: [,.]|(?= {_START}\b))"
)
_ASIDES = re.compile(
    r"(?:(?:(?:i have |i got )?(?:just )?(?:a |one |another )?(?:quick |short |simple |small |little |dumb "
    r"|silly |stupid |basic )+question"
    r"(?: for you)?|(?:i have (?:a|one|another) )question(?: for you)?(?= [,.])|(?:can|may|could) i ask you (?:something|a question)(?= [,.])"
    r"|i need (?:some |your |a bit of )?help(?: with (?:this|something))?(?= [,.])|(?:thank you|thanks)(?: so much| a lot)?(?= [,.])"
    r"|(?:could|can) you help me(?: with this| out)?(?= [,.])|(?:i am (?:so |very |really |terribly )?)?sorry (?:to (?:bother|disturb|trouble)|for (?:bothering|disturbing|troubling)) you|excuse me|pardon me|just curious"
    r"|just wondering|out of curiosity|if you do not mind|if possible|thanks in advance|(?:thank you|thanks)(?: so much)? for (?:your|the|all your) (?:help|time|assistance)|i hope you are (?:well"
    r"|doing well))"
    r"(?: [,.])?(?: but)?"
    r"|(?:so|ok|well|um|uh|hmm|right|now|also|and|sorry|anyway|alright) ,"
    r"|please(?: ,)?|kindly|pretty please)"
)
_REQUESTS = re.compile(
    rf"(?:(?:can|could|would|will) you (?:please |kindly |maybe |possibly |perhaps |just "
    rf"|quickly )*(?:be able to )?(?={_ASK}\b)"
    r"|(?:could|would|will|can) you (?:please|kindly) "
    r"|(?:(?:could|would|will|can) you )?(?:please )?(?:give|lend) me a hand (?:and|with) |help me out and "
    r"|would you (?:please |kindly )?(?=(?:make|create|find|calculate|solve|convert|build|design|check|fix"
    r"|correct|say)\b)"
    rf"|(?:could|would) you be so kind as to |be so kind as to |(?:could|would) you be (?:so )?kind enough to "
    rf"|(?:would|do) you mind (?=(?:{'|'.join(GERUNDS)})\b)"
    rf"|(?:i would|i (?:will|shall) )? ?(?:really |greatly )?appreciate(?: it)? if you (?:could|would|can) (?:please )?"
    rf"|(?:it would be (?:great|nice|lovely|helpful|good) if you could|(?:would|is) it (?:be )?possible (?:for you )?to|any chance you could|"
    rf"i (?:want|need|would (?:really )?(?:like|love|want)|am asking|wish)(?: for)? you to) (?:please )?(?={_ASK}"
    rf"|make|create)"
    rf"|do you (?:happen to )?know (?={_WH}\b)|(?:may|can|could|might) i (?:please |just )*(?:ask|know|inquire"
    rf"|enquire) (?={_WH}\b)"
    rf"|(?:i (?:would (?:really )?(?:like|love)|want|need|am trying|was trying|am looking|was hoping|am hoping"
    rf"|wish) to "
    rf"(?:know|understand|learn|find out|figure out|ask(?: you)?|hear)|i (?:am|was) (?:just )?(?:curious|wondering)"
    rf"(?: about| to know)?|i wonder(?:ed)?|(?:please )?let me know|any idea|does any(?:one|body) know"
    rf"|do any of you know"
    rf"|i do not know|tell me|can anyone tell me) (?:, )?(?={_WH}\b)"
    r"|i (?:am|was) (?:just )?wondering (?:, |if you (?:could|can|would|might) |whether you (?:could|can) )"
    r"|(?:help me (?:to )?(?:understand|learn about)|help me out with)(?= ))"
)
_CLOSINGS = re.compile(
    r"(?P<before>\S+)(?P<pause> [,.])?(?P<words>(?: (?:please and thank you|please|kindly|thanks|thank you|ty|cheers|many thanks"
    r"|much appreciated|tia"
    r"|thanks (?:a lot|a bunch|a ton|so much|very much|again|in advance)|thank you (?:so much|very much|a lot"
    r"|again|in advance)"
    r"|if you (?:do not mind|can|could|would)|for me please|have a (?:nice|good|great) day|i appreciate it))+)\Z"
)
_ALWAYS_COURTESY = ("please", "kindly", "if you")
_VERB_AFTER_MIND = re.compile(rf"\A({'|'.join(GERUNDS)})\b")
_TRAILING_PAUSE = re.compile(r"(?: [,.])+\Z")
_LEADING_PAUSE = re.compile(r"\A(?:[,.] )+")
_UNDERSTAND = re.compile(r"help me (?:to )?(?:understand|learn about) ")
# The patterns of all that is taken away; what is put in its place is a verb of `GERUNDS`.
COURTESY = (_GREETING.pattern, _ASIDES.pattern, _REQUESTS.pattern, _CLOSINGS.pattern, _UNDERSTAND.pattern)


@attrs.frozen(kw_only=True)
class Canonical:
    """`clauses` is the courtesy-free token string with its pauses, `bare` the same without commas; `signature`
    hashes it with the payload."""

    clauses: str
    payload: str
    names: frozenset[str]
    bare: str
    signature: bytes


def is_kept_by_line(text: str) -> bool:
    """Whether a prompt has several lines, which no rule touches."""
    return "\n" in text.strip() or "```" in text


def canonicalize(text: str) -> Canonical:
    """The canonical form of a prompt. A prompt of several lines keeps its letters: only outer white space goes."""
    if is_kept_by_line(text):
        verbatim = "\n".join(line.rstrip() for line in text.strip().splitlines())
        return _finish(Text(tokens=(), payload=verbatim, names=frozenset()), "")
    parsed = tokenize(text)
    return _finish(parsed, strip_courtesy(" ".join(parsed.tokens)))


def _finish(text: Text, clauses: str) -> Canonical:
    bare = " ".join([word for word in clauses.split(" ") if word != ","]) if "," in clauses else clauses
    signature = xxhash.xxh3_128_digest(f"{bare}\x00{text.payload}".encode("utf-8", "surrogatepass"))
    return Canonical(clauses=clauses, payload=text.payload, names=text.names, bare=bare, signature=signature)


def strip_courtesy(clauses: str) -> str:
    """Take greetings, asides, request wrappers and thanks off both ends, until nothing more comes off."""
    whole = clauses
    for _ in range(8):
        before = clauses
        clauses = _strip_end(_strip_start(clauses))
        if clauses == before:
            break
    return clauses or whole


def _strip_start(clauses: str) -> str:
    for pattern in (_GREETING, _ASIDES):
        found = pattern.match(clauses)
        if found is not None and (found.end() == len(clauses) or clauses[found.end()] == " "):
            rest = _LEADING_PAUSE.sub("", clauses[found.end() :].lstrip())
            if not rest:
                return clauses
            clauses = rest
    if (found := _UNDERSTAND.match(clauses)) is not None:
        rest = clauses[found.end() :]
        return rest if rest.split(" ", 1)[0] in QUESTION_WORDS else "explain " + rest
    found = _REQUESTS.match(clauses)
    if found is None or found.end() == len(clauses):
        return clauses
    rest = _LEADING_PAUSE.sub("", clauses[found.end() :].lstrip())
    return _VERB_AFTER_MIND.sub(lambda m: GERUNDS[m[1]], rest) if "mind" in found.group() else rest


def _strip_end(clauses: str) -> str:
    found = None
    if clauses.rpartition(" ")[2] in CLOSING_WORDS:
        tail_at = max(0, len(clauses) - 120)
        found = _CLOSINGS.search(clauses, clauses.rfind(" ", 0, tail_at) + 1 if tail_at else 0)
    if found is None:
        return _without_pause(clauses)
    if not found["pause"]:
        words = found["words"].strip()
        courtesy = words.startswith(_ALWAYS_COURTESY) or words in ("ty", "tia", "thanks")
        if not courtesy or found["before"] in QUOTED_VERBS:
            return clauses
    return _without_pause(clauses[: found.end("before")])


def _without_pause(clauses: str) -> str:
    return _TRAILING_PAUSE.sub("", clauses) if clauses.endswith((" ,", " .")) else clauses
