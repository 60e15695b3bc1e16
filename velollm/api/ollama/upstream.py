"""Requests to an Ollama: the client's own bytes where they say it all, else the typed request encoded. No I/O.

Its native API is what is spoken, `/api/chat` and `/api/generate`: `/v1` there ignores half of what OpenAI's clients
say. What is encoded is always streamed, so that silence means a fault, and thinks only where it was asked to: a model
that can think does so unless it is told not to. The way back: `velollm.api.ollama.lines`.
"""

from __future__ import annotations

import re
from typing import Any, TypeAlias

import orjson

from velollm.api.arguments import arguments_object
from velollm.api.ollama.tools import encode_tools
from velollm.errors import RequestError, UnsupportedError
from velollm.messages import (
    AudioPart,
    ChatRequest,
    EmbedRequest,
    FilePart,
    ImagePart,
    Message,
    Part,
    ReasoningPart,
    ResponseFormat,
    TextPart,
)

__all__ = [
    "encode_chat",
    "encode_embed",
    "encode_generate",
    "encode_think",
    "first_image",
    "goes_as_it_came",
    "request_body",
    "wire_of",
]

JSON: TypeAlias = dict[str, Any]

OPTIONS = {
    "max_tokens": "num_predict",
    **{
        name: name
        for name in (
            "temperature", "top_p", "top_k", "min_p", "seed", "frequency_penalty", "presence_penalty", "repeat_penalty",
        )
    },
}  # fmt: skip
WIRES = ("ollama.chat", "ollama.generate")
SECONDS = re.compile(r"[-+]?\d{1,15}", re.ASCII)
LEVELS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}


def wire_of(request: ChatRequest) -> str:
    """`ollama.generate` for a prompt, `ollama.chat` for messages, or as the client asked where it speaks Ollama."""
    if goes_as_it_came(request) and request.source is not None:
        return request.source.wire
    return "ollama.chat" if request.prompt is None else "ollama.generate"


def goes_as_it_came(request: ChatRequest) -> bool:
    """Whether the client's own bytes are what is sent."""
    return request.source is not None and request.source.wire in WIRES


def request_body(request: ChatRequest) -> bytes:
    """The JSON body for `POST /api/chat` or `POST /api/generate`, whichever `wire_of` says.

    Raises `UnsupportedError` for what Ollama cannot be told.
    """
    if request.source is not None and goes_as_it_came(request):
        return _patched(request, request.source.body, request.source.payload)
    body = encode_chat(request) if wire_of(request) == "ollama.chat" else encode_generate(request)
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError as error:
        raise RequestError("the request is nested too deeply") from error


def _patched(request: ChatRequest, body: bytes, payload: JSON) -> bytes:
    """The original bytes, but with the resolved model name and the context that was decided on."""
    options = payload.get("options") or {}
    num_ctx = request.options.get("num_ctx")
    if request.model == payload.get("model") and num_ctx == options.get("num_ctx"):
        return body
    changed = {**payload, "model": request.model}
    if num_ctx is not None:
        changed["options"] = {**options, "num_ctx": num_ctx}
    return orjson.dumps(changed)


def encode_chat(request: ChatRequest) -> JSON:
    """The body of a chat."""
    body = _shared(request)
    body["messages"] = [_turn(message, number) for number, message in enumerate(request.messages)]
    if request.tools:
        body["tools"] = encode_tools(request.tools)
    return _with_extra(body, request.extra)


def encode_generate(request: ChatRequest) -> JSON:
    """The body of a generation from a prompt; of the messages beside it only a system prompt can be told."""
    if not isinstance(request.prompt, str):
        raise UnsupportedError("Ollama takes no token ids: send the prompt as text", param="prompt")
    body = _shared(request)
    body["prompt"] = request.prompt
    system = "\n\n".join(message.text for message in request.messages if message.role in ("system", "developer"))
    if system and not request.raw:
        body["system"] = system
    if request.suffix is not None:
        body["suffix"] = request.suffix
    if request.raw:
        body["raw"] = True
    return _with_extra(body, request.extra)


def encode_embed(request: EmbedRequest) -> JSON:
    """The body of `POST /api/embed`."""
    for number, text in enumerate(request.inputs):
        if not isinstance(text, str):
            raise UnsupportedError("Ollama embeds texts, no token ids: send strings", param=f"input[{number}]")
    body: JSON = {"model": request.model, "input": list(request.inputs)}
    for name in ("dimensions", "truncate"):
        if getattr(request, name) is not None:
            body[name] = getattr(request, name)
    if request.options:
        body["options"] = request.options
    _add_keep_alive(body, request.keep_alive)
    return _with_extra(body, request.extra)


