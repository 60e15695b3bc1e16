"""What clients notice when backends die, hang and come back: three engines, streaming clients, `velollm serve` between.

    python benchmarks/failover.py [--clients 16]

Each engine in turn is killed and started again, then (a second run) stopped for nine seconds and continued. An answer
counts as wrong when its text is not, to the character, what the engine says undisturbed. The engines are generic OpenAI
servers that say the same to the same prompt and can neither tokenise nor go on, which is the hardest case: what breaks
off is made again by another one, and checked. Writes results/failover.json.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator

import attrs
import httpx
from harness import HERE, free_port, machine

WORDS = 60
PAUSE = 0.01  # seconds between two words


# ---- an engine -------------------------------------------------------------------------------------------------------


def words_of(prompt: str) -> list[str]:
    """What every engine says to a prompt."""
    rng = random.Random(prompt)
    return [f" {rng.choice(['alpha', 'beta', 'gamma', 'delta'])}{rng.randint(0, 99)}" for _ in range(WORDS)]


async def serve_engine(port: int) -> None:
    """Serve chat completions, whole and streamed, and the list of models."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response, StreamingResponse
    from starlette.routing import Route
    from uvicorn import Config, Server

    usage = {"prompt_tokens": 4, "completion_tokens": WORDS, "total_tokens": WORDS + 4}

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": "m", "object": "model"}]})

    async def events(words: list[str]) -> AsyncGenerator[str, None]:
        base = {"id": f"c{random.getrandbits(30)}", "object": "chat.completion.chunk", "created": 1, "model": "m"}

        def chunk(delta: dict[str, str], reason: str | None = None) -> str:
            choice = {"index": 0, "delta": delta, "finish_reason": reason}
            return f"data: {json.dumps({**base, 'choices': [choice]})}\n\n"

        yield chunk({"role": "assistant", "content": ""})
        for word in words:
            await asyncio.sleep(PAUSE)
            yield chunk({"content": word})
        yield chunk({}, "stop")
        yield f"data: {json.dumps({**base, 'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n"

    async def chat(request: Request) -> Response:
        asked = await request.json()
        words = words_of(asked["messages"][0]["content"])
        if asked.get("stream"):
            return StreamingResponse(events(words), media_type="text/event-stream")
        await asyncio.sleep(PAUSE * WORDS)
        message = {"role": "assistant", "content": "".join(words)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return JSONResponse({"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice],
                             "usage": usage})  # fmt: skip

    app = Starlette(routes=[Route("/v1/models", models), Route("/v1/chat/completions", chat, methods=["POST"])])
    await Server(Config(app, port=port, log_level="critical")).serve()


# ---- clients ---------------------------------------------------------------------------------------------------------


@attrs.define
class Tally:
    """What clients got; `longest` is the longest answer, in seconds."""

    right: int = 0
    wrong: int = 0
    errors: int = 0
    longest: float = 0.0


async def ask(client: httpx.AsyncClient, url: str, prompt: str, *, stream: bool) -> str | None:
    """The text of one answer; None when it is an error, or does not end."""
    payload = {"model": "m", "stream": stream, "messages": [{"role": "user", "content": prompt}]}
    try:
        answer = await client.post(f"{url}/v1/chat/completions", json=payload)
    except httpx.HTTPError:
        return None
    if answer.status_code != 200:
        return None
    if not stream:
        text: str = answer.json()["choices"][0]["message"]["content"]
        return text
    lines = answer.text.split("\n")
    found = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    if "data: [DONE]" not in lines or any("error" in event for event in found):
        return None
    return "".join(choice["delta"].get("content") or "" for event in found for choice in event["choices"])


async def keep_asking(client: httpx.AsyncClient, url: str, number: int, tally: Tally, over: asyncio.Event) -> None:
    rng = random.Random(number)
    count = 0
    while not over.is_set():
        count += 1
        prompt = f"question {count} of client {number}"
        begin = time.monotonic()
        text = await ask(client, url, prompt, stream=rng.random() < 0.8)
        tally.longest = max(tally.longest, time.monotonic() - begin)
        if text is None:
            tally.errors += 1
        elif text == "".join(words_of(prompt)):
            tally.right += 1
        else:
            tally.wrong += 1


# ---- the runs --------------------------------------------------------------------------------------------------------


class Rig:
    """Three engines and the proxy, as processes."""

    def __init__(self) -> None:
        self.ports = [free_port() for _ in range(3)]
        self.engines = [self.start(port) for port in self.ports]
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        backends = [
            f"--backend={name}=openai+http://127.0.0.1:{p}/v1" for name, p in zip("abc", self.ports, strict=True)
        ]
        command = [sys.executable, "-m", "velollm", "-q", "serve", "--port", str(port), "--cache", "off", *backends]
        self.proxy = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def start(self, port: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, __file__, "--engine", str(port)])

    async def kill(self, number: int) -> None:
        """Kill an engine, and start it again."""
        self.engines[number].kill()
        self.engines[number].wait()
        await asyncio.sleep(1.5)
        self.engines[number] = self.start(self.ports[number])
        await asyncio.sleep(4)

    async def stop(self, number: int) -> None:
        """Stop an engine for nine seconds: its sockets stay open, and nothing is answered."""
        self.engines[number].send_signal(signal.SIGSTOP)
        await asyncio.sleep(9)
        self.engines[number].send_signal(signal.SIGCONT)
        await asyncio.sleep(4)

    def end(self) -> None:
        for process in (*self.engines, self.proxy):
            process.send_signal(signal.SIGCONT)
            process.terminate()
        for process in (*self.engines, self.proxy):
            process.wait(10)


async def run(what: str, clients: int) -> Tally:
    rig, tally, over = Rig(), Tally(), asyncio.Event()
    try:
        limits = httpx.Limits(max_connections=clients)
        async with httpx.AsyncClient(timeout=60, limits=limits) as client:
            async with asyncio.timeout(30):
                while True:
                    with contextlib.suppress(httpx.HTTPError):
                        state = (await client.get(f"{rig.url}/ready")).json()
                        if all(said == "ready" for said in state["backends"].values()):
                            break
                    await asyncio.sleep(0.1)
            asking = [asyncio.create_task(keep_asking(client, rig.url, n, tally, over)) for n in range(clients)]
            await asyncio.sleep(2)
            for number in range(3):
                await getattr(rig, what)(number)
            over.set()
            await asyncio.gather(*asking)
    finally:
        rig.end()
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--engine", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.engine is not None:
        asyncio.run(serve_engine(args.engine))
        return
    results = {what: attrs.asdict(asyncio.run(run(what, args.clients))) for what in ("kill", "stop")}
    (HERE / "results" / "failover.json").write_text(
        json.dumps({"machine": machine(), "clients": args.clients, **results}, indent=2) + "\n"
    )
    for what, tally in results.items():
        print(f"{what}: {tally}")


if __name__ == "__main__":
    main()
