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


_INTENT = re.compile(
    r"\b(?:"
    r"let me|let us|let's|lets|i'll|i will|i'm going to|i am going to|i'm gonna|we'll|we will|i need to|"
    r"we need to|i have to|i want to|i'd like to|going to|i can (?:check|look|do|get|use|help|find)|"
    r"i should (?:use|call|check)|calling|invoking|executing|running|using|checking|fetching|looking|searching|"
    r"getting|retrieving|querying|booking|creating|sending|saving|reading|opening|listing|processing|pinging|"
    r"setting|one moment|just a (?:moment|second)|sure|certainly|of course|okay|ok|alright|right away|on it|"
    r"absolutely|no problem|got it|here(?: is|'s) (?:the|my|a) (?:function|tool)[ -]?call|"
    r"the (?:appropriate |necessary |required )?(?:function|tool) call(?: is)?|the following (?:function|tool)|"
    r"tool call|function call"
    r")\b",
    re.IGNORECASE,
)
_DOUBT = re.compile(
    r"\b(?:"
    r"for example|example|examples|e\.g|for instance|format|syntax|schema|looks? like|such as|shows?|showed|"
    r"shown|log|logs|logged|changelog|docs|documentation|readme|manifest|manual|tutorial|would|could|might|may|"
    r"not|never|don't|do not|won't|can't|cannot|didn't|doesn't|shouldn't|previous|previously|earlier|yesterday|"
    r"already|last time|said|says|wrote|reads|printed|prints|output|outputs|returned|returns|response|snippet|"
    r"sample|config|configuration|template|if you|you can|you could|you should|you may|users? can|other bot|"
    r"bot|someone|was|were|been|had|history|quoted?|copied|emitted|generated|produced|received|recorded|audit|"
    r"trace|transcript|dataset|test case|fixture|should i|shall i|do you want|would you|payload|instead of|"
    r"dialect|specification|spec|hypothetical|imagine|suppose|illustrat\w+|demonstrat\w+|describes?|explains?|"
    r"means?|represents?|used to|refus\w+|reject\w+|invalid|wrong|broken|mistake|bug"
    r")\b",
    re.IGNORECASE,
)
_LAST_SENTENCES = 260


def announces(lead: str) -> bool:
    """Whether prose announces a call of its own, rather than showing somebody's.

    Judged by the last paragraph: words of intent, and none of quotation, condition or doubt. A question never does.
    """
    if LABEL.fullmatch(lead.strip()):
        return True
    text = lead.strip()[-_LAST_SENTENCES:].replace("’", "'")
    text = text.rsplit("\n\n", 1)[-1]
    if text.rstrip("*_ \n").endswith("?"):
        return False
    if _DOUBT.search(text):
        return False
    return _INTENT.search(text) is not None
