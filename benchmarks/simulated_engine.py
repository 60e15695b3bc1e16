"""An engine whose time is known: slots, prefill and decode by the token, a prefix cache, models that take turns.

    python benchmarks/simulated_engine.py --slots 4 --prefill 1 --decode 20        (milliseconds a token)

It speaks llama-server's API, as far as a proxy uses it, and prints its port. Its answers are deterministic: each token
follows from all tokens before it, so that an answer that was continued anywhere is the one that was not interrupted.
`GET /stats` tells what it did: prefill tokens computed and cached, tokens generated, the most requests at once, loads.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import sys
from collections import OrderedDict, deque
from collections.abc import Sequence

import attrs
import xxhash

WORD = re.compile(r"\s*\S+|\s+")
VOCABULARY = 4096
BLOCK = 16
END_OF_ANSWER = 64  # tokens of an answer without max_tokens


@attrs.define
class Stats:
    """What the engine did."""

    requests: int = 0
    prefill: int = 0
    cached: int = 0
    generated: int = 0
    loads: int = 0
    running: int = 0
    most_running: int = 0
    waiting: int = 0


class Tokenizer:
    """One token a word, with the space before it."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}
        self._words: list[str] = []
        for number in range(VOCABULARY):
            self._id(f" word{number}")

    def _id(self, word: str) -> int:
        found = self._ids.get(word)
        if found is None:
            found = self._ids[word] = len(self._words)
            self._words.append(word)
        return found

    def encode(self, text: str) -> list[int]:
        return [self._id(word) for word in WORD.findall(text)]

    def word(self, token: int) -> str:
        return self._words[token]


@attrs.define
class Engine:
    """Times are in seconds a token, or in all."""

    slots: int
    prefill: float
    decode: float
    cache: int
    load: float
    tokenizer: Tokenizer = attrs.field(factory=Tokenizer)
    stats: Stats = attrs.field(factory=Stats)
    model: str | None = None
    blocks: OrderedDict[int, None] = attrs.field(factory=OrderedDict)
    queue: deque[tuple[asyncio.Future[None], str]] = attrs.field(factory=deque)
    loading: asyncio.Future[None] | None = None

    async def enter(self, model: str) -> None:
        """Wait for a slot, first come, first served; another model is loaded when nothing runs."""
        self.stats.requests += 1
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.queue.append((mine, model))
        self.stats.waiting += 1
        self._advance()
        try:
            await mine
        except asyncio.CancelledError:
            if (mine, model) in self.queue:
                self.queue.remove((mine, model))
            else:
                self.leave()
            self._advance()
            raise
        finally:
            self.stats.waiting -= 1
        if self.loading is not None:
            await asyncio.shield(self.loading)

    def leave(self) -> None:
        self.stats.running -= 1
        self._advance()

    def _advance(self) -> None:
        while self.queue and self.stats.running < self.slots:
            future, model = self.queue[0]
            if self.load and model != self.model:
                if self.stats.running:
                    return
                self.stats.loads += 1
                self.model = model
                self.loading = asyncio.ensure_future(asyncio.sleep(self.load))
            self.queue.popleft()
            if not future.done():
                future.set_result(None)
                self.stats.running += 1
                self.stats.most_running = max(self.stats.most_running, self.stats.running)

    def compute(self, tokens: Sequence[int]) -> int:
        """How many of these tokens are not in the cache; all whole blocks of them are afterwards."""
        hasher = xxhash.xxh3_64()
        known, hit = 0, True
        for start in range(0, len(tokens) - BLOCK + 1, BLOCK):
            hasher.update(json.dumps(tokens[start : start + BLOCK]).encode())
            key = hasher.intdigest()
            hit = hit and key in self.blocks
            known += BLOCK if hit else 0
            self.blocks[key] = None
            self.blocks.move_to_end(key)
        while len(self.blocks) > self.cache // BLOCK:
            self.blocks.popitem(last=False)
        return len(tokens) - known

    async def answer(self, prompt: list[int], limit: int):
        """The tokens of an answer, each when it is there."""
        loop = asyncio.get_running_loop()
        new = self.compute(prompt)
        self.stats.prefill += new
        self.stats.cached += len(prompt) - new
        due = loop.time() + self.prefill * new
        hasher = xxhash.xxh3_64()
        for token in prompt:
            hasher.update(token.to_bytes(4, "little"))
        said: list[int] = []
        for _ in range(limit):
            due += self.decode
            await asyncio.sleep(max(0.0, due - loop.time()))
            token = self.tokenizer._id(f" word{hasher.intdigest() % VOCABULARY}")
            hasher.update(token.to_bytes(4, "little"))
            self.stats.generated += 1
            said.append(token)
            yield token
        self.compute([*prompt, *said])  # what was generated is in the cache as well


