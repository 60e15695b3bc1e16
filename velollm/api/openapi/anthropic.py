"""Schemas of Anthropic's dialect, as `velollm.api.anthropic` reads and writes it."""

from __future__ import annotations

from velollm.api.openapi.words import (
    ANY_OBJECT,
    BASE64,
    BOOL,
    INT,
    JSON,
    STR,
    array,
    enum,
    integer,
    number,
    obj,
    one_of,
    optional,
    ref,
    string,
    tagged,
    when,
)

__all__ = ["schemas"]

NAME = string(minLength=1)
INT32 = 2**31 - 1
WEB = string(pattern="^https?://")
PICTURE = string(pattern="^image/")


def schemas() -> JSON:
    """By name."""
    return {**_blocks(), **_requests(), **_answers()}


def _blocks() -> JSON:
    data = tagged("base64", {"data": BASE64, "media_type": STR})
    image = one_of(tagged("base64", {"data": BASE64, "media_type": PICTURE}), tagged("url", {"url": WEB}))
    inner = one_of(ref("AnthropicText"), ref("AnthropicImage"))
    document = one_of(
        data,
        tagged("text", {"data": STR}),
        tagged("content", {"content": one_of(STR, array(inner))}),
    )
    readable = [ref(f"Anthropic{name}") for name in ("Text", "Image", "Document", "SearchResult")]
    text = obj({"text": STR})
    return {
        "AnthropicText": tagged("text", {"text": STR}),
        "AnthropicImage": tagged("image", {"source": image}),
        "AnthropicDocument": tagged("document", {"source": document}, {"title": STR, "context": STR}),
        "AnthropicSearchResult": tagged("search_result", {"title": STR, "source": STR, "content": array(text)}),
        "AnthropicToolResult": tagged(
            "tool_result",
            {"tool_use_id": NAME},
            {"content": one_of(STR, array(one_of(*readable))), "is_error": BOOL},
        ),
        "AnthropicToolUse": tagged("tool_use", {"id": NAME, "name": NAME, "input": ANY_OBJECT}),
        "AnthropicThinking": tagged("thinking", {"thinking": STR}, {"signature": STR}),
        "AnthropicRedactedThinking": tagged("redacted_thinking", {"data": STR}),
        "AnthropicUserBlock": one_of(*readable, ref("AnthropicToolResult")),
        "AnthropicAssistantBlock": one_of(
            *readable,
            *(ref(f"Anthropic{name}") for name in ("ToolUse", "Thinking", "RedactedThinking")),
        ),
    }


def _requests() -> JSON:
    def turn(role: str, block: str) -> JSON:
        return obj({"role": {"const": role}, "content": one_of(STR, array(ref(block)))})

    shared = {
        "system": one_of(STR, array(ref("AnthropicText"))),
        "tools": array(ref("AnthropicTool")),
        "tool_choice": ref("AnthropicToolChoice"),
        "thinking": ref("AnthropicThinkingConfig"),
        "output_config": obj(None, {"effort": enum("low", "medium", "high", "xhigh", "max"), "format": _format()}),
        "output_format": _format(),
        "temperature": number(0, 1),
        "top_p": number(0, 1),
        "top_k": integer(0, INT32),
        "stop_sequences": array(STR),
        "metadata": obj(None, {"user_id": STR}),
        "service_tier": STR,
        "context_management": ANY_OBJECT,
        "mcp_servers": array({}, most=0),
        "thread": {"type": "null", "description": "Threads are not kept here: always send all messages."},
        "container": {"type": "null"},
    }
    messages = array(ref("AnthropicTurn"), least=1)
    choice = {"type": "object", "properties": {"type": enum("any", "tool")}}
    forced = [when("tool_choice", choice, {"tools": array({}, least=1)})]
    return {
        "AnthropicTurn": one_of(
            turn("user", "AnthropicUserBlock"),
            turn("assistant", "AnthropicAssistantBlock"),
            turn("system", "AnthropicText"),
        ),
        "AnthropicTool": obj(
            {"name": NAME, "input_schema": ANY_OBJECT},
            {"type": {"const": "custom"}, "description": STR, "strict": BOOL},
        ),
        "AnthropicToolChoice": one_of(
            obj({"type": enum("auto", "none", "any")}, {"disable_parallel_tool_use": BOOL}),
            tagged("tool", {"name": STR}, {"disable_parallel_tool_use": BOOL}),
        ),
        "AnthropicThinkingConfig": one_of(
            tagged("enabled", {"budget_tokens": integer(1, INT32)}, {"display": enum("summarized", "omitted")}),
            obj({"type": enum("disabled", "adaptive", "between_tools")}, {"display": enum("summarized", "omitted")}),
        ),
        "MessagesRequest": obj(
            {"model": NAME, "max_tokens": integer(1, INT32), "messages": messages},
            {**shared, "stream": BOOL},
            allOf=forced,
        ),
        "CountTokensRequest": obj({"model": NAME, "messages": messages}, shared, allOf=forced),
    }


def _format() -> JSON:
    return tagged("json_schema", {"schema": ANY_OBJECT})


def _answers() -> JSON:
    usage = obj(
        dict.fromkeys(("input_tokens", "output_tokens", "cache_read_input_tokens"), INT),
        {"cache_creation_input_tokens": INT, "output_tokens_details": obj({"thinking_tokens": INT})},
    )
    block = one_of(
        ref("AnthropicText"),
        tagged("thinking", {"thinking": STR, "signature": STR}),
        ref("AnthropicToolUse"),
    )
    reasons = enum("end_turn", "max_tokens", "stop_sequence", "tool_use", "refusal")
    model = {"id": STR, "display_name": STR, "created_at": string(format="date-time"), "lifecycle": STR}
    return {
        "Message": tagged(
            "message",
            {
                "id": STR,
                "role": {"const": "assistant"},
                "model": STR,
                "content": array(block),
                "stop_reason": reasons,
                "stop_sequence": optional(STR),
                "usage": usage,
            },
            {"velollm": ANY_OBJECT},
        ),
        "TokenCount": obj({"input_tokens": integer(0)}),
        "AnthropicModel": tagged(
            "model", model, {"max_input_tokens": INT, "max_tokens": INT, "capabilities": ANY_OBJECT}
        ),
        "AnthropicModels": obj(
            {
                "data": array(ref("AnthropicModel")),
                "has_more": BOOL,
                "first_id": optional(STR),
                "last_id": optional(STR),
            }
        ),
        "AnthropicError": tagged(
            "error",
            {"error": obj({"type": STR, "message": STR}, {"details": ANY_OBJECT}), "request_id": STR},
        ),
    }
