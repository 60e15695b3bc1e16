"""Which requests may be answered from the cache, by which tier, and which answers may be kept. Every refusal has a
reason."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, Literal, TypeGuard

import attrs

from velollm.control_headers import read_ttl

__all__ = ["TIERS", "Controls", "Eligibility", "Tier", "assess", "why_not_stored"]

Tier = Literal["exact", "canonical", "semantic"]
TIERS: Final[tuple[Tier, ...]] = ("exact", "canonical", "semantic")

# Past these lengths a prompt is an essay or a document, and close wording no longer means the same question.
LONGEST_CANONICAL: Final = 4096
LONGEST_SEMANTIC: Final = 480


@attrs.frozen
class Wording:
    """A pattern, and the words one of which is in every text that it finds something in: most texts have none, and a
    look at their words is cheaper than a search."""

    telling: frozenset[str]
    pattern: re.Pattern[str]

    @classmethod
    def of(cls, telling: str, pattern: str) -> Wording:
        """From the words, and the pattern's text."""
        return cls(frozenset(telling.split()), re.compile(pattern))

    def is_in(self, text: str, words: list[str]) -> bool:
        """Whether `text`, in lower case, has this wording; `words` are the words of it."""
        return not self.telling.isdisjoint(words) and self.pattern.search(text) is not None


TIME_BOUND: Final = Wording.of(
    "today tonight tomorrow yesterday now moment speak week weekend month morning afternoon evening night time day "
    "date year weather temperature price report forecast latest news score",
    r"\b(?:today(?:'s)?|tonight(?:'s)?|tomorrow(?:'s)?|yesterday(?:'s)?|right now|at the moment|as we speak|just now"
    r"|(?:this|next|last) (?:week|weekend|month)|this (?:morning|afternoon|evening)|last night"
    r"|(?:what|which) (?:time|day|date|month|year) is (?:it|this)"
    # `what is the time complexity of ...` is no question of the hour
    r"|what(?: is|'s) the (?:time|date)(?= (?:in|now|right|today|here|there|please)\b|\W*\Z)"
    r"|current (?:time|date|day|weather|temperature|price|score)|(?:the )?time now|(?:what is|what's|how is|how's)"
    r" the weather"
    r"|(?:weather|traffic|stock) (?:report|forecast)|latest (?:news|score|scores|headlines|price)|breaking news"
    r"|live score)\b",
)
DATED: Final = Wording.of(
    "current currently now nowadays days latest newest recent recently lately upcoming far still yet year decade "
    "season quarter spring summer autumn fall winter ago date as",
    r"\b(?:current|currently|now|nowadays|these days|latest|newest|most recent|recent|recently|lately|upcoming"
    r"|so far|still|yet"
    r"|(?:this|last|next|past|coming) (?:year|decade|season|quarter|spring|summer|autumn|fall|winter)|ago"
    r"|up to date|as of)\b",
)
PERSONAL: Final = Wording.of(
    "my am me did have had said told asked mentioned wrote paid sent remember remind just last previous earlier "
    "previously before",
    r"\b(?:my (?:full |first |last |own )?(?:name|age|birthday|previous|last)\b|who am i|am i|about me"
    r"|(?:did|have|had) i|i (?:said|told|asked|mentioned|wrote|paid|sent)|(?:do|did|can|will) you remember"
    r"|remember (?:me|when|what|that)|remind me"
    r"|you (?:said|told|mentioned|wrote|just)|did you (?:say|mean|tell)|your (?:last|previous) (?:answer|message|reply)"
    r"|earlier|previously|as before|same as before)\b",
)
# "How do I close my account" is anyone's question; "what is in my account" is one person's.
OWN_DATA: Final = Wording.of(
    "my",
    r"\A(?!how (?:do|can|to|should|would)\b).*\bmy (?:\w+ )?(?:orders?|account|balance|address|appointments?"
    r"|schedule|calendar|inbox"
    r"|meetings?|subscription|invoice|reservation|booking|data|history|documents?|notes|emails?|messages?|contacts?|salary)\b",
)
RANDOM: Final = Wording.of(
    "random randomly surprise another one again else roll flip",
    # who asks how chance works, or how to do something else than something, does not ask for another sample
    r"(?:\A(?!how |why |explain |define |describe ).*\brandom(?:ly)?\b"
    r"|\b(?:surprise me|different one|one more|again|roll (?:a|the) dic?e|flip a coin"
    r"|(?:\A|(?:give|tell|show|write|make|suggest|say|find|try|do|sing|ask|draw|create|generate|recommend)"
    r"(?: (?:me|us))? )another|another one"
    r"|(?:what|who|where|how|any\w+|some\w+|nothing) else)\b)",
)

_WORD = re.compile(r"\w+")

# Who asks for chance wants another answer the next time, even to the same words.
_CHANCE = re.compile(
    r"(?:please )?(?:(?:tell|give|show|pick|choose|suggest|say)(?: me| us)? (?:an?|any|some|one) (?:\w+ )?random\b"
    r"(?! (?:variables?|forests?|walks?|access|seeds?|effects?))|surprise me|(?:roll|throw) (?:a|the|two) dic?e"
    r"|(?:flip|toss) a coin|pick (?:a|any) (?:number|card))"
)