class Connection:
    """One HTTP/1.1 connection."""

    def __init__(self, engine: Engine, models: Sequence[str]) -> None:
        self.engine = engine
        self.models = models

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                lines = head.decode("latin-1").split("\r\n")
                method, path, _ = lines[0].split(" ")
                headers = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                await self.serve(method, path, json.loads(body) if body else {}, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def serve(self, method: str, path: str, asked: dict, reader, writer) -> None:
        tokenizer = self.engine.tokenizer
        if path.endswith("/chat/completions"):
            prompt = tokenizer.encode(template(asked["messages"]))
            await self.generate(prompt, asked, reader, writer, chat=True)
        elif path.endswith("/completions"):
            given = asked["prompt"]
            prompt = given if isinstance(given, list) else tokenizer.encode(given)
            await self.generate(prompt, asked, reader, writer, chat=False)
        else:
            send_json(writer, self.told(path, asked))

    def told(self, path: str, asked: dict) -> dict:
        tokenizer = self.engine.tokenizer
        if path.endswith("/models"):
            return {"object": "list", "data": [{"id": model, "object": "model"} for model in self.models]}
        if path == "/apply-template":
            return {"prompt": template(asked["messages"])}
        if path == "/tokenize":
            ids = tokenizer.encode(asked["content"])
            pieces = [{"id": token, "piece": tokenizer.word(token)} for token in ids]
            return {"tokens": pieces if asked.get("with_pieces") else ids}
        if path == "/props":
            return {"total_slots": self.engine.slots, "default_generation_settings": {"n_ctx": 1 << 20}}
        if path == "/stats":
            return attrs.asdict(self.engine.stats)
        return {"status": "ok"}

    async def generate(self, prompt: list[int], asked: dict, reader, writer, *, chat: bool) -> None:
        left = asyncio.ensure_future(gone(reader))
        work = asyncio.ensure_future(self.produce(prompt, asked, writer, chat=chat))
        await asyncio.wait({left, work}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            work.cancel()
            await asyncio.wait({work})
            raise ConnectionError
        left.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await left
        work.result()

    async def produce(self, prompt: list[int], asked: dict, writer, *, chat: bool) -> None:
        engine, tokenizer = self.engine, self.engine.tokenizer
        model = asked.get("model") or self.models[0]
        limit = asked.get("max_tokens") or asked.get("max_completion_tokens") or END_OF_ANSWER
        usage = {"prompt_tokens": len(prompt), "completion_tokens": limit, "total_tokens": len(prompt) + limit}
        base = {"id": "sim", "model": model, "created": 1, "object": "chat.completion.chunk"}
        await engine.enter(model)
        try:
            if not asked.get("stream"):
                text = "".join([tokenizer.word(token) async for token in engine.answer(prompt, limit)])
                said = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
                choice = {"index": 0, "finish_reason": "length", **said}
                send_json(writer, {**base, "object": "chat.completion", "choices": [choice], "usage": usage})
                return
            writer.write(HEAD + b"content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
            async for token in engine.answer(prompt, limit):
                word = tokenizer.word(token)
                said = {"delta": {"content": word}} if chat else {"text": word}
                frame(writer, {**base, "choices": [{"index": 0, "finish_reason": None, **said}]})
                await writer.drain()
            last = {"delta": {}} if chat else {"text": ""}
            frame(writer, {**base, "choices": [{"index": 0, "finish_reason": "length", **last}], "usage": usage})
            data = b"data: [DONE]\n\n"
            writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data))
        finally:
            engine.leave()


async def gone(reader: asyncio.StreamReader) -> None:
    """The end of the connection: nobody sends while waiting for an answer."""
    with contextlib.suppress(ConnectionError):
        await reader.read(1)


HEAD = b"HTTP/1.1 200 OK\r\nserver: llama.cpp\r\n"


def template(messages: list[dict]) -> str:
    """A chat template: what was said before is a beginning of what is said next."""
    return "".join(f" <{message['role']}>{' ' + text(message)}" for message in messages) + " <assistant>"


def text(message: dict) -> str:
    content = message.get("content") or ""
    said = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
    return said.strip()


def send_json(writer: asyncio.StreamWriter, value: dict) -> None:
    body = json.dumps(value).encode()
    writer.write(HEAD + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body)


def frame(writer: asyncio.StreamWriter, value: dict) -> None:
    data = b"data: " + json.dumps(value).encode() + b"\n\n"
    writer.write(b"%x\r\n%b\r\n" % (len(data), data))


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--prefill", type=float, default=1.0, help="milliseconds a token")
    parser.add_argument("--decode", type=float, default=20.0, help="milliseconds a token")
    parser.add_argument("--cache", type=int, default=1 << 20, help="tokens of the prefix cache")
    parser.add_argument("--load", type=float, default=0.0, help="milliseconds to change the model; 0: all fit together")
    parser.add_argument("--models", default="sim", help="comma-separated")
    asked = parser.parse_args()
    engine = Engine(asked.slots, asked.prefill / 1000, asked.decode / 1000, asked.cache, asked.load / 1000)
    connection = Connection(engine, asked.models.split(","))
    server = await asyncio.start_server(connection, "127.0.0.1", 0, limit=1 << 24)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)  # ends with whoever started it


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
