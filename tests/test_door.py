"""The door, driven by hand: scope, receive and send."""

from __future__ import annotations

import asyncio
from codecs import BOM_UTF8
from typing import Any

import orjson
import pytest
from support.asgi import Client, ask, until
from support.backend import ScriptedBackend

from velollm import VeloLLM
from velollm.backend import HttpRequest, HttpResponse
from velollm.errors import BackendProtocolError, BackendTimeout, Overloaded

pytestmark = pytest.mark.anyio
PATHS = {
    "openai": "/v1/chat/completions",
    "ollama": "/api/chat",
    "anthropic": "/v1/messages",
    "responses": "/v1/responses",
}
QUESTION: dict[str, Any] = {"model": "tiny", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}
RESPONSES_QUESTION: dict[str, Any] = {"model": "tiny", "input": "Hi"}


def question(dialect: str, **more: Any) -> dict[str, Any]:
    return {**(RESPONSES_QUESTION if dialect == "responses" else QUESTION), **more}


@pytest.mark.parametrize("dialect", PATHS)
async def test_whole_answer_in_every_dialect(dialect: str) -> None:
    body = question(dialect, stream=False)
    answer = await ask(VeloLLM(backend=ScriptedBackend()), "POST", PATHS[dialect], body)
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["content-length"] == str(len(answer.text.encode()))
    assert "Hello world" in answer.text


@pytest.mark.parametrize("dialect", PATHS)
async def test_streamed_answer_in_every_dialect(dialect: str) -> None:
    body = question(dialect, stream=True)
    answer = await ask(VeloLLM(backend=ScriptedBackend()), "POST", PATHS[dialect], body)
    assert answer.status == 200
    assert "content-length" not in answer.headers
    assert "Hello" in answer.text
    assert len(answer.pieces) >= 4


@pytest.mark.parametrize("dialect", PATHS)
@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "empty"),
        (b"{", "not valid JSON"),
        (b"null", "JSON object"),
        (b"[]", "JSON object"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"a":' * 300 + b"1" + b"}" * 300, "nested"),
        (b'{"a": NaN}', "not valid JSON"),
        (b'{"a": 1e999}', "not valid JSON"),
        (b'{"a": ' + b"9" * 1_000_000 + b"}", "not valid JSON"),
        (b'{"a": "\xff"}', "not valid JSON"),
        (b'{"a": "\\ud800"}', "not valid JSON"),
        (b'{"model": "tiny", "messages": 5, "input": 5, "max_tokens": 1}', ""),
    ],
)
async def test_bad_bodies_never_reach_the_backend(dialect: str, body: bytes, words: str) -> None:
    backend = ScriptedBackend()
    answer = await ask(VeloLLM(backend=backend), "POST", PATHS[dialect], body)
    assert answer.status == 400
    assert words in message_of(dialect, answer.json)
    assert backend.requests == []


def message_of(dialect: str, error: Any) -> str:
    if dialect == "ollama":
        assert set(error) == {"error"}
        return str(error["error"])
    if dialect == "anthropic":
        assert error["type"] == "error"
        assert error["request_id"]
        return str(error["error"]["message"])
    assert set(error["error"]) >= {"message", "type", "code", "param"}
    return str(error["error"]["message"])


@pytest.mark.parametrize("dialect", PATHS)
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (BackendTimeout("silent", backend="x"), 504),
        (Overloaded("busy", retry_after=7), 503),
        (RuntimeError("a secret"), 500),
    ],
)
async def test_failure_before_the_first_event_is_an_http_error(dialect: str, error: Exception, status: int) -> None:
    app = VeloLLM(backend=ScriptedBackend(error=error))
    for stream in (False, True):
        answer = await ask(app, "POST", PATHS[dialect], question(dialect, stream=stream))
        assert answer.status == status
        assert message_of(dialect, answer.json)
        assert "secret" not in answer.text
        if status == 503:
            assert answer.headers["retry-after"] == "7"


