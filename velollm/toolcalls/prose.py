"""Prose around a call: where a sentence ends, and whether it announces a call or only shows one."""

from __future__ import annotations

import re

__all__ = ["LABEL", "announces", "ends_sentence"]

LABEL = re.compile(
    r"(?:assistant|(?:tool|function)[ _]calls?|json|action|commentary|(?:assistant\s*)?-> ?tool/function_call)\s*:?",
    re.IGNORECASE,
)
"""What stands before a call and says nothing: a role that leaked, or a word for what follows."""

_SENTENCE_ENDS = ".!?:…。！？：;"


def ends_sentence(before: str) -> bool:
    """Whether `before` ends with a sentence, so that what follows is no longer in mid-sentence."""
    return before.rstrip(" \t")[-1:] in _SENTENCE_ENDS and bool(before.strip())


def _words(*lines: str) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(lines)})\b", re.IGNORECASE)


# The speaker is about to do something: enough even beside words that could be about somebody else's call.
_STRONG = re.compile(
    r"\b(?:let me(?! know)|let us|let's|lets|i'll|i will|i'm going to|i am going to|i'm gonna|we'll|we will|"
    r"i need to|we need to|i have to|now i can|i'm (?:calling|running|using|checking)|please wait|one moment|on it|"
    r"right away|ich werde|lass mich|je vais|laissez-moi|voy a|d[ée]jame|perm[íi]teme|vou|deixe-me)\b"
    r"|我来|让我|我将|我会|我需要|正在|现在就|調べます|確認します",
    re.IGNORECASE,
)
_INTENT = _words(
    r"i want to|i'd like to|going to|i can (?:check|look|do|get|use|help|find)|i should (?:use|call|check)",
    r"calling|invoking|executing|running|using|checking|fetching|looking|searching|getting|retrieving|querying",
    r"booking|creating|sending|saving|reading|opening|listing|processing|pinging|setting|just a (?:moment|second)",
    r"sure|certainly|of course|okay|ok|alright|absolutely|no problem|got it|(?:next )?step(?: \d+)?:",
    r"here(?: is|'s) (?:the|my|a) (?:function|tool)[ -]?call|tool call|function call|the following (?:function|tool)",
    r"the (?:appropriate |necessary |required )?(?:function|tool) call(?: is)?",
)
_DOING = re.compile(
    r"(?:^|[.!?:\n])\s*(?:(?:now|next|then|first),?\s+)?"
    r"(?!(?:no|some|any|every)thing|during|accord|regard|includ|assum|consider|depend|follow|mean|spend|"
    r"str|th|k|r|spr|morn|even|miss|fail|interest|surpris|unfortunat|see|be|hav)[a-z]+ing\b",
    re.IGNORECASE,
)
"""A sentence that begins with what is being done: "Turning on the lights." """
_QUOTING = _words(
    r"for example|example|examples|e\.g|for instance|format|syntax|schema|looks? like|such as|shows?|showed|shown",
    r"would|could|might|may|not|never|don't|do not|won't|can't|cannot|didn't|doesn't|shouldn't|last time|yesterday",
    r"previously|earlier|already|said|says|wrote|printed|prints|returned|returns|snippet|sample|if you|you can",
    r"you could|you should|you may|users? can|other bot|bot|someone|quoted?|copied|emitted|generated|produced",
    r"should i|shall i|do you want|would you|instead of|hypothetical|imagine|suppose|illustrat\w+|demonstrat\w+",
    r"describes?|explains?|means?|represents?|used to|how to|how you|refus\w+|reject\w+|invalid|wrong|broken",
    r"mistake|bug|test case",
)
_ABOUT = _words(
    r"log|logs|logged|changelog|docs|documentation|readme|manifest|manual|tutorial|previous|reads|output|outputs",
    r"response|config|configuration|template|was|were|been|had|history|received|recorded|audit|trace|transcript",
    r"dataset|fixture|payload|dialect|specification|spec|code|script|here(?: is|'s) (?:the|some) json|usage",
)
_LAST_SENTENCES = 260
_LAST = re.compile(r"[^.!?。！？\n]*[.!?:。！？：\s*_`]*\Z")


def announces(lead: str) -> bool:
    """Whether prose announces a call of its own, rather than showing somebody's.

    Judged by the last paragraph: words of intent, and none of quotation, condition or doubt. Words that may be the
    matter of the call itself ("let me check the logs") count only where its last sentence speaks of no intent. A
    question never announces.
    """
    if LABEL.fullmatch(lead.strip()):
        return True
    text = lead.strip()[-_LAST_SENTENCES:].replace("’", "'")
    text = text.rsplit("\n\n", 1)[-1]
    if text.rstrip("*_ \n").endswith(("?", "？")) or _QUOTING.search(text):
        return False
    last = _LAST.search(text)
    if last is not None and _STRONG.search(last[0]):
        return True
    if _ABOUT.search(text):
        return False
    return any(pattern.search(text) for pattern in (_STRONG, _INTENT, _DOING))
