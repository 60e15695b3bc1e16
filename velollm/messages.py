"""The typed request and the typed events that travel through the stack of layers, whatever the client's dialect.

Values here are treated as immutable: a layer that wants a change makes one with `request.replace(...)`. What a dialect
says and these types do not know travels in `extra`, and comes out again where dialect in and out agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import attrs

__all__ = [
    "AudioPart",
    "ChatAnswer",
    "ChatEvent",
    "ChatRequest",
    "Choice",
    "EmbedRequest",
    "Embeddings",
    "FilePart",
    "FinishReason",
    "ImagePart",
    "Message",
    "ModelInfo",
    "Part",
    "ReasoningPart",
    "RequestContext",
    "ResponseFormat",
    "ResponseMeta",
    "Role",
    "Source",
    "TextPart",
    "Timings",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "ToolChoice",
    "Usage",
]

Role: TypeAlias = Literal["system", "developer", "user", "assistant", "tool"]
FinishReason: TypeAlias = Literal["stop", "length", "tool_calls", "content_filter"]
JSON: TypeAlias = dict[str, Any]


# ---- parts of a message ----------------------------------------------------------------------------------------------


@attrs.define(kw_only=True)
class TextPart:
    """A piece of text."""

    text: str
    extra: JSON = attrs.field(factory=dict)


@attrs.define(kw_only=True)
class ImagePart:
    """An image: either base64 `data` with its `media_type`, or an `url` (http, https) that the backend must fetch."""

    data: str | None = None
    media_type: str | None = None
    url: str | None = None
    detail: str | None = None
    extra: JSON = attrs.field(factory=dict)


@attrs.define(kw_only=True)
class AudioPart:
    """Base64 audio; `format` is `wav`, `mp3`, ..."""

    data: str
    format: str
    extra: JSON = attrs.field(factory=dict)


@attrs.define(kw_only=True)
class FilePart:
    """A document: base64 `data` with `media_type`, plain `text`, or an id or url in `extra`."""

    data: str | None = None
    media_type: str | None = None
    text: str | None = None
    filename: str | None = None
    extra: JSON = attrs.field(factory=dict)


@attrs.define(kw_only=True)
class ReasoningPart:
    """What the model thought in an earlier turn; `signature` is Anthropic's, opaque."""

    text: str
    signature: str | None = None
    extra: JSON = attrs.field(factory=dict)


Part: TypeAlias = TextPart | ImagePart | AudioPart | FilePart | ReasoningPart


@attrs.define(kw_only=True)
class ToolCall:
    """A complete call. `arguments` is the JSON text as the model (or the client's history) wrote it."""

    id: str
    name: str
    arguments: str
    extra: JSON = attrs.field(factory=dict)