@pytest.mark.parametrize("dialect", PATHS)
async def test_failure_in_mid_stream_is_the_dialects_error_event(dialect: str) -> None:
    backend = ScriptedBackend(error=BackendProtocolError("it broke off"), fail_after=2)
    answer = await ask(VeloLLM(backend=backend), "POST", PATHS[dialect], question(dialect, stream=True))
    assert answer.status == 200
    assert "Hello" in answer.text
    assert "it broke off" in answer.pieces[-1].decode()
    for good_end in ("[DONE]", '"done":true', "message_stop", "response.completed"):
        assert good_end not in answer.text


async def test_a_bug_in_mid_stream_breaks_the_connection_off() -> None:
    backend = ScriptedBackend(error=RuntimeError("a bug"), fail_after=1)
    client = Client("POST", PATHS["openai"], question("openai", stream=True))
    with pytest.raises(Exception, match="internal error"):
        await VeloLLM(backend=backend)(client.scope, client.receive, client.send)
    assert not client.complete


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("dialect", PATHS)
async def test_client_that_leaves_ends_the_work_at_once(dialect: str, stream: bool) -> None:
    backend = ScriptedBackend(["word "] * 10_000, pause=0.005)
    client = Client("POST", PATHS[dialect], question(dialect, stream=stream))
    task = asyncio.create_task(VeloLLM(backend=backend)(client.scope, client.receive, client.send))
    await until(lambda: backend.running == 1)
    await asyncio.sleep(0.03)
    client.leave()
    async with asyncio.timeout(0.1):
        await task
    assert backend.running == 0
    assert backend.cancelled == 1


async def test_cancellation_from_outside_is_passed_on() -> None:
    backend = ScriptedBackend(["word "] * 10_000, pause=0.005)
    client = Client("POST", PATHS["openai"], question("openai", stream=True))
    task = asyncio.create_task(VeloLLM(backend=backend)(client.scope, client.receive, client.send))
    await until(lambda: backend.running == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert backend.running == 0


async def test_client_that_leaves_before_its_body_is_whole_is_never_served() -> None:
    backend = ScriptedBackend()
    messages = iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}])
    client = Client("POST", PATHS["openai"])

    async def receive() -> Any:
        return next(messages)

    await VeloLLM(backend=backend)(client.scope, receive, client.send)
    assert client.status == 0
    assert backend.requests == []


async def test_oversized_bodies() -> None:
    app = VeloLLM(backend=ScriptedBackend(), max_body=1000)
    declared = await ask(app, "POST", PATHS["openai"], b"", content_length="1001")
    sent = await ask(app, "POST", PATHS["anthropic"], b" " * 1001)
    absurd = await ask(app, "POST", PATHS["ollama"], b"", content_length="9" * 5000)
    assert (declared.status, sent.status, absurd.status) == (413, 413, 413)
    assert sent.json["error"]["type"] == "request_too_large"
    assert "--max-body" in declared.json["error"]["message"]


async def test_compressed_bodies_are_refused() -> None:
    answer = await ask(VeloLLM(backend=ScriptedBackend()), "POST", PATHS["openai"], b"x", content_encoding="gzip")
    assert answer.status == 415


async def test_slow_prefill_opens_the_stream_with_a_comment() -> None:
    backend = ScriptedBackend(["late"], pause=0.1)
    app = VeloLLM(backend=backend, heartbeat=0.03)
    answer = await ask(app, "POST", PATHS["openai"], question("openai", stream=True))
    assert answer.text.startswith(": ")
    assert answer.text.endswith("data: [DONE]\n\n")
    lines = await ask(app, "POST", PATHS["ollama"], question("ollama", stream=True))
    assert lines.text.startswith("{"), "NDJSON knows no comments"


