"""Conversations with tools, told in plain turns for chat templates that know no tools. No I/O.

Tools are described in the system prompt; calls and results become text in the form that most models have seen
(`<tool_call>{"name": ..., "arguments": ...}</tool_call>`), which the tool-call layer reads back.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import orjson

from velollm.api.openai.upstream import encode_tools
from velollm.messages import ChatRequest, Message, ToolCall, ToolChoice

__all__ = ["has_tool_turns", "tell_tools"]

JSON: TypeAlias = dict[str, Any]

HOW_TO_CALL = """\
You can call these functions:
<tools>
{tools}
</tools>
To call one, answer with nothing but
<tool_call>
{{"name": <function name>, "arguments": <JSON object>}}
</tool_call>"""

HOW_TO_ARGUE = """\
You can call this function:
{tools}
Answer with the JSON object of its arguments, taken from the conversation."""

HOW_TO_CHOOSE = """\
You can call these functions:
{tools}
Call the one that fits: answer with {{"name": <function name>, "arguments": <JSON object>}}"""


def has_tool_turns(request: ChatRequest) -> bool:
    """Whether calls or results stand in the history."""
    return any(message.role == "tool" or message.tool_calls for message in request.messages)


def tell_tools(request: ChatRequest) -> ChatRequest:
    """The same request without tools: what there was to say of them is said in its messages."""
    messages = [_plain(message) for message in request.messages]
    choice = request.tool_choice or ToolChoice(mode="auto")
    if request.tools and choice.mode != "none":
        messages = _with_system(messages, _instruction(request, choice))
    return request.replace(messages=messages, tools=[], tool_choice=None, parallel_tool_calls=None)


def _instruction(request: ChatRequest, choice: ToolChoice) -> str:
    tools = [tool for tool in request.tools if choice.mode != "named" or tool.name == choice.name]
    lines = "\n".join(orjson.dumps(tool["function"]).decode() for tool in encode_tools(tools))
    if choice.mode == "auto":
        return HOW_TO_CALL.format(tools=lines)
    return (HOW_TO_ARGUE if len(tools) == 1 else HOW_TO_CHOOSE).format(tools=lines)


def _with_system(messages: list[Message], text: str) -> list[Message]:
    if messages and messages[0].role in ("system", "developer"):
        own = messages[0].text
        return [Message(role="system", content=f"{own}\n\n{text}" if own else text), *messages[1:]]
    return [Message(role="system", content=text), *messages]


def _plain(message: Message) -> Message:
    if message.role == "tool":
        return Message(role="user", content=f"<tool_response>\n{message.text}\n</tool_response>")
    if not message.tool_calls:
        return message
    calls = "\n".join(_told(call) for call in message.tool_calls)
    said = message.text
    return Message(role="assistant", content=f"{said}\n{calls}" if said else calls, reasoning=message.reasoning)


def _told(call: ToolCall) -> str:
    try:
        arguments: Any = orjson.loads(call.arguments or "{}")
    except orjson.JSONDecodeError:
        arguments = call.arguments
    return f"<tool_call>\n{orjson.dumps({'name': call.name, 'arguments': arguments}).decode()}\n</tool_call>"
