"""Requests to engines that speak OpenAI: the client's own bytes where they say it all, else the typed request encoded.

Encoded for local engines (vLLM, SGLang, llama-server, LM Studio, LocalAI): their extensions are used where a field has
no other word, and what is not set is not sent. The way back: `StreamDecoder` for streams, `decode_answer` for the rest.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

import orjson

from velollm.api.openai.chunks import StreamDecoder
from velollm.api.openai.parts import encode_part
from velollm.api.openai.whole import decode_answer
from velollm.errors import RequestError
from velollm.messages import ChatRequest, EmbedRequest, Message, Part, Source, TextPart, Tool

__all__ = [
    "StreamDecoder",
    "decode_answer",
    "dump",
    "encode_chat",
    "encode_completion",
    "encode_embed",
    "encode_messages",
    "encode_tools",
    "request_body",
    "wire_of",
]

JSON: TypeAlias = dict[str, Any]

ASK_USAGE = b'{"stream_options":{"include_usage":true},'
SAME = (
    "temperature", "top_p", "top_k", "min_p", "seed", "frequency_penalty", "presence_penalty", "logit_bias", "user",
    "max_tokens",
)  # fmt: skip
# Options of Ollama that llama-server, LocalAI and others know by the same or (second) another name. The rest of them
# configure Ollama's own loading of a model and mean nothing to an engine that has loaded its own.
OPTIONS = {
    "mirostat": "mirostat",
    "mirostat_tau": "mirostat_tau",
    "mirostat_eta": "mirostat_eta",
    "repeat_last_n": "repeat_last_n",
    "typical_p": "typical_p",
    "num_keep": "n_keep",
}
NOT_SENT = frozenset({"functions", "function_call"})  # their modern forms are


def wire_of(request: ChatRequest) -> str:
    """`openai.completions` for a prompt that no chat template is to touch, else `openai.chat`."""
    if request.prompt is None:
        return "openai.chat"
    templated = isinstance(request.prompt, str) and not request.raw and request.suffix is None
    return "openai.chat" if templated else "openai.completions"


def request_body(request: ChatRequest) -> bytes:
    """The JSON body for `POST chat/completions` or `POST completions`, whichever `wire_of` says."""
    wire = wire_of(request)
    source = request.source
    if source is not None and source.wire == wire:
        return _patched(request, source)
    return dump(encode_chat(request) if wire == "openai.chat" else encode_completion(request))


def dump(body: Any) -> bytes:
    """JSON bytes. Raises `RequestError` where the client's own fields are nested deeper than JSON writers go."""
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError as error:
        raise RequestError("the request is nested too deeply") from error


def _patched(request: ChatRequest, source: Source) -> bytes:
    """The original bytes, but with the resolved model name, and with usage asked for in a stream."""
    payload = source.payload
    options = payload.get("stream_options")
    fits = options is None or (request.stream and options.get("include_usage"))
    if fits and request.model == (payload.get("model") or "") and payload.get("tools") != []:
        if request.stream and options is None:
            return ASK_USAGE + source.body[source.body.index(b"{") + 1 :]
        return source.body
    changed = {key: value for key, value in payload.items() if key != "stream_options"}
    if request.model:
        changed["model"] = request.model
    if request.stream:
        changed["stream_options"] = {**(options or {}), "include_usage": True}
    if payload.get("tools") == []:
        del changed["tools"]
        changed.pop("tool_choice", None)
    return dump(changed)


# ---- encoding a typed request ----------------------------------------------------------------------------------------


def encode_chat(request: ChatRequest) -> JSON:
    """The body of a chat completion; a prompt becomes the user's last turn."""
    body = _shared(request)
    prompt = [] if request.prompt is None else [Message(role="user", content=str(request.prompt))]
    body["messages"] = encode_messages([*request.messages, *prompt])
    if request.tools:
        body["tools"] = encode_tools(request.tools)
        _add_tool_choice(body, request)
    if request.logprobs:
        body["logprobs"] = True
        if request.top_logprobs is not None:
            body["top_logprobs"] = request.top_logprobs
    _add_think(body, request)
    return _with_extra(body, request.extra)


def encode_completion(request: ChatRequest) -> JSON:
    """The body of a completion."""
    body = _shared(request)
    body["prompt"] = request.prompt
    if request.suffix is not None:
        body["suffix"] = request.suffix
    if request.logprobs:
        body["logprobs"] = request.top_logprobs or 0
    if request.echo:
        body["echo"] = True
    return _with_extra(body, request.extra)


def encode_embed(request: EmbedRequest) -> JSON:
    """The body of an embeddings request; always asks for plain floats."""
    inputs = list(request.inputs)
    body: JSON = {"input": inputs, "encoding_format": "float"}
    if request.model:
        body["model"] = request.model
    if request.dimensions is not None:
        body["dimensions"] = request.dimensions
    return _with_extra(body, request.extra)