async def test_failure_after_a_heartbeat_is_an_error_event() -> None:
    backend = ScriptedBackend(["never"], pause=0.1, error=BackendTimeout("silent"), fail_after=1)
    app = VeloLLM(backend=backend, heartbeat=0.02)
    answer = await ask(app, "POST", PATHS["anthropic"], question("anthropic", stream=True))
    assert answer.status == 200
    assert "event: error" in answer.text


@pytest.mark.parametrize(
    "said", [b'{"error":{"message":"File Not Found","code":404}}', b"404 page not found", b'{"detail":"Not Found"}']
)
async def test_paths_that_the_engine_does_not_know_are_refused_in_the_clients_dialect(said: bytes) -> None:
    backend = ScriptedBackend()
    backend.replies = [(404, said)] * 3
    app = VeloLLM(backend=backend)
    batch = await ask(app, "POST", "/v1/messages/batches", b"{}")
    assert (batch.status, batch.json["error"]["type"]) == (404, "not_found_error")
    assert "/v1/messages/batches" in batch.json["error"]["message"]
    stored = await ask(app, "GET", "/v1/responses/resp_1")
    assert (stored.status, stored.json["error"]["code"]) == (404, "path_not_found")
    assert isinstance((await ask(app, "GET", "/api/new")).json["error"], str)


async def test_other_answers_to_unknown_paths_go_through() -> None:
    backend = ScriptedBackend()
    backend.replies = [(404, b'{"error":{"message":"No such file: x"}}'), (200, b"File Not Found")]
    app = VeloLLM(backend=backend)
    missing = await ask(app, "GET", "/v1/files/x")
    assert (missing.status, missing.json["error"]["message"]) == (404, "No such file: x")
    assert (await ask(app, "GET", "/v1/files/y")).text == "File Not Found"


async def test_input_tokens_are_counted_for_the_responses_api() -> None:
    body = {"model": "tiny", "instructions": "Be brief.", "input": "How are you?"}
    answer = await ask(VeloLLM(backend=ScriptedBackend()), "POST", "/v1/responses/input_tokens", body)
    assert answer.json == {"object": "response.input_tokens", "input_tokens": 5}


async def test_models_are_changed_by_an_ollama_only() -> None:
    backend = ScriptedBackend()
    for method, path in (("POST", "/api/pull"), ("DELETE", "/api/delete"), ("POST", "/api/create")):
        answer = await ask(VeloLLM(backend=backend), method, path, b'{"model":"x"}')
        assert answer.status == 404
        assert "velollm models install" in answer.json["error"]
    assert backend.forwarded == []


async def test_spoilt_base_urls() -> None:
    app = VeloLLM(backend=ScriptedBackend())
    for path in ("/v1/v1/messages", "/v1/messages/", "/messages"):
        assert (await ask(app, "POST", path, question("anthropic"))).json["type"] == "message"
    assert (await ask(app, "GET", "//v1/models/")).json["object"] == "list"


async def test_a_byte_order_mark_is_no_part_of_the_request() -> None:
    body = BOM_UTF8 + orjson.dumps(question("openai"))
    answer = await ask(VeloLLM(backend=ScriptedBackend()), "POST", PATHS["openai"], body)
    assert answer.status == 200


async def test_nothing_to_embed_only_needs_the_model() -> None:
    app = VeloLLM(backend=ScriptedBackend())
    assert (await ask(app, "POST", "/api/embed", b'{"model":"tiny","input":""}')).json == {
        "model": "tiny",
        "embeddings": [],
    }
    assert (await ask(app, "POST", "/api/embeddings", b'{"model":"tiny"}')).json == {"embedding": []}
    assert (await ask(app, "POST", "/api/embed", b'{"model":"missing"}')).status == 404
    timed = (await ask(app, "POST", "/api/embed", b'{"model":"tiny","input":["a"]}')).json
    assert timed["total_duration"] > 0
    assert timed["load_duration"] == 0