def encode_think(think: bool | str, *, thinks: bool, levels: bool) -> bool | str:
    """What to send as `think` for a model that can think (`thinks`), at different `levels` or only at all."""
    if not thinks:
        return False
    if isinstance(think, str):
        return LEVELS.get(think, "medium") if levels else True
    return think


def first_image(request: ChatRequest) -> str | None:
    """Where the first image stands that is sent along, or None."""
    for number, message in enumerate(request.messages):
        if isinstance(message.content, list):
            for place, part in enumerate(message.content):
                if isinstance(part, ImagePart) and part.data is not None:
                    return f"messages[{number}].content[{place}]"
    return None


def _shared(request: ChatRequest) -> JSON:
    body: JSON = {"model": request.model, "stream": True, "think": request.think or False}
    options = dict(request.options)
    for name, option in OPTIONS.items():
        value = getattr(request, name)
        if value is not None:
            options[option] = value
    if options.get("top_k") == -1:
        options["top_k"] = 0  # vLLM's word for all of them
    if request.stop:
        options["stop"] = request.stop
    if options:
        body["options"] = options
    if request.logit_bias:
        raise UnsupportedError("Ollama knows no logit_bias: leave it out", param="logit_bias")
    if request.response_format is not None:
        body["format"] = _format(request.response_format)
    if request.logprobs:
        body["logprobs"] = True
        if request.top_logprobs:
            body["top_logprobs"] = request.top_logprobs
    _add_keep_alive(body, request.keep_alive)
    return body


def _add_keep_alive(body: JSON, value: str | float | None) -> None:
    """Ollama wants a number for seconds: what is a number in a string would be refused."""
    if isinstance(value, str) and SECONDS.fullmatch(value):
        value = int(value)
    if value is not None and value != "":
        body["keep_alive"] = value


def _format(wanted: ResponseFormat) -> str | JSON:
    schema = wanted.schema
    return schema if wanted.kind == "json_schema" and isinstance(schema, dict) and schema else "json"


def _with_extra(body: JSON, extra: JSON) -> JSON:
    """Go reads field names whatever their case: what differs from a known one in that alone would take its place."""
    known = {key.casefold() for key in body} | {"model", "messages", "prompt", "input"}
    body.update({key: value for key, value in extra.items() if key.casefold() not in known})
    return body


# ---- messages --------------------------------------------------------------------------------------------------------


def _turn(message: Message, number: int) -> JSON:
    text, images, thoughts = _content(message.content, number)
    turn: JSON = {
        **message.extra,
        "role": "system" if message.role == "developer" else message.role,
        "content": text,
    }
    if images:
        turn["images"] = images
    if thinking := message.reasoning or thoughts:
        turn["thinking"] = thinking
    if message.tool_calls:
        turn["tool_calls"] = [
            {"id": call.id, "function": {"name": call.name, "arguments": arguments_object(call.arguments)}}
            for call in message.tool_calls
        ]
    if message.role == "tool":
        if message.name:
            turn["tool_name"] = message.name
        if message.tool_call_id:
            turn["tool_call_id"] = message.tool_call_id
    return turn


def _content(content: str | list[Part] | None, number: int) -> tuple[str, list[str], str]:
    """Text, images and thoughts: one message has room for one text."""
    if not isinstance(content, list):
        return content or "", [], ""
    texts, images, thoughts = [], [], []
    for place, part in enumerate(content):
        path = f"messages[{number}].content[{place}]"
        if isinstance(part, TextPart):
            texts.append(part.text)
        elif isinstance(part, ImagePart):
            images.append(_image(part, path))
        elif isinstance(part, ReasoningPart):
            thoughts.append(part.text)
        else:
            texts.append(_document(part, path))
    return "\n".join(texts), images, "\n".join(thoughts)


def _image(part: ImagePart, path: str) -> str:
    if part.data is None:
        raise UnsupportedError(
            "images are not fetched from URLs: send the image itself, as a data URL (data:image/png;base64,…)",
            param=path,
        )
    return part.data


def _document(part: AudioPart | FilePart, path: str) -> str:
    if isinstance(part, FilePart) and part.text is not None:
        return part.text
    word = "audio" if isinstance(part, AudioPart) else "files"
    raise UnsupportedError(f"Ollama takes no {word}: send text and images", param=path)
