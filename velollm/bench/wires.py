"""What is sent to a server, and what its answer says, for each wire. No I/O: an answer is pieces with their times.

openai.chat  openai.completions  openai.embeddings  ollama.chat  ollama.embed
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import attrs
import orjson

from velollm.api.sse import LineDecoder, SSEDecoder, SSEFrame
from velollm.bench.question import Question
from velollm.bench.record import Record
from velollm.errors import VeloError

__all__ = ["PATHS", "Asking", "Reader", "encode", "read_timings", "wire_for"]

JSON: TypeAlias = dict[str, Any]
Headers: TypeAlias = Iterable[tuple[bytes, bytes]]

PATHS: Mapping[str, str] = {
    "openai.chat": "/v1/chat/completions",
    "openai.completions": "/v1/completions",
    "openai.embeddings": "/v1/embeddings",
    "ollama.chat": "/api/chat",
    "ollama.embed": "/api/embed",
}
TIMING = re.compile(r"([\w-]+)\s*;[^,]*?dur=([\d.]+)")
OUTPUT = ("content", "reasoning_content", "reasoning", "tool_calls", "function_call")
LONGEST_ERROR = 300
MALFORMED = (AttributeError, KeyError, TypeError, ValueError)


@attrs.frozen(kw_only=True)
class Asking:
    """What all requests of a run have in common. `extra` goes into every body as it is."""

    model: str = ""
    temperature: float | None = 0.0
    ignore_eos: bool = False
    extra: JSON = attrs.field(factory=dict)


def wire_for(kind: str, question: Question) -> str:
    """The wire on which a server of `kind` (`ollama`, or anything that speaks OpenAI) is asked."""
    if kind == "ollama":
        return "ollama.embed" if question.inputs else "ollama.chat"
    if question.inputs:
        return "openai.embeddings"
    return "openai.completions" if question.prompt is not None else "openai.chat"


def encode(question: Question, wire: str, asking: Asking) -> bytes:
    """The body of the request."""
    return orjson.dumps(BODIES[wire](question, asking) | asking.extra)


def _openai(question: Question, asking: Asking) -> JSON:
    body: JSON = {"model": asking.model, "stream": True, "stream_options": {"include_usage": True}}
    if question.max_tokens is not None:
        body["max_tokens"] = question.max_tokens
    if asking.temperature is not None:
        body["temperature"] = asking.temperature
    if asking.ignore_eos:
        body["ignore_eos"] = True
    if question.prompt is not None:
        return body | {"prompt": question.prompt}
    body["messages"] = list(question.messages)
    if question.tools:
        body["tools"] = list(question.tools)
    return body


def _openai_embeddings(question: Question, asking: Asking) -> JSON:
    return {"model": asking.model, "input": list(question.inputs), "encoding_format": "float"}


def _ollama(question: Question, asking: Asking) -> JSON:
    options: JSON = {}
    if question.max_tokens is not None:
        options["num_predict"] = question.max_tokens
    if asking.temperature is not None:
        options["temperature"] = asking.temperature
    messages = [_ollama_message(message) for message in question.messages]
    if question.prompt is not None:
        messages = [{"role": "user", "content": question.prompt}]
    body: JSON = {"model": asking.model, "messages": messages, "stream": True, "options": options}
    if question.tools:
        body["tools"] = list(question.tools)
    return body


def _ollama_message(message: Mapping[str, Any]) -> JSON:
    """Ollama wants the arguments of calls as objects, and one text."""
    changed = dict(message)
    if isinstance(changed.get("content"), list):
        parts = [part.get("text", "") for part in changed["content"] if isinstance(part, dict)]
        changed["content"] = "\n".join(parts)
    calls = changed.get("tool_calls")
    if isinstance(calls, list):
        changed["tool_calls"] = [
            {"function": {"name": call["function"]["name"], "arguments": _object(call["function"]["arguments"])}}
            for call in calls
        ]
    return changed


def _object(arguments: Any) -> Any:
    try:
        return orjson.loads(arguments) if isinstance(arguments, str) else arguments
    except orjson.JSONDecodeError:
        return {}


def _ollama_embed(question: Question, asking: Asking) -> JSON:
    return {"model": asking.model, "input": list(question.inputs)}


BODIES: Mapping[str, Callable[[Question, Asking], JSON]] = {
    "openai.chat": _openai,
    "openai.completions": _openai,
    "openai.embeddings": _openai_embeddings,
    "ollama.chat": _ollama,
    "ollama.embed": _ollama_embed,
}


def read_timings(value: str) -> dict[str, float]:
    """`server-timing` as seconds by name."""
    return {name: float(milliseconds) / 1000 for name, milliseconds in TIMING.findall(value)}


class Reader:
    """Reads one answer into a record: `head`, then `feed` for each piece with its time, then `end`.

    Times are counted from when the request was sent. Whatever is wrong with an answer becomes the record's `error`.
    """

    def __init__(self, wire: str, record: Record) -> None:
        self._record = record
        self._wire = wire
        self._frames: SSEDecoder | LineDecoder = LineDecoder() if wire == "ollama.chat" else SSEDecoder()
        self._whole: list[bytes] | None = None  # an answer in one piece
        self._finished = False
        self._texts: list[str] = []
        self._last = 0.0

    def head(self, status: int, headers: Headers) -> None:
        """The answer begins."""
        record = self._record
        record.status = status
        for name, value in headers:
            if name == b"server-timing":
                record.phases = read_timings(value.decode("latin-1"))
            elif name == b"x-velollm-cache":
                record.cache = value.decode("latin-1").partition(";")[0]
            elif name == b"content-type" and b"json" in value and b"ndjson" not in value and self._streams:
                self._whole = []
        if status != 200 or not self._streams:
            self._whole = []

    @property
    def _streams(self) -> bool:
        return self._wire not in ("openai.embeddings", "ollama.embed")

    def feed(self, time: float, piece: bytes) -> None:
        """A piece of the body that came at `time`."""
        self._last = time
        if self._whole is not None:
            self._whole.append(piece)
        else:
            self._read(self._frames.feed, piece)

    def end(self) -> None:
        """The body is complete."""
        record = self._record
        if self._whole is not None:
            self._read(lambda body: [body], b"".join(self._whole))
        else:
            self._read(lambda _: self._frames.end(), b"")
        record.text = "".join(self._texts)
        if self._whole is None and not record.error:
            if not record.arrivals:
                record.error = "the answer held no token"
            elif not self._finished:
                record.error = "the stream ended before the answer did"

    def _read(self, split: Callable[[bytes], Iterable[SSEFrame | bytes]], piece: bytes) -> None:
        try:
            for part in split(piece):
                if not isinstance(part, bytes):
                    self._frame(part.data, self._last)
                elif self._whole is not None:
                    self._in_one_piece(part)
                else:
                    self._line(part, self._last)
        except VeloError as error:
            self._record.error = self._record.error or error.message
        except MALFORMED:
            self._record.error = self._record.error or "the answer is not what the API says"

    # ---- OpenAI ----

    def _frame(self, data: bytes, time: float) -> None:
        if data == b"[DONE]":
            self._finished = True
            return
        chunk = _loads(data)
        if chunk is None:
            return
        if chunk.get("error"):
            self._fail(chunk["error"])
            return
        choices = chunk.get("choices")
        if choices:
            self._choice(choices[0], time)
        self._usage(chunk)

    def _choice(self, choice: JSON, time: float) -> None:
        delta = choice.get("delta") or {}
        said = choice.get("text") or delta.get("content") or ""
        if said or "text" in choice or any(delta.get(name) for name in OUTPUT) or _is_blank_token(delta):
            self._arrived(time, said)
        if choice.get("finish_reason"):
            self._finished = True
            self._record.finish = str(choice["finish_reason"])

    def _usage(self, chunk: JSON) -> None:
        usage, timings = chunk.get("usage"), chunk.get("timings")
        record = self._record
        if isinstance(usage, dict):
            record.prompt_tokens = _count(usage.get("prompt_tokens")) or record.prompt_tokens
            if _count(usage.get("completion_tokens")):
                record.output_tokens, record.counted = _count(usage["completion_tokens"]), True
            details = usage.get("prompt_tokens_details")
            if isinstance(details, dict) and isinstance(details.get("cached_tokens"), int):
                record.cached_tokens = details["cached_tokens"]
        if isinstance(timings, dict):
            self._timings(timings)
        timing = (chunk.get("velollm") or {}).get("timing") if isinstance(chunk.get("velollm"), dict) else None
        if isinstance(timing, dict):
            record.phases |= {name: value / 1000 for name, value in timing.items() if isinstance(value, (int, float))}

    def _timings(self, timings: JSON) -> None:
        """llama-server's."""
        record = self._record
        if record.cached_tokens is None and isinstance(timings.get("cache_n"), int):
            record.cached_tokens = timings["cache_n"]
        for name, key in (("prefill", "prompt_ms"), ("decode", "predicted_ms")):
            if isinstance(timings.get(key), (int, float)):
                record.engine[name] = timings[key] / 1000
        for key in ("draft_n", "draft_n_accepted"):
            if isinstance(timings.get(key), int):
                record.engine[key] = timings[key]

    # ---- Ollama ----

    def _line(self, line: bytes, time: float) -> None:
        chunk = _loads(line)
        if chunk is None:
            return
        record = self._record
        if chunk.get("error"):
            self._fail(chunk["error"])
            return
        message = chunk.get("message") or {}
        said = message.get("content") or ""
        if said or message.get("thinking") or message.get("tool_calls"):
            self._arrived(time, said)
        if chunk.get("done"):
            self._finished = True
            record.finish = str(chunk.get("done_reason") or "stop")
            record.prompt_tokens = _count(chunk.get("prompt_eval_count"))
            if _count(chunk.get("eval_count")):
                record.output_tokens, record.counted = _count(chunk["eval_count"]), True
            for name, key in (
                ("load", "load_duration"), ("prefill", "prompt_eval_duration"), ("decode", "eval_duration"),
            ):  # fmt: skip
                if isinstance(chunk.get(key), int):
                    record.engine[name] = chunk[key] / 1e9

    # ---- answers in one piece ----

    def _in_one_piece(self, body: bytes) -> None:
        record = self._record
        value = _loads(body)
        if record.status != 200:
            self._fail((value or {}).get("error") or body[:LONGEST_ERROR].decode("utf-8", "replace"))
            if record.error and f"{record.status}" not in record.error:
                record.error = f"{record.status}: {record.error}"
            return
        if value is None:
            record.error = "the answer is not JSON"
        elif value.get("error"):
            self._fail(value["error"])
        elif not self._streams:
            vectors = value.get("data") or value.get("embeddings")
            if not isinstance(vectors, list) or len(vectors) != record.inputs:
                record.error = f"the answer does not hold {record.inputs} vectors"
                return
            record.arrivals = [self._last]
            usage = value.get("usage") or {}
            record.prompt_tokens = _count(usage.get("prompt_tokens", value.get("prompt_eval_count")))
        else:  # a stream was asked for
            for choice in value.get("choices") or ():
                self._choice({**choice, "delta": choice.get("message") or {}}, self._last)
            self._usage(value)
            if not record.arrivals:
                record.error = "the answer held no token"

    def _arrived(self, time: float, said: Any) -> None:
        """A chunk with output came."""
        self._record.arrivals.append(time)
        if not self._record.counted:
            self._record.output_tokens += 1
        if isinstance(said, str):
            self._texts.append(said)

    def _fail(self, error: Any) -> None:
        said = error.get("message") if isinstance(error, dict) else error
        self._record.error = str(said or "the server reported an error")[:LONGEST_ERROR]


def _loads(data: bytes) -> JSON | None:
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def _is_blank_token(delta: JSON) -> bool:
    """A token may have no text; the greeting at the beginning of a stream names a role."""
    return delta.get("content") == "" and "role" not in delta


def _count(value: Any) -> int:
    return value if type(value) is int and value > 0 else 0
