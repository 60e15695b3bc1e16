"""Schemas of the Responses API, as `velollm.api.responses` reads and writes it."""

from __future__ import annotations

from velollm.api.openapi.openai import EFFORT, ENGINE, NAME, PICTURE
from velollm.api.openapi.words import (
    ANY_OBJECT,
    BOOL,
    INT,
    INT64,
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
    tagged,
    when,
)

__all__ = ["schemas"]

INT32 = 2**31 - 1
NOTHING: JSON = {"type": "null", "description": "Nothing is stored here: always send the whole conversation."}


def schemas() -> JSON:
    """By name."""
    counted = obj({"object": {"const": "response.input_tokens"}, "input_tokens": integer(0)})
    return {**_items(), "ResponsesRequest": _request(), "Response": _response(), "InputTokens": counted}


def _items() -> JSON:
    content = one_of(STR, array(ref("ResponsePart")))
    text = array(obj({"text": STR}))
    return {
        "ResponsePart": one_of(
            obj({"type": enum("input_text", "output_text", "text"), "text": STR}),
            tagged("refusal", {"refusal": STR}),
            tagged("input_image", {"image_url": PICTURE}, {"detail": enum("auto", "low", "high", "original")}),
            tagged("input_audio", {"input_audio": obj({"data": STR, "format": STR})}),
        ),
        "ResponseItem": one_of(
            obj(
                {"role": enum("user", "assistant", "system", "developer"), "content": content},
                {"type": {"const": "message"}},
            ),
            tagged("function_call", {"call_id": NAME, "name": NAME, "arguments": STR}),
            tagged("function_call_output", {"call_id": NAME, "output": content}, {"name": STR}),
            tagged("reasoning", None, {"summary": text, "content": text}),
        ),
    }


def _request() -> JSON:
    tool = tagged("function", {"name": NAME}, {"description": STR, "parameters": ANY_OBJECT, "strict": BOOL})
    choice = one_of(
        enum("none", "auto", "required"),
        tagged("function", {"name": STR}),
        tagged("allowed_tools", {"tools": array(obj({"name": STR}), 1)}, {"mode": enum("auto", "required")}),
    )
    shape = one_of(
        obj({"type": enum("text", "json_object")}),
        tagged("json_schema", {"name": NAME, "schema": ANY_OBJECT}, {"strict": BOOL, "description": STR}),
    )
    summary = enum("auto", "concise", "detailed")
    return obj(
        {"input": one_of(STR, array(ref("ResponseItem"), least=1))},
        {
            "model": STR,
            "instructions": STR,
            "tools": array(tool),
            "tool_choice": choice,
            "parallel_tool_calls": BOOL,
            "text": obj(None, {"format": shape, "verbosity": enum("low", "medium", "high")}),
            "reasoning": obj(None, {"effort": EFFORT, "summary": summary, "generate_summary": summary}),
            "max_output_tokens": integer(1, INT32),
            "max_tool_calls": integer(0, INT32),
            "temperature": number(0, 2),
            "top_p": number(0, 1),
            "top_k": integer(-1, INT32),
            "min_p": number(0, 1),
            "seed": integer(-INT64, INT64),
            "stop": one_of(STR, array(STR)),
            "presence_penalty": number(-2, 2),
            "frequency_penalty": number(-2, 2),
            "include": array(STR),
            "top_logprobs": integer(0, 20),
            "metadata": {"type": "object", "additionalProperties": STR},
            "truncation": enum("auto", "disabled"),
            "user": STR,
            "stream": BOOL,
            "stream_options": ANY_OBJECT,
            "store": {**BOOL, "description": "Accepted, but nothing is stored; the answer says false."},
            "background": {"const": False},
            "previous_response_id": NOTHING,
            "conversation": NOTHING,
            "prompt": NOTHING,
            "service_tier": STR,
            "safety_identifier": STR,
            "prompt_cache_key": STR,
            **ENGINE,
        },
        allOf=[when("tool_choice", {"const": "required"}, {"tools": array({}, least=1)})],
    )


def _response() -> JSON:
    usage = obj(
        {
            "input_tokens": integer(0),
            "input_tokens_details": obj({"cached_tokens": integer(0)}),
            "output_tokens": integer(0),
            "output_tokens_details": obj({"reasoning_tokens": integer(0)}),
            "total_tokens": integer(0),
        }
    )
    status = enum("in_progress", "completed", "incomplete")
    part = tagged("output_text", {"text": STR, "annotations": array({}), "logprobs": array({})})
    item = one_of(
        tagged("message", {"id": STR, "status": status, "role": {"const": "assistant"}, "content": array(part)}),
        tagged("function_call", {"id": STR, "status": status, "call_id": STR, "name": STR, "arguments": STR}),
        tagged("reasoning", {"id": STR, "status": status, "summary": array(ANY_OBJECT)}),
    )
    return obj(
        {
            "id": STR,
            "object": {"const": "response"},
            "created_at": INT,
            "status": enum("completed", "incomplete", "failed"),
            "error": optional(ANY_OBJECT),
            "incomplete_details": optional(obj({"reason": STR})),
            "model": STR,
            "output": array(item),
            "parallel_tool_calls": BOOL,
            "tools": array(ANY_OBJECT),
            "tool_choice": one_of(STR, ANY_OBJECT),
            "text": ANY_OBJECT,
            "usage": usage,
        },
        {"velollm": ANY_OBJECT},
    )
