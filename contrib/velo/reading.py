"""What a request means for the engine: its prompt, how to sample, what its answer must look like. No I/O."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import attrs

from velollm.api.openai.upstream import encode_messages, encode_tools
from velollm.contrib.forced import ForcedCall, forced_call
from velollm.contrib.toolless import has_tool_turns, tell_tools
from velollm.contrib.velo.template import ChatTemplate
from velollm.engine.constraints import Grammars
from velollm.engine.sampling import Constraint, SamplingParams
from velollm.engine.vocabulary import Vocabulary
from velollm.errors import RequestError, UnsupportedError
from velollm.messages import ChatRequest, FilePart, Message, Part, TextPart

__all__ = ["PRIORITIES", "Meant", "read_prompt", "read_request", "read_sampling"]

JSON: TypeAlias = dict[str, Any]

PRIORITIES = {"interactive": -1, "normal": 0, "batch": 1}
THINKING_OFF = {"enable_thinking": False, "thinking": False}


@attrs.frozen(kw_only=True)
class Meant:
    """A request as the engine takes it.

    `thinking` says that the prompt ends within reasoning; it is None where no reasoning is to be told apart. `echo` is
    what of the prompt is to be repeated in front of the answer.
    """

    prompt: list[int]
    sampling: SamplingParams
    constrain: Callable[[], Constraint] | None
    forced: ForcedCall | None
    tools: list[JSON]
    thinking: bool | None
    echo: str


def read_request(request: ChatRequest, template: ChatTemplate, vocabulary: Vocabulary, grammars: Grammars) -> Meant:
    """Raises `RequestError` for what makes no sense, `UnsupportedError` for what the engine cannot do."""
    forced = forced_call(request)
    constrain = _constraint(request, forced, grammars)
    if request.echo and request.logprobs:
        raise UnsupportedError("log probabilities of an echoed prompt are not computed here", param="echo")
    prompt, text = read_prompt(request, template, vocabulary, plain=constrain is not None)
    choice = request.tool_choice
    heard = request.tools if forced is None and (choice is None or choice.mode != "none") else []
    return Meant(
        prompt=prompt,
        sampling=read_sampling(request, vocabulary),
        constrain=constrain,
        forced=forced,
        tools=encode_tools(heard),
        thinking=None if request.raw else text.rstrip().endswith("<think>"),
        echo=text if request.echo else "",
    )


def read_prompt(
    request: ChatRequest, template: ChatTemplate, vocabulary: Vocabulary, *, plain: bool = False
) -> tuple[list[int], str]:
    """The prompt's ids, and its text. With `plain`, no reasoning comes before the answer."""
    if isinstance(request.prompt, list):
        if not request.prompt:
            raise RequestError("the prompt is empty", param="prompt")
        return request.prompt, vocabulary.decode(request.prompt)
    if request.prompt is not None and (request.raw or request.suffix is not None):
        if request.suffix is not None:
            return _infill(request.prompt, request.suffix, vocabulary), request.prompt
        return _not_empty(vocabulary.encode(request.prompt, add_special=True, parse_special=True), vocabulary), (
            request.prompt
        )
    text = _render(request, template, plain=plain)
    bos = vocabulary.name(vocabulary.bos).decode("utf-8", "replace")
    doubled = bool(bos) and text.startswith(bos)
    return _not_empty(vocabulary.encode(text, add_special=not doubled, parse_special=True), vocabulary), text


def _render(request: ChatRequest, template: ChatTemplate, *, plain: bool) -> str:
    if not template.knows_tools and (request.tools or has_tool_turns(request)):
        request = tell_tools(request)
    choice = request.tool_choice
    tools = [] if choice is not None and choice.mode == "none" else request.tools
    messages = encode_messages([_as_text(message) for message in request.messages])
    if request.prompt is not None:
        messages.append({"role": "user", "content": request.prompt})
    last = messages[-1] if messages else None
    begun = ""
    if last is not None and last["role"] == "assistant" and not last.get("tool_calls") and last.get("content"):
        content = messages.pop()["content"]
        begun = content if isinstance(content, str) else "".join(part["text"] for part in content)
    words: JSON = {}
    if plain or begun:
        words = dict(THINKING_OFF)
    elif request.think is not None:
        words = {"enable_thinking": bool(request.think), "thinking": bool(request.think)}
        if isinstance(request.think, str):
            words["reasoning_effort"] = request.think
    more = request.extra.get("chat_template_kwargs")
    return template.render(messages, encode_tools(tools), **words, **_unknown(more, words)) + begun