async def test_errors_about_models_are_anthropics_for_its_clients() -> None:
    app = VeloLLM(backend=ScriptedBackend())
    answer = await ask(app, "GET", "/v1/models/none", anthropic_version="2023-06-01")
    assert (answer.status, answer.json["type"]) == (404, "error")
    assert (await ask(app, "GET", "/v1/models/none")).json["error"]["code"] == "model_not_found"


async def test_unknown_paths_are_forwarded_only_in_their_plain_spelling() -> None:
    backend = ScriptedBackend(dialects=frozenset({"ollama"}))
    app = VeloLLM(backend=backend)
    answer = await ask(app, "POST", "/api/pull?x=1", b'{"model":"tiny"}', content_length="16")
    assert answer.status == 200
    assert answer.text.splitlines()[-1] == '{"status":"success"}'
    assert backend.forwarded == [("POST", "/api/pull?x=1", b'{"model":"tiny"}')]
    for path in ("/api/../api/delete", "/api//delete", "/v1/./x", "/api/x\\delete"):
        assert (await ask(app, "DELETE", path)).status == 404
    encoded = Client("DELETE", "/api/../delete")
    encoded.scope["raw_path"] = b"/api/%2e%2e/delete"
    await app(encoded.scope, encoded.receive, encoded.send)
    assert encoded.status == 404
    assert len(backend.forwarded) == 1


async def test_forwarding_streams_a_large_upload_and_hides_credentials() -> None:
    backend = ScriptedBackend(dialects=frozenset({"ollama"}))
    headers = {"transfer_encoding": "chunked", "authorization": "Bearer secret", "cookie": "a=b"}
    client = Client("POST", "/api/blobs/sha256:00", b"x" * 100_000, **headers)
    await VeloLLM(backend=backend)(client.scope, client.receive, client.send)
    assert backend.forwarded[0][2] == b"x" * 100_000


async def test_wrong_method_names_the_right_one() -> None:
    answer = await ask(VeloLLM(backend=ScriptedBackend()), "GET", "/v1/chat/completions")
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    assert "POST" in answer.json["error"]["message"]


async def test_models_tokens_and_embeddings() -> None:
    app = VeloLLM(backend=ScriptedBackend())
    assert (await ask(app, "GET", "/v1/models/tiny")).json["id"] == "tiny"
    missing = await ask(app, "GET", "/v1/models/huge")
    assert (missing.status, missing.json["error"]["code"]) == (404, "model_not_found")
    anthropic = await ask(app, "GET", "/v1/models", anthropic_version="2023-06-01")
    assert anthropic.json["data"][0]["type"] == "model"
    assert (await ask(app, "GET", "/api/tags")).json["models"][0]["name"]
    assert (await ask(app, "POST", "/api/show", {"name": "tiny"})).json["capabilities"] is not None
    assert (await ask(app, "POST", "/tokenize", {"content": "ab c"})).json["tokens"] == [2, 1]
    assert (await ask(app, "POST", "/detokenize", {"tokens": [2, 1]})).json["content"] == "xx x"
    embedded = await ask(app, "POST", "/v1/embeddings", {"model": "tiny", "input": ["a", "b"]})
    assert embedded.json["data"][1]["embedding"] == [1.0, 0.5, -1.0]
    assert (await ask(app, "POST", "/v1/messages/count_tokens", QUESTION)).json == {"input_tokens": 1}


class Asked(ScriptedBackend):
    """An Ollama that knows the model `theirs`."""

    async def forward(self, request: HttpRequest) -> HttpResponse:
        response = await super().forward(request)
        if b"theirs" not in bytes(request.body):  # type: ignore[arg-type]
            response.status = 404
        return response


