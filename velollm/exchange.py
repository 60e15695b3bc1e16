"""One HTTP exchange with a client: what it sent, as far as it is read, and the way back, in its own dialect."""

from __future__ import annotations

from codecs import BOM_UTF8
from random import getrandbits
from time import monotonic
from typing import Any

import orjson

from velollm.api import anthropic, ollama, openai
from velollm.asgi import Bodies, Headers, Receive, Responder, Scope, Send, decode_headers, encode_headers, read_body
from velollm.control_headers import check_control_headers
from velollm.errors import RequestError, VeloError
from velollm.messages import RequestContext
from velollm.observability.record import note_refusal

__all__ = ["Exchange", "dialect_of"]

JSON_TYPE = (b"content-type", b"application/json")
SESSION_HEADERS = (
    "x-velollm-session",
    "x-claude-code-session-id",
    "x-openwebui-chat-id",
    "x-session-affinity",
    "x-session-id",
)
SESSIONS = frozenset(SESSION_HEADERS)
ORJSON_DEPTH = 254  # so many levels it writes at most
MAX_DEPTH = 200  # what is read here is written again behind the door, perhaps with something around it
MOST_NODES = (
    30_000  # objects and arrays, for each of which readers need some microseconds, in which nobody else is served
)
RENDER_ERROR = {
    "anthropic": anthropic.render_error,
    "ollama": ollama.render_error,
    "openai": openai.render_error,
}


def dialect_of(path: str) -> str:
    """Whose errors a client of this path expects."""
    if path.startswith("/api/"):
        return "ollama"
    return "anthropic" if path.startswith("/v1/messages") else "openai"


class Exchange:
    """A request and its response. `path` is relative to where the door is mounted."""

    __slots__ = ("body", "context", "dialect", "path", "payload", "receive", "respond", "scope")

    def __init__(self, scope: Scope, receive: Receive, send: Send, path: str) -> None:
        headers = decode_headers(scope["headers"])
        self.scope = scope
        self.receive = receive
        self.respond = Responder(send)
        self.path = path
        self.dialect = dialect_of(path)
        if "anthropic-version" in headers and self.dialect == "openai":
            self.dialect = "anthropic"
        self.body = b""
        self.payload: dict[str, Any] = {}
        self.context = RequestContext(
            request_id=_request_id(headers.get("x-request-id")),
            client_headers=headers,
            session=None if SESSIONS.isdisjoint(headers) else _session(headers),
            marks={"received": monotonic()},
        )

    async def read(self, bodies: Bodies) -> None:
        """Read the body, within these limits, and parse it as a JSON object; check what headers wish for."""
        body = await read_body(self.receive, self.context.client_headers, bodies)
        self.body = body.removeprefix(BOM_UTF8)  # as clients on .NET send it
        self.payload = _parse_json(self.body)
        check_control_headers(self.context.client_headers)

    async def json(self, answer: Any) -> None:
        """Answer 200 with JSON; `answer` may be bytes already encoded."""
        body = answer if isinstance(answer, bytes) else orjson.dumps(answer)
        await self.respond.whole(200, self.headers(JSON_TYPE), body)

    async def fail(self, error: VeloError) -> None:
        """Answer with an error of the client's dialect."""
        note_refusal(error)
        headers = [*self.headers(JSON_TYPE), *error.headers]
        if error.retry_after is not None:
            headers.append((b"retry-after", str(max(1, round(error.retry_after))).encode()))
        if error.status in (408, 413):  # the rest of the body was not read
            headers.append((b"connection", b"close"))
        body = orjson.dumps(RENDER_ERROR[self.dialect](error, self.context.request_id))
        await self.respond.whole(error.status, headers, body)

    def headers(self, content_type: tuple[bytes, bytes]) -> Headers:
        """Response headers: the type, the request id, and what the layers had to say."""
        headers = [content_type, (b"x-request-id", self.context.request_id.encode())]
        if self.context.headers:
            headers += encode_headers(self.context.headers)
        return headers


def _session(headers: dict[str, str]) -> str | None:
    return next((headers[name] for name in SESSION_HEADERS if name in headers), None)


def _request_id(given: str | None) -> str:
    """The client's own id where it is short, printable ASCII; else a new one."""
    if given and len(given) <= 128 and given.isascii() and given.isprintable():
        return given
    return f"req_{getrandbits(96):024x}"


def _parse_json(body: bytes) -> dict[str, Any]:
    if not body:
        raise RequestError("the request body is empty: send a JSON object")
    if body.count(b'{"') > MOST_NODES:  # all but those where a text ends with a brace are objects: no need to read them
        raise _too_large()
    try:
        payload = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"the request body is not valid JSON: {error.msg} (at character {error.pos})") from None
    if not isinstance(payload, dict):
        raise RequestError("the request body must be a JSON object")
    brackets = body.count(b"{") + body.count(b"[")  # or more than there are: some stand in texts
    if (brackets > MOST_NODES and _too_many(payload)) or len(payload) > MOST_NODES:
        raise _too_large()
    if brackets > MAX_DEPTH and _too_deep(payload):
        raise RequestError(f"the request body is nested more than {MAX_DEPTH} levels deep")
    if not "".join(payload).islower() and len({name.casefold() for name in payload}) < len(payload):
        # Engines in Go would take them for one: what they read must be what was looked at here.
        raise RequestError("the request body has fields whose names differ only in case")
    return payload


def _too_large() -> RequestError:
    return RequestError(f"the request body has more than {MOST_NODES} objects and arrays, or fields")


def _too_deep(payload: dict[str, Any]) -> bool:
    """Whether there are more than MAX_DEPTH levels: found by writing it, which C does in a moment, however large."""
    value: Any = payload
    for _ in range(ORJSON_DEPTH - MAX_DEPTH):
        value = [value]
    try:
        orjson.dumps(value)
    except orjson.JSONEncodeError:
        return True
    return False


def _too_many(payload: dict[str, Any]) -> bool:
    """Whether there are more than MOST_NODES objects and arrays."""
    left: list[Any] = [payload]
    found = 1
    while left and found <= MOST_NODES:
        node = left.pop()
        inner = [value for value in (node.values() if type(node) is dict else node) if type(value) in (dict, list)]
        found += len(inner)
        left += inner
    return found > MOST_NODES
