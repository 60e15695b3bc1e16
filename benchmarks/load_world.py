"""What the scenarios under load are made of: engines, `velollm serve`, questions, and clients that ask them."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import attrs
import httpx
from client import Answer
from harness import HERE, listening, velollm_serve

__all__ = [
    "BATCH", "INTERACTIVE", "MODEL", "TIMES", "Figure", "busy", "engine", "jain", "key", "keys_file", "metric",
    "question", "real_engine", "steady", "velollm", "velollm_before",
]  # fmt: skip

MODEL = "sim"
# Everything takes so many times as long, the engine's work and what is asked of it: for machines that are busy.
TIMES = float(os.environ.get("LOAD_TIMES", "1"))
INTERACTIVE = {"x-velollm-priority": "interactive"}
BATCH = {"x-velollm-priority": "batch"}


@attrs.frozen(kw_only=True)
class Figure:
    """One figure: what was measured, what it is without VeloLLM where that says something, and its goal."""

    name: str
    value: float
    goal: str
    met: bool
    direct: float | None = None


def engine(*options: str) -> AbstractContextManager[int]:
    """A simulated engine, and its port."""
    return listening("simulated_engine.py", "--prefill", str(TIMES), "--decode", str(20 * TIMES), *options)


@contextmanager
def velollm(*options: str) -> Iterator[int]:
    """`velollm serve`, and its port."""
    with velollm_serve(*options) as (port, _):
        yield port


@contextmanager
def real_engine(slots: int) -> Iterator[tuple[int, str]]:
    """A llama-server with the default model; its port, and the key that it wants."""
    from velollm.contrib.llamacpp.local_model import locate
    from velollm.contrib.llamacpp.plan import make_plan, this_machine
    from velollm.models.gguf import read_gguf

    path, key = locate("smollm2", None), "sk-for-the-benchmark-only"
    plan = make_plan(read_gguf(path), this_machine(), ctx=4096, parallel=slots)
    given = {**attrs.asdict(plan), "path": str(path), "names": [MODEL], "key": key}
    child = HERE.parent / "contrib" / "llamacpp" / "child.py"
    command = [sys.executable, "-P", str(child)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(given) + "\n")
            process.stdin.flush()
            yield int(json.loads(process.stdout.readline())["url"].rpartition(":")[2]), key
        finally:
            process.kill()


@contextmanager
def velollm_before(upstream: int, key: str) -> Iterator[int]:
    """`velollm serve` before a llama-server that wants a key, and its port."""
    lines = ["[[backends]]", f'url = "llamacpp://127.0.0.1:{upstream}"', 'api_key_env = "ENGINE_KEY"']
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "velollm.toml"
        config.write_text("\n".join(lines) + "\n")
        os.environ["ENGINE_KEY"] = key
        with velollm("--config", str(config)) as port:
            yield port


def metric(port: int, name: str) -> float:
    """One figure of `/metrics`."""
    lines = httpx.get(f"http://127.0.0.1:{port}/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(name))


def question(words: int, tokens: int, seed: object, **more: Any) -> dict[str, Any]:
    """A request of about `words` tokens that asks for `tokens`."""
    text = " ".join(f"{seed}-{number}" for number in range(words))
    return {
        "model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": tokens, "stream": True,
        "temperature": 0, **more,
    }  # fmt: skip


async def steady(rate: float, seconds: float, call: Callable[[int], Awaitable[Answer]]) -> list[Answer]:
    """An open loop: `rate` calls a second, evenly, whatever becomes of them."""
    begin = asyncio.get_running_loop().time()
    tasks = []
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, begin + TIMES * number / rate - asyncio.get_running_loop().time()))
        tasks.append(asyncio.ensure_future(call(number)))
    return list(await asyncio.gather(*tasks))


async def busy(clients: int, seconds: float, call: Callable[[int, int], Awaitable[Answer]]) -> list[Answer]:
    """A closed loop: each client asks again as soon as it was answered."""
    loop = asyncio.get_running_loop()
    end = loop.time() + TIMES * seconds

    async def client(number: int) -> list[Answer]:
        answers: list[Answer] = []
        while loop.time() < end:
            answers.append(await call(number, len(answers)))
            if not answers[-1].good:
                await asyncio.sleep(0.2 * TIMES)
        return answers

    return [
        answer for answers in await asyncio.gather(*(client(number) for number in range(clients))) for answer in answers
    ]


def jain(values: list[float]) -> float:
    """1 when all have the same."""
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values))


@contextmanager
def keys_file(names: list[str]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "keys.toml"
        path.write_text("".join(f'[[keys]]\nname = "{name}"\nkey = "sk-{name}-0123456789abcdef"\n' for name in names))
        yield path


def key(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer sk-{name}-0123456789abcdef"}