def _shared(request: ChatRequest) -> JSON:
    body: JSON = {"model": request.model} if request.model else {}
    for name in SAME:
        value = getattr(request, name)
        if value is not None:
            body[name] = value
    if request.repeat_penalty is not None:
        body["repetition_penalty"] = body["repeat_penalty"] = request.repeat_penalty
    if request.stop:
        body["stop"] = request.stop
    if request.n != 1:
        body["n"] = request.n
    for name, value in request.options.items():
        if name in OPTIONS:
            body.setdefault(OPTIONS[name], value)
    if request.stream:
        body["stream"] = True
        body["stream_options"] = {"include_usage": True}
    if request.response_format is not None:
        body["response_format"] = _response_format(request)
    return body


def _response_format(request: ChatRequest) -> JSON:
    wanted = request.response_format
    if wanted is None or wanted.kind == "json_object":
        return {"type": "json_object"}
    schema: JSON = {"name": wanted.name or "answer", "schema": {} if wanted.schema is None else wanted.schema}
    for name in ("strict", "description"):
        if getattr(wanted, name) is not None:
            schema[name] = getattr(wanted, name)
    return {"type": "json_schema", "json_schema": schema}


def _add_tool_choice(body: JSON, request: ChatRequest) -> None:
    choice = request.tool_choice
    if choice is not None:
        named = {"type": "function", "function": {"name": choice.name}}
        body["tool_choice"] = named if choice.mode == "named" else choice.mode
    if request.parallel_tool_calls is not None:
        body["parallel_tool_calls"] = request.parallel_tool_calls


def _add_think(body: JSON, request: ChatRequest) -> None:
    """Templates differ in the name of their switch: both usual ones, and the effort word for those with levels."""
    think = request.think
    if think is None:
        return
    enabled = bool(think)
    body["chat_template_kwargs"] = {"enable_thinking": enabled, "thinking": enabled}
    if isinstance(think, str):
        body["reasoning_effort"] = think


def _with_extra(body: JSON, extra: JSON) -> JSON:
    for key, value in extra.items():
        if key in NOT_SENT:
            continue
        known = body.get(key)
        if isinstance(known, dict) and isinstance(value, dict):
            body[key] = {**known, **value}
        else:
            body.setdefault(key, value)
    return body


def encode_tools(tools: Iterable[Tool]) -> list[JSON]:
    """Tools as OpenAI writes them."""
    return [_tool(tool) for tool in tools]


def _tool(tool: Tool) -> JSON:
    function: JSON = {"name": tool.name}
    for name in ("description", "parameters", "strict"):
        value = getattr(tool, name)
        if value is not None:
            function[name] = value
    extra = dict(tool.extra)
    function.update(extra.pop("function", {}))
    return {"type": "function", "function": function, **extra}


def encode_messages(messages: Iterable[Message]) -> list[JSON]:
    """Messages as local engines take them: `developer` is `system`, and every tool result names the call it answers."""
    encoded = []
    open_calls: list[tuple[str, str]] = []
    for number, message in enumerate(messages):
        if message.role == "tool":
            encoded.append(_result(message, open_calls))
            continue
        body = _turn(message)
        if message.tool_calls:
            body["tool_calls"] = _calls(message, number)
            open_calls = [(call["id"], call["function"]["name"]) for call in body["tool_calls"]]
        encoded.append(body)
    return encoded


def _turn(message: Message) -> JSON:
    body: JSON = {"role": "system" if message.role == "developer" else message.role}
    body["content"] = _content(message.content)
    if message.name:
        body["name"] = message.name
    if message.reasoning:
        body["reasoning_content"] = message.reasoning
    return {**message.extra, **body}


def _content(content: str | list[Part] | None) -> str | list[JSON] | None:
    return [encode_part(part) for part in content] if isinstance(content, list) else content


def _calls(message: Message, number: int) -> list[JSON]:
    calls = []
    for place, call in enumerate(message.tool_calls):
        extra = dict(call.extra)
        function = {"name": call.name, "arguments": call.arguments, **extra.pop("function", {})}
        calls.append({"id": call.id or f"call_{number}_{place}", "type": "function", "function": function, **extra})
    return calls


def _result(message: Message, open_calls: list[tuple[str, str]]) -> JSON:
    """A tool result; without an id it answers the first open call of its name, or simply the first."""
    call_id = message.tool_call_id
    if not call_id:
        named = (call for call, name in open_calls if name == message.name)
        call_id = next(named, open_calls[0][0] if open_calls else "call_0")
    open_calls[:] = [call for call in open_calls if call[0] != call_id]
    content = message.content
    if isinstance(content, list) and all(isinstance(part, TextPart) for part in content):
        content = "\n".join(part.text for part in content if isinstance(part, TextPart))
    return {**message.extra, "role": "tool", "tool_call_id": call_id, "content": _content(content) or ""}