async def test_show_asks_the_engine_first() -> None:
    backend = Asked(dialects=frozenset({"ollama"}))
    app = VeloLLM(backend=backend)
    theirs = await ask(app, "POST", "/api/show", {"model": "theirs"})
    assert theirs.text.endswith('{"status":"success"}\n')
    ours = await ask(app, "POST", "/api/show", {"model": "", "name": "tiny"})
    assert ours.json["model_info"]["unknown.context_length"] == 4096
    assert (await ask(app, "POST", "/api/show", {"model": "nobodys"})).status == 404
    assert (await ask(app, "POST", "/api/show", {})).status == 400
    assert len(backend.forwarded) == 3


async def test_a_load_is_answered_in_ollamas_words() -> None:
    backend = ScriptedBackend([])
    for body, word in (({}, "load"), ({"keep_alive": 0}, "unload")):
        answer = await ask(VeloLLM(backend=backend), "POST", "/api/generate", {"model": "tiny", **body})
        assert (answer.json["done"], answer.json["done_reason"], answer.json["response"]) == (True, word, "")


async def test_request_ids_are_kept_or_made() -> None:
    app = VeloLLM(backend=ScriptedBackend())
    kept = await ask(app, "POST", PATHS["openai"], QUESTION, x_request_id="mine-1")
    made = await ask(app, "POST", PATHS["openai"], QUESTION, x_request_id="a" * 200)
    assert kept.headers["x-request-id"] == "mine-1"
    assert made.headers["x-request-id"].startswith("req_")


async def test_sessions_are_recognised_by_what_clients_send() -> None:
    backend = ScriptedBackend()
    app = VeloLLM(backend=backend)
    await ask(app, "POST", PATHS["openai"], QUESTION, x_claude_code_session_id="abc")
    assert backend.requests[0].context.session == "abc"


async def test_other_scopes_without_an_app() -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await VeloLLM(backend=ScriptedBackend())({"type": "websocket", "path": "/"}, receive, send)
    assert sent == [{"type": "websocket.close", "code": 1000}]


@pytest.mark.parametrize("dialect", PATHS)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-velollm-priority", "urgent"), ("x-velollm-priority", ""), ("x-velollm-deadline-ms", "soon"),
        ("x-velollm-deadline-ms", "-5"), ("x-velollm-deadline-ms", "0"), ("x-velollm-deadline-ms", "nan"),
        ("x-velollm-deadline-ms", "1e999"), ("x-velollm-tool-calls", "maybe"), ("x-velollm-cache-ttl", "1 day"),
        ("x-velollm-cache-ttl", "-1"), ("x-velollm-cache-ttl", "9" * 40),
    ],
)  # fmt: skip
async def test_a_header_that_makes_no_sense_is_refused_in_every_dialect(dialect: str, name: str, value: str) -> None:
    backend = ScriptedBackend()
    app = VeloLLM(backend=backend, tool_calls=False)
    answer = await ask(app, "POST", PATHS[dialect], question(dialect), **{name: value})
    assert answer.status == 400
    error = answer.json["error"]
    assert name in (error if isinstance(error, str) else error["message"])
    assert not backend.requests


@pytest.mark.parametrize("path", ["/v1/embeddings", "/api/embed", "/v1/messages/count_tokens", "/tokenize"])
async def test_a_header_that_makes_no_sense_is_refused_beside_chat_too(path: str) -> None:
    payload = {"model": "tiny", "input": "x", "content": "x", "messages": QUESTION["messages"]}
    answer = await ask(VeloLLM(backend=ScriptedBackend()), "POST", path, payload, **{"x-velollm-priority": "high"})
    assert answer.status == 400
    assert "x-velollm-priority" in answer.text


async def test_headers_that_make_sense_are_taken_in_any_case() -> None:
    headers = {"x-velollm-priority": " Batch", "x-velollm-deadline-ms": "1e4", "x-velollm-tool-calls": "STRICT",
               "x-velollm-cache-ttl": "0", "x-velollm-session": "any thing"}  # fmt: skip
    answer = await ask(VeloLLM(backend=ScriptedBackend()), "POST", PATHS["openai"], question("openai"), **headers)
    assert answer.status == 200