@attrs.frozen(kw_only=True)
class Controls:
    """What one request asks of the cache. A caller may only tighten: a `ttl` above the cache's own has no effect."""

    no_cache: bool = False
    no_store: bool = False
    max_age: float | None = None
    ttl: float | None = None

    @classmethod
    def from_headers(cls, cache_control: str | None = None, ttl: str | None = None) -> Controls:
        """Read `cache-control` and `x-velollm-cache-ttl`. What makes no sense in the first is ignored, as RFC 9111
        asks; the second is ours alone, and whoever sends it means it: raises `RequestError` where it is no time."""
        if not cache_control and not ttl:
            return NO_CONTROLS
        directives = {
            name.strip().lower(): value.strip().strip('"')
            for name, _, value in (part.partition("=") for part in (cache_control or "").split(","))
        }
        return cls(
            no_cache="no-cache" in directives,
            no_store="no-store" in directives,
            max_age=_seconds(directives.get("max-age")),
            ttl=read_ttl(ttl) if ttl else None,
        )


NO_CONTROLS: Final = Controls()


def _seconds(text: str | None) -> float | None:
    text = (text or "").strip()
    return float(text) if text.isascii() and text.isdigit() and len(text) < 12 else None


@attrs.frozen(kw_only=True)
class Eligibility:
    """`tiers` may answer; `reason` says why a higher tier, or the whole cache, is closed to this request."""

    read: bool
    write: bool
    tiers: tuple[Tier, ...]
    reason: str = ""

    @property
    def bypass(self) -> bool:
        """True if the cache takes no part in this request."""
        return not self.read and not self.write


def _is_object(value: object) -> TypeGuard[Mapping[str, Any]]:
    return type(value) is dict or isinstance(value, Mapping)


def _bypass(reason: str) -> Eligibility:
    return Eligibility(read=False, write=False, tiers=(), reason=reason)


def assess(body: Mapping[str, Any], prompt: str | None, controls: Controls, max_temperature: float) -> Eligibility:
    """Decide for one request. `prompt` is the last user text, or None where it is not plain text."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        return _bypass("not-chat")
    if not all(_is_object(message) for message in messages):
        return _bypass("not-chat")
    if controls.no_store:
        return _bypass("no-store")
    if _is_agent_turn(messages):
        return _bypass("agent-turn")
    lowered = "" if prompt is None else prompt[:LONGEST_CANONICAL].lower().replace("\u2019", "'")
    words = _WORD.findall(lowered) if len(lowered) <= LONGEST_SEMANTIC else []
    if TIME_BOUND.is_in(lowered, words):
        return _bypass("time-bound")
    if body.get("temperature") != 0 and _CHANCE.match(lowered):
        return _bypass("random")
    reason = _exact_only(body, messages, prompt)
    tiers: tuple[Tier, ...] = ("exact",)
    if not reason:
        reason = _not_semantic(body, lowered, words, prompt or "", max_temperature)
        tiers = ("exact", "canonical") if reason else TIERS
    if controls.no_cache:
        return _open(tiers, "no-cache", read=False)
    return _open(tiers, reason, read=True)


@lru_cache(maxsize=256)
def _open(tiers: tuple[Tier, ...], reason: str, *, read: bool) -> Eligibility:
    return Eligibility(read=read, write=True, tiers=tiers, reason=reason)


def _is_agent_turn(messages: list[Mapping[str, Any]]) -> bool:
    """Whether the model is to go on from the results of its tools: the world may have moved since."""
    for message in reversed(messages):
        role = message.get("role")
        if role in ("tool", "function"):
            return True
        if role == "assistant":
            return False
    return False


def _exact_only(body: Mapping[str, Any], messages: list[Mapping[str, Any]], prompt: str | None) -> str:
    """Why only a repetition to the letter may be answered."""
    if body.get("tools") or body.get("functions"):
        return "tools"
    media = False
    for message in messages:
        if message.get("role") in ("tool", "function") or message.get("tool_calls"):
            return "tools"
        content = message.get("content")
        media = media or (type(content) is not str and _has_media(content))
    if messages[-1].get("role") == "assistant":
        return "prefill"
    if media:
        return "images"
    if body.get("n") not in (None, 1):
        return "n"
    if body.get("logprobs"):
        return "logprobs"
    if prompt is None:
        return "not-text"
    return "long" if len(prompt) > LONGEST_CANONICAL else ""


def _not_semantic(body: Mapping[str, Any], lowered: str, words: list[str], prompt: str, max_temperature: float) -> str:
    temperature = body.get("temperature")
    if isinstance(temperature, int | float) and temperature > max_temperature:
        return "temperature"
    if len(prompt) > LONGEST_SEMANTIC or "\n" in prompt.strip():
        return "long"
    if DATED.is_in(lowered, words):
        return "time-bound"
    if PERSONAL.is_in(lowered, words) or OWN_DATA.is_in(lowered, words):
        return "personal"
    return "random" if RANDOM.is_in(lowered, words) else ""


def _has_media(content: object) -> bool:
    return isinstance(content, list) and any(_is_object(p) and p.get("type") != "text" for p in content)


def why_not_stored(answer: object) -> str | None:
    """Why an answer may not be kept, or None. Only complete answers are: no errors, and none that ran out of tokens."""
    if not _is_object(answer):
        return "not-an-answer"
    if answer.get("error") is not None:
        return "error"
    if "choices" not in answer:
        return None
    choices = answer["choices"]
    if not isinstance(choices, list) or not choices:
        return "empty"
    for choice in choices:
        reason = _incomplete(choice)
        if reason is not None:
            return reason
    return None


def _incomplete(choice: object) -> str | None:
    if not _is_object(choice):
        return "not-an-answer"
    if choice.get("finish_reason") not in ("stop", "tool_calls", "function_call"):
        return "truncated"
    message = choice.get("message")
    if not _is_object(message):
        return "not-an-answer"
    says = message.get("content") or message.get("tool_calls") or message.get("function_call") or message.get("refusal")
    return None if says else "empty"
