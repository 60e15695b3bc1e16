"""Opening turns that say nothing: `hi` / `Hello! How can I help?`. A question asked after them is the same question."""

from __future__ import annotations

import re
from typing import Any

from velollm.cache.tokens import tokenize

__all__ = ["skip_pleasantries"]

_LONGEST = 160
_USER = (
    "hi", "hello", "hey", "hiya", "howdy", "yo", "greetings", "there", "again", "good morning", "good afternoon",
    "good evening", "good day", "thanks", "thank you", "thanks a lot", "thank you very much", "thank you so much",
    "thanks so much", "many thanks", "cheers", "ty", "how are you", "how are you doing", "how are you today",
    "how is it going", "what is up", "sup", "nice to meet you", "nice", "cool", "awesome", "great", "perfect",
    "testing", "test", "ok", "okay", "all right", "got it", "great thanks", "bye", "goodbye",
    "thanks again", "much appreciated", "how do you do", "are you there", "everyone", "friend", "assistant", "bot",
)  # fmt: skip
_ASSISTANT = (
    "hi", "hello", "hey", "hey there", "hi there", "hello there", "hello again", "welcome", "welcome back", "greetings",
    "good morning", "good afternoon", "good evening", "good day", "you are welcome", "you are very welcome",
    "you are most welcome", "anytime", "any time", "no problem", "no worries", "my pleasure", "of course",
    "glad to help",
    "happy to help", "glad i could help", "always happy to help", "i am glad to help", "i am happy to help",
    "do not mention it",
    "how can i help", "how can i help you", "how can i help you today", "how can i help today", "how may i help",
    "how may i help you", "how may i help you today", "how can i assist you", "how can i assist you today",
    "how can i assist",
    "how may i assist you", "how may i assist you today", "how can i be of assistance", "how can i be of help",
    "what can i do for you", "what can i do for you today", "what can i help you with",
    "what can i help you with today",
    "what can i help with", "what is up", "what is on your mind", "what would you like to know",
    "what would you like to talk about",
    "i am fine", "i am good", "i am great", "i am well", "i am doing well", "i am doing great", "i am doing fine",
    "thanks for asking", "thank you for asking", "thanks", "thank you", "and you", "how about you", "how are you",
    "how are you today", "how are you doing", "how are you doing today", "nice to meet you", "nice to meet you too",
    "is there anything else i can help you with", "is there anything else", "anything else",
    "anything else i can help with",
    "let me know if you need anything else", "let me know if you need anything", "feel free to ask",
    "i am here to help",
    "i am here", "i am ready", "ask away", "have a great day", "have a nice day", "have a good day",
    "at your service", "today",
    "let me know if you have any other questions", "let me know if you have any questions",
)  # fmt: skip


def _phrases(phrases: tuple[str, ...]) -> re.Pattern[str]:
    longest_first = "|".join(re.escape(p) for p in sorted(phrases, key=len, reverse=True))
    return re.compile(rf"(?:(?:{longest_first})(?: |\Z))+\Z")


_SAYS_NOTHING = {"user": _phrases(_USER), "assistant": _phrases(_ASSISTANT)}


def skip_pleasantries(messages: list[Any]) -> list[Any]:
    """Earlier turns without an opening exchange of courtesies. System messages stay; so does all after a real turn."""
    opening = next((i for i, m in enumerate(messages) if not _is_instruction(m)), len(messages))
    kept, turns = messages[:opening], messages[opening:]
    at = 0
    while at + 1 < len(turns) and _is_idle(turns[at], "user") and _is_idle(turns[at + 1], "assistant"):
        at += 2
    return kept + turns[at:]


def _is_instruction(message: Any) -> bool:
    return isinstance(message, dict) and message.get("role") in ("system", "developer")


def _is_idle(message: Any, role: str) -> bool:
    if not isinstance(message, dict) or message.get("role") != role or message.keys() != {"role", "content"}:
        return False
    content = message["content"]
    if not isinstance(content, str) or len(content) > _LONGEST or "\n" in content.strip():
        return False
    text = tokenize(content)
    words = " ".join(t for t in text.tokens if t not in (",", "."))
    return not text.payload and _SAYS_NOTHING[role].match(words) is not None
