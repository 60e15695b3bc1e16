"""What is sent, and how answers are read: good ones, broken ones, and those that say that something is wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velollm.bench.counters import difference, read_counters
from velollm.bench.question import Question
from velollm.bench.record import Record
from velollm.bench.wires import Asking, Reader, encode, read_timings, wire_for
from velollm.bench.workload import questions

SSE = [(b"content-type", b"text/event-stream")]
JSON = [(b"content-type", b"application/json")]


def sse(*chunks: Any) -> list[bytes]:
    return [b"data: %b\n\n" % (chunk if isinstance(chunk, bytes) else json.dumps(chunk).encode()) for chunk in chunks]


def delta(**fields: Any) -> dict[str, Any]:
    finish = fields.pop("finish", None)
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": finish}]}


def read(wire: str, pieces: list[bytes], headers: Any = SSE, status: int = 200, inputs: int = 1) -> Record:
    record = Record(inputs=inputs)
    reader = Reader(wire, record)
    reader.head(status, headers)
    for number, piece in enumerate(pieces, 1):
        reader.feed(number / 10, piece)
    reader.end()
    return record


COUNTS = {"prompt_tokens": 9, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}
USAGE = {"choices": [], "usage": COUNTS, "timings": {"prompt_ms": 50.0, "predicted_ms": 200, "cache_n": 2}}


def test_a_chat_as_vllm_counts_it() -> None:
    """The greeting with the role and the end are no tokens; one without text is."""
    chunks = sse(delta(role="assistant", content=""), delta(content="a"), delta(content=""), delta(content="b"),
                 delta(finish="stop"), USAGE, b"[DONE]")  # fmt: skip
    record = read("openai.chat", chunks, [*SSE, (b"server-timing", b"queue;dur=12.5, prefill;dur=50")])
    assert record.good
    assert record.arrivals == pytest.approx([0.2, 0.3, 0.4])
    assert (record.text, record.finish) == ("ab", "stop")
    assert (record.prompt_tokens, record.output_tokens, record.cached_tokens) == (9, 3, 4)
    assert record.tpot == pytest.approx(0.1)
    assert record.phases == {"queue": 0.0125, "prefill": 0.05}
    assert record.engine == {"prefill": 0.05, "decode": 0.2}


def test_the_word_done_ends_an_answer() -> None:
    assert read("openai.chat", sse(delta(content="a"), b"[DONE]")).good


def test_pieces_may_be_cut_anywhere() -> None:
    whole = b"".join(sse(delta(content="a"), delta(content="b", finish="length"), USAGE))
    record = read("openai.chat", [whole[:7], whole[7:90], whole[90:]])
    assert record.good
    assert record.text == "ab"


def test_reasoning_and_calls_are_output() -> None:
    call = {"index": 0, "id": "x", "function": {"name": "f", "arguments": ""}}
    record = read(
        "openai.chat", sse(delta(reasoning_content="hm"), delta(tool_calls=[call]), delta(finish="tool_calls"))
    )
    assert len(record.arrivals) == 2
    assert record.output_tokens == 2
    assert not record.counted


def test_completions_count_every_choice() -> None:
    choices = [{"choices": [{"text": text, "finish_reason": end}]} for text, end in (("a", None), ("", "stop"))]
    assert len(read("openai.completions", sse(*choices)).arrivals) == 2


def test_ollama() -> None:
    lines = [{"message": {"content": "a"}, "done": False}, {"message": {"thinking": "b"}, "done": False},
             {"done": True, "done_reason": "length", "prompt_eval_count": 5, "eval_count": 2,
              "prompt_eval_duration": 50_000_000, "eval_duration": 10_000_000, "load_duration": 1_000_000}]  # fmt: skip
    pieces = [json.dumps(line).encode() + b"\n" for line in lines]
    record = read("ollama.chat", pieces, [(b"content-type", b"application/x-ndjson")])
    assert record.good
    assert record.arrivals == pytest.approx([0.1, 0.2])
    assert (record.prompt_tokens, record.output_tokens, record.finish) == (5, 2, "length")
    assert record.engine == {"load": 0.001, "prefill": 0.05, "decode": 0.01}


def test_vectors() -> None:
    body = json.dumps({"data": [{"embedding": [1]}, {"embedding": [2]}], "usage": {"prompt_tokens": 8}}).encode()
    record = read("openai.embeddings", [body[:5], body[5:]], JSON, inputs=2)
    assert record.good
    assert (record.latency, record.prompt_tokens) == (0.2, 8)
    assert read("openai.embeddings", [b'{"status": "ok"}'], JSON).error == "the answer does not hold 1 vectors"


def test_a_stream_that_came_in_one_piece() -> None:
    body = {"choices": [{"message": {"content": "abc"}, "finish_reason": "stop"}], "usage": {"completion_tokens": 3}}
    record = read("openai.chat", [json.dumps(body).encode()], JSON)
    assert record.good
    assert (record.text, record.output_tokens) == ("abc", 3)


@pytest.mark.parametrize(
    ("wire", "pieces", "headers", "status", "error"),
    [
        ("openai.chat", sse(delta(content="a")), SSE, 200, "the stream ended before the answer did"),
        ("openai.chat", sse(delta(role="assistant"), delta(finish="stop")), SSE, 200, "the answer held no token"),
        ("openai.chat", [], SSE, 200, "the answer held no token"),
        ("openai.chat", sse(delta(content="a"), {"error": {"message": "out of memory"}}), SSE, 200, "out of memory"),
        ("openai.chat", [b'{"error": {"message": "no such model"}}'], JSON, 404, "404: no such model"),
        ("openai.chat", [b"<html>bad gateway"], [], 502, "502: <html>bad gateway"),
        ("openai.chat", [b"nonsense"], JSON, 200, "the answer is not JSON"),
        ("ollama.chat", [b'{"error": "model not found"}\n'], [], 200, "model not found"),
        ("ollama.chat", [b'{"error": "model not found"}'], JSON, 404, "404: model not found"),
        ("ollama.embed", [b'{"embeddings": []}'], JSON, 200, "the answer does not hold 1 vectors"),
    ],
)
def test_what_is_wrong_is_said(wire: str, pieces: list[bytes], headers: Any, status: int, error: str) -> None:
    record = read(wire, pieces, headers, status)
    assert not record.good
    assert record.error == error


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3) | st.just("stop"),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["choices", "delta", "content", "usage", "timings", "error", "message", "text", "finish_reason", "done",
             "tool_calls", "prompt_tokens", "cached_tokens", "prompt_tokens_details", "eval_count", "data", "velollm",
             "timing", "embeddings", "prompt_ms", "cache_n"]
        ),
        inner, max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@given(
    st.sampled_from(["openai.chat", "openai.completions", "openai.embeddings", "ollama.chat", "ollama.embed"]),
    st.lists(VALUES | st.binary(max_size=20), max_size=4),
    st.sampled_from([SSE, JSON, []]),
    st.sampled_from([200, 404, 500]),
)
def test_no_answer_breaks_the_reader(wire: str, values: list[Any], headers: Any, status: int) -> None:
    pieces = []
    for value in values:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        pieces.append(data + b"\n" if wire.startswith("ollama") else b"data: %b\n\n" % data)
    record = read(wire, pieces, headers, status)
    assert record.good or record.error
    assert record.output_tokens >= 0


def test_answers_of_a_cache_are_told() -> None:
    headers = [*SSE, (b"x-velollm-cache", b"hit-exact; reason=x")]
    assert read("openai.chat", sse(delta(content="a", finish="stop")), headers).cache == "hit-exact"


def test_what_is_asked() -> None:
    asking = Asking(model="m", ignore_eos=True, extra={"min_p": 0.1})
    (agent,) = questions("agent", 1, seed=0)
    body = json.loads(encode(agent, "openai.chat", asking))
    assert body["stream_options"] == {"include_usage": True}
    assert (body["ignore_eos"], body["min_p"], body["temperature"]) == (True, 0.1, 0.0)
    assert body["messages"][2]["tool_calls"][0]["function"]["arguments"].startswith('{"path"')
    body = json.loads(encode(agent, "ollama.chat", asking))
    assert set(body["messages"][2]["tool_calls"][0]["function"]["arguments"]) == {"path"}
    assert body["options"]["num_predict"] == 64
    assert json.loads(encode(Question(prompt="p"), "openai.completions", asking))["prompt"] == "p"
    assert wire_for("vllm", Question(prompt="p")) == "openai.completions"
    assert wire_for("ollama", Question(inputs=("a",))) == "ollama.embed"


def test_timings_of_a_server() -> None:
    assert read_timings('queue;dur=1.5, total;desc="all";dur=20, odd') == {"queue": 0.0015, "total": 0.02}


def test_counters() -> None:
    text = """# HELP vllm:prefix_cache_queries_total x
vllm:prefix_cache_queries_total{engine="0"} 100.0
vllm:prefix_cache_queries_total{engine="1"} 50
vllm:prefix_cache_hits_total 30
velollm_prefix_cache_hits_total{model_name="m"} 5
other_total 7
vllm:spec_decode_num_drafts_total NaN
"""
    found = read_counters(text)
    assert found == {"prefix_queries": 150.0, "prefix_hits": 35.0}
    assert difference({"prefix_queries": 100.0, "prefix_hits": 99.0}, found) == {
        "prefix_queries": 50.0,
        "prefix_hits": 35.0,
    }
