"""`POST /api/embed`, and its older form `POST /api/embeddings`, which takes one text and answers with one vector."""

from __future__ import annotations

from typing import Any, ClassVar, TypeAlias

from velollm.api.ollama.answer import Clock
from velollm.api.ollama.options import extra_fields, read_keep_alive
from velollm.api.values import at, expect_list, fail, get_bool, get_int, get_object, get_str, kind, need_str
from velollm.messages import Embeddings, EmbedRequest, RequestContext, Timings

__all__ = ["Embed", "LegacyEmbeddings"]

JSON: TypeAlias = dict[str, Any]

SHARED = frozenset({"model", "truncate", "dimensions", "options", "keep_alive"})
SECOND = 1_000_000_000


class Embed:
    """The embed endpoint: a text or several."""

    dialect: ClassVar[str] = "ollama"

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or Clock()

    def parse(self, payload: JSON, context: RequestContext) -> EmbedRequest:
        """Read the request; `input` is a string or an array of strings."""
        return _request(payload, _inputs(payload.get("input")), "input", context)

    def render(self, request: EmbedRequest, payload: JSON, result: Embeddings) -> JSON:
        """The answer: vectors in the order of the inputs, durations in nanoseconds."""
        body: JSON = {"model": request.model, "embeddings": result.vectors}
        if not result.vectors:
            return body
        timings = result.timings or Timings()
        began = request.context.marks.get("received")
        passed = None if began is None else self._clock.monotonic() - began
        total = passed if timings.total is None else timings.total
        if total is not None:
            body["total_duration"] = round(total * SECOND)
            body["load_duration"] = round((timings.load or 0.0) * SECOND)
        body["prompt_eval_count"] = result.prompt_tokens
        return body


class LegacyEmbeddings:
    """The older endpoint."""

    dialect: ClassVar[str] = "ollama"

    def parse(self, payload: JSON, context: RequestContext) -> EmbedRequest:
        """Read the request; the text is in `prompt`."""
        return _request(payload, _inputs(get_str(payload, "prompt")), "prompt", context)

    def render(self, request: EmbedRequest, payload: JSON, result: Embeddings) -> JSON:
        """The answer."""
        return {"embedding": result.vectors[0] if result.vectors else []}


def _request(payload: JSON, inputs: list[str], field: str, context: RequestContext) -> EmbedRequest:
    return EmbedRequest(
        model=need_str(payload, "model", empty=False),
        inputs=inputs,
        dimensions=get_int(payload, "dimensions", low=0) or None,
        truncate=get_bool(payload, "truncate"),
        keep_alive=read_keep_alive(payload),
        options=dict(get_object(payload, "options") or {}),
        extra=extra_fields(payload, SHARED | {field}),
        context=context,
    )


def _inputs(value: Any) -> list[str]:
    """The texts; an empty one alone, or nothing, is none: only the model is to be made ready."""
    if value is None or value == "":
        return []
    if isinstance(value, str):
        return [value]
    items = expect_list(value, "input")
    for number, item in enumerate(items):
        if not isinstance(item, str):
            fail(at("input", number), f"must be a string, not {kind(item)}")
    return items