@attrs.define(kw_only=True)
class Message:
    """One turn. A tool result is `role="tool"` with `tool_call_id` (`name` where the dialect gives one).

    `content` is a plain string, or parts in order, or None (an assistant turn with tool calls alone).
    `is_error` marks a failed tool result (Anthropic).
    """

    role: Role
    content: str | list[Part] | None = None
    tool_calls: list[ToolCall] = attrs.field(factory=list)
    tool_call_id: str | None = None
    name: str | None = None
    reasoning: str | None = None
    is_error: bool = False
    extra: JSON = attrs.field(factory=dict)

    @property
    def text(self) -> str:
        """All text of this turn, parts joined without a separator, reasoning left out."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content or () if isinstance(part, TextPart))


# ---- the request -----------------------------------------------------------------------------------------------------


@attrs.define(kw_only=True)
class Tool:
    """A function the model may call; `parameters` is its JSON schema (None: no arguments were described)."""

    name: str
    description: str | None = None
    parameters: JSON | None = None
    strict: bool | None = None
    extra: JSON = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class ToolChoice:
    """`auto`, `none`, `required` (any tool, but one), or `named` with the `name` that must be called."""

    mode: Literal["auto", "none", "required", "named"]
    name: str | None = None


@attrs.frozen(kw_only=True)
class ResponseFormat:
    """`json_object` (any JSON), or `json_schema` with the schema the answer must satisfy."""

    kind: Literal["json_object", "json_schema"]
    schema: JSON | bool | None = None
    name: str | None = None
    strict: bool | None = None
    description: str | None = None


@attrs.define(kw_only=True)
class Source:
    """The request as it came in, so that it can go out unchanged where the backend speaks the same wire.

    `wire` names dialect and endpoint: `openai.chat`, `openai.completions`, `openai.responses`, `ollama.chat`,
    `ollama.generate`, `anthropic.messages`. `payload` is `body` parsed; neither is ever modified.
    """

    wire: str
    body: bytes
    payload: JSON


@attrs.define(kw_only=True)
class RequestContext:
    """What is known about a request beside its content: who asks, how urgent it is, and what to tell the client.

    Layers write response headers into `headers` until the first event has left; what is known only later goes into
    `trailer`, which ends up in the last event's `velollm` object (or among the headers of an answer sent in one piece).
    `salt` keeps what is cached for one tenant apart from all others'. `deadline` is the latest first byte, on the clock
    of `marks`, which holds clock readings in seconds by name (`received`, `queued`, `sent`, `first_token`, `done`).
    """

    request_id: str = ""
    tenant: str = ""
    salt: str = ""
    session: str | None = None
    priority: Literal["interactive", "normal", "batch"] | None = None
    deadline: float | None = None
    client_headers: Mapping[str, str] = attrs.field(factory=dict)
    headers: dict[str, str] = attrs.field(factory=dict)
    trailer: dict[str, Any] = attrs.field(factory=dict)
    marks: dict[str, float] = attrs.field(factory=dict)


@attrs.define(kw_only=True)
class ChatRequest:
    """Everything one generation needs.

    Either `messages` (a chat) or `prompt` (a completion: text or token ids, with an optional `suffix`) is given; with
    `prompt`, `raw` says that no chat template is to be applied. `further_prompts` of the same request are answered each
    as a request of its own (`velollm.prompts`); no backend ever sees them. `None` always means: not said by the client,
    leave it to the backend. `think` asks for reasoning: a bool, or an effort word (`minimal`, `low`, `medium`, `high`).
    `options` holds engine options that no common field covers (`num_ctx`, `mirostat`, ...), by Ollama's names.
    `extra` holds the client's unknown top-level fields.
    """

    model: str = ""
    messages: list[Message] = attrs.field(factory=list)
    prompt: str | list[int] | None = None
    further_prompts: Sequence[str | list[int]] = ()
    suffix: str | None = None
    raw: bool = False
    tools: list[Tool] = attrs.field(factory=list)
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: list[str] = attrs.field(factory=list)
    n: int = 1
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repeat_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: bool = False
    top_logprobs: int | None = None
    echo: bool = False
    think: bool | str | None = None
    stream: bool = False
    include_usage: bool = False
    user: str | None = None
    keep_alive: str | float | None = None
    options: JSON = attrs.field(factory=dict)
    extra: JSON = attrs.field(factory=dict)
    source: Source | None = None
    context: RequestContext = attrs.field(factory=RequestContext)

    @property
    def asks_nothing(self) -> bool:
        """Whether there is nothing to answer: the model is only to be made ready (or, with `keep_alive` 0, let go)."""
        return not (self.messages or self.prompt or self.raw or self.suffix)

    def replace(self, **changes: Any) -> ChatRequest:
        """A copy with `changes`; a change of content drops `source`, for the original bytes no longer say the same.

        A new `model` alone keeps it: adapters that send the original put the new name into it.
        """
        if not changes.keys() <= {"model", "context", "source"}:
            changes.setdefault("source", None)
        return attrs.evolve(self, **changes)


@attrs.define(kw_only=True)
class EmbedRequest:
    """Texts (or token-id lists) to embed, in order. `dimensions` cuts the vectors where the model allows it."""

    model: str = ""
    inputs: Sequence[str | list[int]]
    dimensions: int | None = None
    truncate: bool | None = None
    keep_alive: str | float | None = None
    options: JSON = attrs.field(factory=dict)
    extra: JSON = attrs.field(factory=dict)
    context: RequestContext = attrs.field(factory=RequestContext)


# ---- the answer ------------------------------------------------------------------------------------------------------


@attrs.define(kw_only=True)
class Timings:
    """Where the engine's time went, in seconds, as far as it says so."""

    load: float | None = None
    prefill: float | None = None
    decode: float | None = None
    total: float | None = None


