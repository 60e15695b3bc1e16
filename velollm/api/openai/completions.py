"""`POST /v1/completions`: text in, text on, without a chat template."""

from __future__ import annotations

from typing import Any, ClassVar, TypeAlias

from velollm.api.openai.identity import Identity, Minter, render_usage
from velollm.api.openai.logprobs import to_legacy
from velollm.api.openai.sampling import SHARED, parse_shared
from velollm.api.openai.stream import EventStream
from velollm.api.values import at, fail, get_bool, get_int, get_str, kind, rest
from velollm.messages import ChatAnswer, ChatEvent, ChatRequest, Choice, RequestContext, Source

__all__ = ["CompletionStream", "Completions"]

JSON: TypeAlias = dict[str, Any]

KNOWN = SHARED | {"prompt", "suffix", "max_tokens", "logprobs", "echo"}
PREFIX = "cmpl-"
MOST_PROMPTS = 128  # as many as there may be choices of one
MOST_LOGPROBS = 20  # OpenAI stops at 5, local engines go further


class Completions:
    """The completion endpoint."""

    wire: ClassVar[str] = "openai.completions"
    dialect: ClassVar[str] = "openai"
    stream_type: ClassVar[str] = "text/event-stream"

    def __init__(self, mint: Minter | None = None) -> None:
        self._mint = mint or Minter()

    def parse(self, payload: JSON, body: bytes, context: RequestContext) -> ChatRequest:
        """Validate and translate."""
        shared = parse_shared(payload)
        logprobs = get_int(payload, "logprobs", low=0, high=MOST_LOGPROBS)
        suffix = get_str(payload, "suffix")
        _check_best_of(payload, shared.get("n", 1))
        prompt, *more = _prompts(payload.get("prompt"))
        return ChatRequest(
            **{**shared, "extra": {**rest(payload, KNOWN), **shared.get("extra", {})}},
            prompt=prompt,
            further_prompts=more,
            suffix=suffix or None,
            raw=not suffix,  # filling a gap needs the model's own infill template
            max_tokens=get_int(payload, "max_tokens", low=1),
            logprobs=logprobs is not None,
            top_logprobs=logprobs,
            echo=get_bool(payload, "echo") or False,
            source=Source(wire=self.wire, body=body, payload=payload),
            context=context,
        )

    def render(self, request: ChatRequest, answer: ChatAnswer) -> JSON:
        """The `text_completion` object."""
        identity = Identity.of(request, answer.meta, PREFIX, self._mint)
        body: JSON = {
            **identity.head("text_completion"),
            "choices": [_choice(choice) for choice in answer.choices],
            "system_fingerprint": identity.fingerprint,
        }
        if answer.usage is not None:
            body["usage"] = render_usage(answer.usage)
        if request.context.trailer:
            body["velollm"] = request.context.trailer
        return body

    def stream(self, request: ChatRequest) -> CompletionStream:
        """A renderer of `text_completion` chunks."""
        return CompletionStream(request, self._mint)


def _prompts(value: Any) -> list[str | list[int]]:
    """One or more prompts, each a text or a list of token ids."""
    if value is None:
        fail("prompt", "is required and must be a string or an array of token ids")
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        fail("prompt", f"must be a string, an array of strings, or an array of token ids, not {kind(value)}")
    if not value:
        fail("prompt", "must not be empty")
    if not isinstance(value[0], (str, list)):
        return [_tokens(value, "prompt")]
    if len(value) > MOST_PROMPTS:
        fail("prompt", f"has {len(value)} prompts; at most {MOST_PROMPTS} are answered at once")
    return [_prompt(item, at("prompt", number)) for number, item in enumerate(value)]


def _prompt(value: Any, where: str) -> str | list[int]:
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        fail(where, "must be a string or an array of token ids, as all items beside it, and not empty")
    return _tokens(value, where)


def _tokens(value: list[Any], where: str) -> list[int]:
    for number, token in enumerate(value):
        if type(token) is not int or token < 0:
            fail(at(where, number), "must be a token id, as all items beside it")
    return value


def _check_best_of(payload: JSON, n: int) -> None:
    best_of = get_int(payload, "best_of", low=1, high=128)
    if best_of is not None and best_of < n:
        fail("best_of", "must be at least n")


def _finish_word(reason: str | None) -> str | None:
    return "stop" if reason == "tool_calls" else reason


def _choice(choice: Choice) -> JSON:
    return {
        "index": choice.index,
        "text": choice.text,
        "logprobs": to_legacy(choice.logprobs),
        "finish_reason": _finish_word(choice.finish_reason),
    }


class CompletionStream(EventStream):
    """Renders chunks with pieces of text; the last of each choice is empty and says why it ended."""

    wire = "openai.completions"
    kind = "text_completion"
    prefix = PREFIX

    def __init__(self, request: ChatRequest, mint: Minter) -> None:
        super().__init__(request, mint)
        self._offsets: dict[int, int] = {}

    def chunk(self, event: ChatEvent) -> bytes:
        """The frame with the text of one event."""
        if not event.text and event.logprobs is None:
            return b""
        offset = self._offsets.get(event.index, 0)
        self._offsets[event.index] = offset + len(event.text)
        return self._frame(event.index, event.text, to_legacy(event.logprobs, offset), None)

    def finish(self, event: ChatEvent) -> bytes:
        """The frame with the finish reason."""
        return self._frame(event.index, "", None, _finish_word(event.finish_reason))

    def _frame(self, index: int, text: str, logprobs: JSON | None, finish: str | None) -> bytes:
        return self.frame({"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish})
