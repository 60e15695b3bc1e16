"""The `response` object, and the output items in it, for whole and streamed answers alike.

Every field that the SDKs' types require is there, also those that say nothing here; what the request said is echoed.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import attrs

from velollm.api.openai import Minter
from velollm.errors import VeloError
from velollm.messages import ChatAnswer, ChatRequest, Choice, FinishReason, ResponseMeta, Tool, ToolCall, Usage

__all__ = [
    "Envelope",
    "call_item",
    "failure",
    "logprob_entries",
    "message_item",
    "output_text",
    "reasoning_item",
    "render_response",
    "render_usage",
    "wants_summary",
]

JSON: TypeAlias = dict[str, Any]

INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


def wants_summary(request: ChatRequest) -> bool:
    """Whether the client asked for a summary of the reasoning: then it reads that field, and gets all of it there."""
    reasoning = _said(request).get("reasoning") or {}
    return any(reasoning.get(key) for key in ("summary", "generate_summary"))


def _said(request: ChatRequest) -> JSON:
    return request.source.payload if request.source is not None else {}


@attrs.define
class Envelope:
    """All of a response but its output: the same in every event of a stream."""

    fields: JSON
    created: int

    @classmethod
    def of(cls, request: ChatRequest, meta: ResponseMeta | None, mint: Minter) -> Envelope:
        """What is known when the answer begins; the id is the engine's own where it is one of this dialect."""
        meta = meta or ResponseMeta()
        created = meta.created or int(mint.clock())
        fields = {
            "id": meta.id if meta.id.startswith("resp_") else mint.name("resp_"),
            "object": "response",
            "created_at": created,
            "model": meta.model or request.model,
            **_echo(request),
        }
        return cls(fields, created)

    def render(self, status: str, output: list[JSON], usage: Usage | None = None, **more: Any) -> JSON:
        """The response object with this status and output."""
        counts = None if usage is None else render_usage(usage)
        return {
            **self.fields,
            "status": status,
            "completed_at": None,
            "error": None,
            "incomplete_details": None,
            "output": output,
            "usage": counts,
            **more,
        }

    def final(self, finish: FinishReason | None, output: list[JSON], usage: Usage | None, mint: Minter) -> JSON:
        """The response object at the end: completed, or incomplete when the answer was cut."""
        reason = INCOMPLETE.get(finish or "")
        if reason is not None:
            return self.render("incomplete", output, usage or Usage(), incomplete_details={"reason": reason})
        completed = max(int(mint.clock()), self.created)
        return self.render("completed", output, usage or Usage(), completed_at=completed)


def _echo(request: ChatRequest) -> JSON:
    said = _said(request)
    text = said.get("text") or {}
    reasoning = said.get("reasoning") or {}
    return {
        "instructions": said.get("instructions"),
        "max_output_tokens": request.max_tokens,
        "max_tool_calls": said.get("max_tool_calls"),
        "metadata": said.get("metadata") or {},
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": None,
        "prompt_cache_key": said.get("prompt_cache_key"),
        "reasoning": {"effort": reasoning.get("effort"), "summary": reasoning.get("summary")},
        "safety_identifier": said.get("safety_identifier"),
        "service_tier": "default",
        "store": False,
        "background": False,
        "temperature": 1.0 if request.temperature is None else request.temperature,
        "top_p": 1.0 if request.top_p is None else request.top_p,
        "presence_penalty": request.presence_penalty or 0,
        "frequency_penalty": request.frequency_penalty or 0,
        "top_logprobs": request.top_logprobs or 0,
        "text": {"format": {"type": "text"}, **{key: value for key, value in text.items() if value is not None}},
        "tool_choice": said.get("tool_choice") or "auto",
        "tools": [_tool(tool) for tool in request.tools],
        "truncation": said.get("truncation") or "disabled",
        "user": request.user,
    }


def _tool(tool: Tool) -> JSON:
    return {
        "type": "function",
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.parameters,
        "strict": tool.strict,
    }


def render_usage(usage: Usage) -> JSON:
    """Token counts as the Responses API names them; what the engine did not say counts as 0."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens or 0, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens or 0},
        "total_tokens": usage.total_tokens,
    }


def failure(error: VeloError) -> JSON:
    """The `error` of a failed response, in the few words that its type knows."""
    code = "server_error"
    if error.status == 429:
        code = "rate_limit_exceeded"
    elif error.status < 500:
        code = "invalid_prompt"
    return {"code": code, "message": error.message}


# ---- output items ----------------------------------------------------------------------------------------------------


def message_item(name: str, status: str, content: list[JSON]) -> JSON:
    """A `message` of the assistant."""
    return {"id": name, "type": "message", "status": status, "role": "assistant", "content": content}


def output_text(text: str, logprobs: list[JSON]) -> JSON:
    """The content part of a message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def reasoning_item(name: str, status: str, text: str | None, summary: bool) -> JSON:
    """A `reasoning` item: the thoughts as they are, or, when asked for, in the place of a summary."""
    item: JSON = {"id": name, "type": "reasoning", "status": status, "summary": []}
    if summary:
        item["summary"] = [] if text is None else [{"type": "summary_text", "text": text}]
    else:
        item["content"] = [] if text is None else [{"type": "reasoning_text", "text": text}]
    return item


def call_item(name: str, status: str, call: ToolCall) -> JSON:
    """A `function_call`."""
    return {
        "id": name,
        "type": "function_call",
        "status": status,
        "call_id": call.id,
        "name": call.name,
        "arguments": call.arguments,
    }


def logprob_entries(logprobs: list[Any]) -> list[JSON]:
    """Log probabilities in the shape of chat completions, their fields made complete."""
    return [
        {**_entry(entry), "top_logprobs": [_entry(top) for top in entry.get("top_logprobs") or ()]}
        for entry in logprobs
        if isinstance(entry, dict)
    ]


def _entry(entry: JSON) -> JSON:
    token = str(entry.get("token", ""))
    given = entry.get("bytes")
    value = entry.get("logprob")
    return {
        "token": token,
        "bytes": given if isinstance(given, list) else list(token.encode("utf-8", "replace")),
        "logprob": -9999.0 if value is None else value,
    }


def render_response(request: ChatRequest, answer: ChatAnswer, mint: Minter) -> JSON:
    """The response of a complete answer; its first choice, for there is never another."""
    choice = answer.choices[0] if answer.choices else Choice()
    cut = choice.finish_reason in INCOMPLETE
    output = _output(request, choice, mint)
    if cut and output:
        output[-1]["status"] = "incomplete"
    response = Envelope.of(request, answer.meta, mint).final(choice.finish_reason, output, answer.usage, mint)
    if request.context.trailer:
        response["velollm"] = request.context.trailer
    return response


def _output(request: ChatRequest, choice: Choice, mint: Minter) -> list[JSON]:
    output: list[JSON] = []
    if choice.reasoning and request.think is not False:
        output.append(reasoning_item(mint.name("rs_"), "completed", choice.reasoning, wants_summary(request)))
    if choice.text or not choice.tool_calls:
        logprobs = (choice.logprobs or {}).get("content")
        entries = logprob_entries(logprobs) if isinstance(logprobs, list) else []
        output.append(message_item(mint.name("msg_"), "completed", [output_text(choice.text, entries)]))
    for call in choice.tool_calls:
        known = call if call.id else attrs.evolve(call, id=mint.name("call_"))
        output.append(call_item(mint.name("fc_"), "completed", known))
    return output
