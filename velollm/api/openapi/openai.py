"""Schemas of OpenAI's chat completions, completions, embeddings and models, as `velollm.api.openai` has them."""

from __future__ import annotations

from velollm.api.openapi.words import (
    ANY_OBJECT,
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
EFFORT = enum("none", "minimal", "low", "medium", "high", "xhigh", "max")
PICTURE = string(pattern="^(https?://|data:[a-z]+/[a-z]+;base64,)")
TOKENS = array(integer(0), least=1)
FUNCTION = obj({"name": NAME}, {"description": STR, "parameters": ANY_OBJECT, "strict": BOOL})
ENGINE = {
    "keep_alive": one_of(STR, {"type": "number"}),
    "options": ANY_OBJECT,
    "num_ctx": integer(1),
}


def schemas() -> JSON:
    """By name."""
    return {**_turns(), **_requests(), **_answers(), **_embeddings()}


def _turns() -> JSON:
    content = one_of(STR, array(ref("ContentPart")))
    call = obj(
        {"function": obj({"name": STR}, {"arguments": one_of(STR, ANY_OBJECT)})},
        {"id": STR, "type": {"const": "function"}},
    )
    return {
        "ContentPart": one_of(
            tagged("text", {"text": STR}),
            tagged("image_url", {"image_url": one_of(PICTURE, obj({"url": PICTURE}, {"detail": STR}))}),
            tagged("input_audio", {"input_audio": obj({"data": STR}, {"format": STR})}),
            tagged("file", {"file": obj({"file_id": STR}, {"filename": STR})}),
            tagged("refusal", {"refusal": STR}),
            STR,
        ),
        "ChatTurn": one_of(
            obj({"role": enum("system", "developer", "user"), "content": content}, {"name": STR}),
            obj(
                {"role": {"const": "assistant"}},
                {
                    "content": content,
                    "name": STR,
                    "tool_calls": array(call),
                    "function_call": obj({"name": STR}, {"arguments": one_of(STR, ANY_OBJECT)}),
                    "reasoning_content": STR,
                },
            ),
            obj({"role": {"const": "tool"}}, {"content": content, "tool_call_id": STR, "name": STR}),
            obj({"role": {"const": "function"}, "name": STR}, {"content": content, "tool_call_id": STR}),
        ),
        "FunctionTool": obj({"function": FUNCTION}, {"type": {"const": "function"}}),
        "ToolChoice": one_of(
            enum("none", "auto", "required"),
            tagged("function", {"function": obj({"name": STR})}),
            tagged("allowed_tools", {"allowed_tools": obj({"tools": array(ANY_OBJECT, least=1)})}),
        ),
    }


def _shared() -> JSON:
    return {
        "model": STR,
        "stream": BOOL,
        "stream_options": obj(None, {"include_usage": BOOL}),
        "n": integer(1, 128),
        "temperature": number(0, 2),
        "top_p": number(0, 1),
        "top_k": integer(-1),
        "min_p": number(0, 1),
        "seed": integer(),
        "stop": one_of(STR, array(STR, most=16)),
        "frequency_penalty": number(-2, 2),
        "presence_penalty": number(-2, 2),
        "repeat_penalty": {"type": "number", "minimum": 0},
        "logit_bias": {"type": "object", "additionalProperties": number(-100, 100)},
        "user": STR,
        "max_tokens": integer(1),
        **ENGINE,
    }


def _requests() -> JSON:
    shape = one_of(
        obj({"type": enum("text", "json_object")}),
        tagged(
            "json_schema",
            {"json_schema": obj(None, {"schema": one_of(ANY_OBJECT, BOOL), "name": STR, "strict": BOOL})},
        ),
    )
    chat = {
        **_shared(),
        "tools": array(ref("FunctionTool")),
        "tool_choice": ref("ToolChoice"),
        "parallel_tool_calls": BOOL,
        "response_format": shape,
        "max_completion_tokens": integer(1),
        "logprobs": BOOL,
        "top_logprobs": integer(0, 20),
        "reasoning_effort": EFFORT,
        "store": BOOL,
        "metadata": ANY_OBJECT,
        "service_tier": STR,
        "verbosity": enum("low", "medium", "high"),
    }
    completion = {**_shared(), "suffix": STR, "echo": BOOL, "logprobs": integer(0, 20)}
    return {
        "ChatCompletionRequest": obj(
            {"messages": array(ref("ChatTurn"), least=1)},
            chat,
            allOf=[
                when("tool_choice", {"const": "required"}, {"tools": array({}, least=1)}),
                when("top_logprobs", integer(1), {"logprobs": {"const": True}}),
            ],
        ),
        "CompletionRequest": obj(
            {"prompt": one_of(STR, array(STR, 1, 128), array(TOKENS, 1, 128), TOKENS)}, completion
        ),
    }


def _answers() -> JSON:
    finish = enum("stop", "length", "tool_calls", "content_filter", "function_call")
    call = tagged("function", {"id": STR, "function": obj({"name": STR, "arguments": STR})})
    message = obj(
        {"role": {"const": "assistant"}, "content": optional(STR)},
        {"refusal": STR, "reasoning_content": STR, "tool_calls": array(call), "function_call": ANY_OBJECT},
    )
    head = {"id": STR, "created": INT, "model": STR}
    chat_choice = obj({"index": INT, "message": message, "logprobs": optional(ANY_OBJECT), "finish_reason": finish})
    text_choice = obj({"index": INT, "text": STR, "logprobs": optional(ANY_OBJECT), "finish_reason": finish})
    more = {"usage": ref("Usage"), "system_fingerprint": STR, "velollm": ANY_OBJECT}
    return {
        "Usage": obj({name: integer(0) for name in ("prompt_tokens", "completion_tokens", "total_tokens")}),
        "ChatCompletion": obj({**head, "object": {"const": "chat.completion"}, "choices": array(chat_choice)}, more),
        "Completion": obj({**head, "object": {"const": "text_completion"}, "choices": array(text_choice)}, more),
        "Model": obj({"id": STR, "object": {"const": "model"}, "created": INT, "owned_by": STR}),
        "Models": obj({"object": {"const": "list"}, "data": array(ref("Model"))}),
        "Error": obj({"error": obj({"message": STR, "type": STR, "param": optional(STR), "code": optional(STR)})}),
    }


def _embeddings() -> JSON:
    vector = one_of(array({"type": "number"}), STR)
    row = obj({"object": {"const": "embedding"}, "index": INT, "embedding": vector})
    usage = obj({"prompt_tokens": integer(0), "total_tokens": integer(0)})
    return {
        "EmbeddingsRequest": obj(
            {"input": one_of(STR, array(STR, 1), TOKENS, array(TOKENS, 1))},
            {
                "model": STR,
                "dimensions": integer(1),
                "encoding_format": enum("float", "base64"),
                "truncate": BOOL,
                "user": STR,
                **ENGINE,
            },
        ),
        "Embeddings": obj({"object": {"const": "list"}, "data": array(row), "model": STR, "usage": usage}),
    }