def _as_text(message: Message) -> Message:
    """The message with its documents as text; anything else than text is refused."""
    if not isinstance(message.content, list):
        return message
    parts: list[Part] = []
    for part in message.content:
        if isinstance(part, FilePart) and part.text is not None:
            part = TextPart(text=part.text)
        if not isinstance(part, TextPart):
            raise UnsupportedError("this engine reads text only", param="messages")
        parts.append(part)
    return attrs.evolve(message, content=parts)


def _unknown(more: Any, words: JSON) -> JSON:
    reserved = {"messages", "tools", "add_generation_prompt", "bos_token", "eos_token", *words}
    return {key: value for key, value in more.items() if key not in reserved} if isinstance(more, dict) else {}


def _not_empty(tokens: list[int], vocabulary: Vocabulary) -> list[int]:
    if tokens:
        return tokens
    first = vocabulary.bos if vocabulary.bos >= 0 else vocabulary.eos
    if first < 0:
        raise RequestError("the prompt is empty", param="prompt")
    return [first]


def _infill(prefix: str, suffix: str, vocabulary: Vocabulary) -> list[int]:
    before, after, middle = vocabulary.fim
    if min(before, after, middle) < 0:
        raise UnsupportedError("this model cannot fill gaps: it has no infill tokens", param="suffix")
    start = [vocabulary.bos] if vocabulary.adds_bos and vocabulary.bos >= 0 else []
    return [*start, before, *vocabulary.encode(prefix), after, *vocabulary.encode(suffix), middle]


def read_sampling(request: ChatRequest, vocabulary: Vocabulary) -> SamplingParams:
    """What the client said, and llama.cpp's defaults for the rest. `ignore_eos` is llama-server's word, and vLLM's."""
    options = request.options
    given = {
        "temperature": request.temperature,
        "top_k": request.top_k,
        "top_p": request.top_p,
        "min_p": request.min_p,
        "typical_p": _number(options, "typical_p"),
        "repeat_penalty": request.repeat_penalty,
        "repeat_last_n": _number(options, "repeat_last_n"),
        "presence_penalty": request.presence_penalty,
        "frequency_penalty": request.frequency_penalty,
        "seed": request.seed,
    }
    known = {name: value for name, value in given.items() if value is not None}
    if known.get("seed") == -1:
        del known["seed"]  # Ollama's and llama.cpp's word for any
    if known.get("top_k", 0) < 0:
        known["top_k"] = 0  # vLLM's word for all
    if request.logit_bias:
        known["logit_bias"] = {_token(key): float(value) for key, value in request.logit_bias.items()}
    if {**options, **request.extra}.get("ignore_eos") is True:
        known["logit_bias"] = {**known.get("logit_bias", {}), **dict.fromkeys(vocabulary.ends, -math.inf)}
    if request.logprobs:
        known["logprobs"] = request.top_logprobs or 0
    return SamplingParams(**known)


def _number(options: JSON, name: str) -> Any:
    value = options.get(name)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _token(key: str) -> int:
    try:
        return int(key)
    except ValueError:
        raise RequestError("logit_bias is keyed by token ids", param="logit_bias") from None


def _constraint(request: ChatRequest, forced: ForcedCall | None, grammars: Grammars) -> Callable[[], Constraint] | None:
    """By what was forced, the response format, or the words of llama-server and vLLM for the same."""
    if forced is not None:
        return grammars.json_schema(forced.schema)
    wanted = request.response_format
    if wanted is not None:
        return grammars.json_schema({"type": "object"} if wanted.kind == "json_object" else wanted.schema)
    extra = {**request.options, **request.extra}
    schema = extra.get("json_schema", extra.get("guided_json"))
    if schema is not None:
        return grammars.json_schema(_parsed(schema))
    if isinstance(extra.get("grammar"), str) and extra["grammar"].strip():
        return grammars.gbnf(extra["grammar"])
    if isinstance(extra.get("guided_regex"), str):
        return grammars.regex(extra["guided_regex"])
    choices = extra.get("guided_choice")
    if isinstance(choices, list) and choices:
        return grammars.lark("start: " + " | ".join(json.dumps(str(choice)) for choice in choices))
    return None


def _parsed(schema: Any) -> Any:
    try:
        return json.loads(schema) if isinstance(schema, str) else schema
    except ValueError as error:
        raise RequestError("the JSON schema is no JSON", param="json_schema") from error