@attrs.define(kw_only=True)
class Usage:
    """Token counts. `cached_tokens` are those of the prompt that the engine found in its prefix cache."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    timings: Timings | None = None

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Usage) -> Usage:
        """What two generations took together; a count that only one of them has is taken as it is."""
        return Usage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            cached_tokens=_plus(self.cached_tokens, other.cached_tokens),
            reasoning_tokens=_plus(self.reasoning_tokens, other.reasoning_tokens),
        )


def _plus(one: int | None, other: int | None) -> int | None:
    return one if other is None else other if one is None else one + other


@attrs.define
class ToolCallDelta:
    """A piece of a tool call: `id` and `name` come once, `arguments` are JSON fragments that join up."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@attrs.define(kw_only=True)
class ResponseMeta:
    """What the engine says of the answer as a whole; `created` is in Unix seconds, 0 when unknown."""

    id: str = ""
    model: str = ""
    created: int = 0
    extra: JSON = attrs.field(factory=dict)


@attrs.define
class ChatEvent:
    """One step of the answer for choice `index`; any of its fields may be filled.

    `wire` and `raw` are the upstream bytes of this event, complete with framing, where they say exactly this event and
    nothing else; a door that speaks `wire` may send them as they are. An event made or changed by a layer has none.
    When one upstream chunk becomes several events, the first carries the bytes and the others carry `raw=b""`; when
    texts that came at once became one event, `pieces` says how many they were, and `texts` which. Errors are not
    events: iteration raises a `VeloError`.
    """

    text: str = ""
    reasoning: str = ""
    tool_calls: Sequence[ToolCallDelta] = ()
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    index: int = 0
    meta: ResponseMeta | None = None
    logprobs: JSON | None = None
    stop_sequence: str | None = None
    wire: str | None = None
    raw: bytes | None = None
    pieces: int = 1
    texts: Sequence[str] = attrs.field(default=(), eq=False)

    def parts(self) -> Sequence[str]:
        """The text in the pieces in which the engine sent it, as far as they are known: mostly a token each.

        Of a text that has lost its beginning since, those that are left.
        """
        if not self.text:
            return ()
        left = len(self.text)
        for number in range(len(self.texts) - 1, -1, -1):
            left -= len(self.texts[number])
            if left <= 0:
                parts = self.texts[number:]
                return parts if "".join(parts) == self.text else (self.text,)
        return (self.text,)


@attrs.define(kw_only=True)
class Choice:
    """One complete answer out of `n`."""

    index: int = 0
    text: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = attrs.field(factory=list)
    finish_reason: FinishReason | None = None
    stop_sequence: str | None = None
    logprobs: JSON | None = None


@attrs.define(kw_only=True)
class ChatAnswer:
    """A whole answer: its choices by index, and what the engine said of them together."""

    choices: list[Choice] = attrs.field(factory=list)
    usage: Usage | None = None
    meta: ResponseMeta = attrs.field(factory=ResponseMeta)

    @property
    def complete(self) -> bool:
        """Every choice has its finish reason, and there is at least one."""
        return bool(self.choices) and all(choice.finish_reason for choice in self.choices)


@attrs.define(kw_only=True)
class Embeddings:
    """Vectors as lists of floats, in the order of the inputs."""

    vectors: list[list[float]]
    model: str = ""
    prompt_tokens: int = 0
    timings: Timings | None = None


@attrs.define(kw_only=True)
class ModelInfo:
    """A model that a backend serves. `created` is in Unix seconds; `size` in bytes; `digest` is unique and stable.

    `capabilities` uses Ollama's words: completion, tools, vision, thinking, embedding, insert, audio.
    """

    id: str
    created: int = 0
    owned_by: str = ""
    size: int = 0
    digest: str = ""
    family: str = ""
    parameter_size: str = ""
    quantization: str = ""
    context_length: int | None = None
    capabilities: list[str] = attrs.field(factory=list)
    extra: JSON = attrs.field(factory=dict)
