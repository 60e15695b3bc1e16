"""A llama-server whose every token is known: it goes on from the very ids that it made, and from no others.

Its answer to anything is a script of tokens; some are halves of a character, some are several words of another
tokenisation. Asked to go on behind other ids than it said, it says `WRONG`. A stream breaks where a test wants.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import orjson
from support.faulty import JSON, SSE, frame
from support.upstream import Peer, Received, answer, chunk, head

__all__ = ["ASSISTANT", "VOCABULARY", "WRONG", "ExactEngine", "ids_of", "rendered", "tokenised"]

WRONG = b" WRONG"
ASSISTANT = "<assistant>"
VOCABULARY: list[bytes] = [
    ASSISTANT.encode(), b"<user>", WRONG, b"Hel", b"lo", b"Hello", b" world", b" wor", b"ld", b"!", b"\n", b"\n\n",
    b" ", b"\xf0\x9f", b"\xa6\x8a", b"\xe6\x97", b"\xa5", "ü".encode(), b"E", b"N", b"D", b"END", b"ENDE",
    *(b" w%d" % number for number in range(40)), *(bytes([byte]) for byte in range(256)),
]  # fmt: skip
IDS = {piece: number for number, piece in reversed(list(enumerate(VOCABULARY)))}
BY_LENGTH = sorted(VOCABULARY, key=len, reverse=True)


def ids_of(*pieces: bytes) -> list[int]:
    """The ids of tokens by their bytes."""
    return [IDS[piece] for piece in pieces]


def tokenised(text: str) -> list[int]:
    """The longest piece each time: not always what the engine itself would have generated."""
    data, found = text.encode(), []
    while data:
        piece = next(piece for piece in BY_LENGTH if data.startswith(piece))
        found.append(IDS[piece])
        data = data[len(piece) :]
    return found


def rendered(messages: Sequence[dict[str, Any]]) -> str:
    """The prompt of a conversation."""
    return "".join(f"<{message['role']}>{message['content']}" for message in messages) + ASSISTANT


@attrs.define(kw_only=True)
class ExactEngine:
    """Plays `script` to everybody; `cuts` says for each generation, by its number, after how many bytes it breaks off.

    `ends` breaks the connection; it may also stay silent. `asked` are the generations it was asked for, from where.
    """

    script: Sequence[int]
    cuts: Callable[[int], int | None] = lambda number: None
    ends: Callable[[Peer], Any] = Peer.reset
    resumes: bool = True
    asked: list[tuple[str, int]] = attrs.field(factory=list)
    proved: bool = False
    count: int = 0

    async def __call__(self, peer: Peer) -> None:
        while (request := await peer.request()) is not None:
            if request.target.endswith(b"/completions"):
                await self._generate(peer, request)
                if peer.writer.is_closing():
                    return
            else:
                peer.send(answer(orjson.dumps(self._tell(request)), JSON))

    def _tell(self, request: Received) -> dict[str, Any]:
        body = orjson.loads(request.body or b"{}")
        path = request.target.decode()
        if path.endswith("/models"):
            return {"object": "list", "data": [{"id": "m", "object": "model"}]}
        if path == "/props":
            return {"total_slots": 8, "default_generation_settings": {"n_ctx": 4096}}
        if path == "/apply-template":
            return {"prompt": rendered(body["messages"])}
        if path == "/tokenize":
            ids = tokenised(body["content"])
            pieces = [{"id": one, "piece": _piece(VOCABULARY[one])} for one in ids]
            return {"tokens": pieces if body.get("with_pieces") else ids}
        return {"status": "ok"}

    async def _generate(self, peer: Peer, request: Received) -> None:
        body = orjson.loads(request.body)
        chat = request.target.endswith(b"/chat/completions")
        prompt = body.get("prompt")
        said: list[int] = []
        if isinstance(prompt, list):
            begin = len(prompt) - prompt[::-1].index(IDS[ASSISTANT.encode()])
            said = prompt[begin:]
        is_proof = body.get("max_tokens") in (14, 9) and "twenty" in str(body.get("messages", "twenty"))
        rest = list(self.script[len(said) :])
        if said != list(self.script[: len(said)]) or (said and not self.resumes):
            rest = ids_of(*[WRONG] * 20)
        prompt_tokens = len(tokenised(rendered(body["messages"]))) if chat else len(prompt or ())
        data = self.events(rest, body, chat=chat, prompt=prompt_tokens)
        if not self.proved and is_proof:
            self.proved = bool(said)  # the two runs of a proof are no part of a test
            cut = None
        else:
            cut = self.cuts(self.count)
            self.count += 1
            self.asked.append(("chat" if chat else "ids", len(said)))
        if cut is None or cut >= len(data):
            peer.send(head(SSE, b"transfer-encoding: chunked"), chunk(data), chunk())
            return
        peer.send(head(SSE, b"transfer-encoding: chunked"))
        if cut:
            peer.send(chunk(data[:cut]))
        await peer.writer.drain()
        result = self.ends(peer)
        if result is not None:
            await result

    def events(self, tokens: Sequence[int], body: dict[str, Any], *, chat: bool = True, prompt: int = 3) -> bytes:
        """The body of a stream that says `tokens`."""
        kind = "chat.completion.chunk" if chat else "text_completion"
        base = {"id": f"c{prompt}", "object": kind, "created": 1, "model": "m"}

        def event(text: str, reason: str | None = None, **delta: str) -> bytes:
            part = {"delta": {**delta, **({"content": text} if text else {})}} if chat else {"text": text}
            return frame({**base, "choices": [{"index": 0, "finish_reason": reason, **part}]})

        limit = body.get("max_tokens")
        reason = "stop" if limit is None or limit > len(tokens) else "length"
        tokens = tokens if limit is None else tokens[:limit]
        stops = body.get("stop") or []
        stops = [stops] if isinstance(stops, str) else stops
        out = event("", role="assistant") if chat else b""
        text, sent, raw = "", 0, b""
        used = 0
        for token in tokens:
            used += 1
            raw += VOCABULARY[token]
            text = raw.decode("utf-8", "ignore")
            if raw.decode("utf-8", "replace") != text and used < len(tokens):
                continue  # half a character
            found = min((at for stop in stops if (at := text.find(stop, 0)) >= 0), default=-1)
            if found >= 0:
                out += event(text[sent:found]) if found > sent else b""
                reason = "stop"
                break
            safe = len(text) - max((_held(text, stop) for stop in stops), default=0)
            if safe > sent:
                out += event(text[sent:safe])
                sent = safe
        else:
            out += event(text[sent:]) if text[sent:] else b""
        usage = {"prompt_tokens": prompt, "completion_tokens": used, "total_tokens": prompt + used}
        last = event("", reason)
        return out + last + frame({**base, "choices": [], "usage": usage}) + frame(b"[DONE]")


def _held(text: str, stop: str) -> int:
    """How much of the end of a text may be the beginning of a stop string."""
    return next((size for size in range(len(stop) - 1, 0, -1) if text.endswith(stop[:size])), 0)


def _piece(raw: bytes) -> str | list[int]:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return list(raw)
