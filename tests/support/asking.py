"""Questions for a model that knows nothing, and their answers put together."""

from __future__ import annotations

from typing import Any

from velollm.backend import Backend
from velollm.collector import Collector
from velollm.messages import ChatAnswer, ChatRequest, Message, Tool

__all__ = ["PICK", "WEATHER", "answer", "ask"]

WEATHER = Tool(
    name="get_weather",
    parameters={
        "type": "object",
        "properties": {"city": {"type": "string", "minLength": 2, "maxLength": 20}, "unit": {"enum": ["c", "f"]}},
        "required": ["city", "unit"],
    },
)
PICK = Tool(
    name="pick_number",
    parameters={
        "type": "object",
        "properties": {"n": {"$ref": "#/$defs/n"}},
        "required": ["n"],
        "$defs": {"n": {"type": "integer", "minimum": 1, "maximum": 99}},
    },
)


def ask(text: str = "Say hello.", **changes: Any) -> ChatRequest:
    """A short question, answered greedily."""
    known = {"messages": [Message(role="user", content=text)], "max_tokens": 24, "temperature": 0}
    return ChatRequest(**{**known, **changes})


async def answer(backend: Backend, request: ChatRequest) -> ChatAnswer:
    """The whole answer."""
    collector = Collector()
    async for event in backend.chat(request):
        collector.add(event)
    return collector.answer()
