"""`velollm profile`: where a request's time goes, layer by layer; `--live` watches a running proxy."""

from __future__ import annotations

import argparse
import asyncio
import logging
import math
import os
import secrets
import shutil
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import orjson

from velollm.bench.connection import HttpClient
from velollm.bench.http_asker import HttpAsker
from velollm.bench.question import Question
from velollm.bench.record import Record
from velollm.bench.reports.files import check_writable, write
from velollm.bench.runner import Run
from velollm.bench.runner import run as ask_all
from velollm.bench.running import run_quickly
from velollm.bench.schedule import Schedule
from velollm.bench.target import Target, engine_here, open_target
from velollm.bench.wires import Asking
from velollm.bench.workload import PROFILES, questions
from velollm.commands.bench import ProgressLine, api_key
from velollm.config import BackendSettings, load_settings
from velollm.errors import BackendError, ConfigError, VeloError
from velollm.profiling.live import frame
from velollm.profiling.perfetto import chrome_trace
from velollm.profiling.report import facts, render
from velollm.profiling.trace import Span, Trace, placed, trace_of
from velollm.server.profiled import ProfiledStack

__all__ = ["configure", "run"]

EXAMPLES = """\
examples:
  velollm profile                                    8 chats through all layers to the engine that runs here
  velollm profile --backend http://gpu:11434 --profile rag --trace trace.json
  velollm profile --backend http://127.0.0.1:8000    a running proxy, from outside
  velollm profile --live                             watch the proxy at 127.0.0.1:8000

A trace opens in https://ui.perfetto.dev or chrome://tracing.
"""
PROXY = "http://127.0.0.1:8000"
CLEAR, HOME, HIDE, SHOW = "\x1b[2J", "\x1b[H", "\x1b[?25l", "\x1b[?25h"
HISTORY = 200


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `velollm profile`."""
    parser.description = "Where a request's time goes: client, layers, queue, network, prefill, decode."
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--backend", metavar="URL", help="an engine, or a running proxy (default: what runs here)")
    parser.add_argument("--model", help="which of its models (default: the first)")
    parser.add_argument("--api-key-env", metavar="NAME", help="the environment variable that holds the key")
    parser.add_argument("--profile", choices=sorted(PROFILES), default="chat", help="kind of work (default: chat)")
    parser.add_argument("--num-prompts", type=int, default=8, metavar="N", help="how many requests (default: 8)")
    parser.add_argument("--max-concurrency", type=int, default=1, metavar="N", help="at once (default: 1)")
    parser.add_argument("--input-len", type=int, metavar="TOKENS", help="length of prompts, about")
    parser.add_argument("--output-len", type=int, metavar="TOKENS", help="longest answer")
    parser.add_argument("--seed", type=int, default=0, help="of the questions (default: 0)")
    parser.add_argument("--direct", action="store_true", help="straight to the engine, without VeloLLM's layers")
    parser.add_argument("--trace", "--save", type=Path, metavar="FILE", help="write the spans for Perfetto or Chrome")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    live = parser.add_argument_group("a running proxy")
    live.add_argument("--live", action="store_true", help="watch it, until Ctrl-C")
    live.add_argument("--interval", type=float, default=1.0, metavar="SECONDS", help="between looks (default: 1)")
    live.add_argument("--frames", type=int, metavar="N", help="end after so many looks")


def run(args: argparse.Namespace) -> int:
    """Profile, or watch: 0 when it was done, 1 when it could not be."""
    if args.num_prompts < 1 or args.max_concurrency < 1 or args.interval <= 0:
        raise ConfigError("--num-prompts, --max-concurrency and --interval must be above 0")
    if args.trace:
        check_writable("--trace", args.trace)
    logging.getLogger("velollm.request").setLevel(logging.WARNING)  # its lines would stand between those of the table
    try:
        if args.live:
            return asyncio.run(_watch(args))
        with ProgressLine(quiet=args.quiet) as line:
            traces = run_quickly(_profile(args, line))
    except VeloError as error:
        if isinstance(error, ConfigError) and error.message.startswith("--"):
            raise
        sys.stderr.write(f"velollm profile: {error.message}\n")
        return 1
    if args.trace:
        write(args.trace, orjson.dumps(chrome_trace(traces)).decode())
    if args.json:
        sys.stdout.write(orjson.dumps(facts(traces), option=orjson.OPT_INDENT_2).decode() + "\n")
    else:
        sys.stdout.write(render(traces))
    if args.trace:
        sys.stderr.write(f"saved: {args.trace} (open it in https://ui.perfetto.dev)\n")
    return 0


async def _profile(args: argparse.Namespace, line: ProgressLine) -> list[Trace]:
    asked = questions(args.profile, args.num_prompts, seed=args.seed, prompt=args.input_len, answer=args.output_len)
    schedule = Schedule(rate=math.inf, concurrency=args.max_concurrency)
    key = api_key(args.api_key_env)
    place = args.backend or await engine_here(os.environ)
    async with open_target(place, headers={}, patience=600.0, api_key=key) as target:
        asking = Asking(model=args.model or await _first_model(target))
        if args.direct or target.kind == "velollm":
            await ask_all(target.asker(asking), _warm_up(args), [0.0], schedule)
            return await _from_outside(target, asking, asked, schedule, line)
    return await _through_layers(args, target, asking, asked, schedule, line)


async def _from_outside(
    target: Target, asking: Asking, asked: Sequence[Question], schedule: Schedule, line: ProgressLine
) -> list[Trace]:
    """Ask over HTTP; a proxy that times its layers is asked for its spans afterwards."""
    name = f"profile-{secrets.token_hex(4)}"
    asker = target.asker(asking) if target.client is None else HttpAsker(target.client, target.kind, asking, name=name)
    done = await ask_all(asker, asked, [0.0] * len(asked), schedule, progress=line)
    told = await _spans(target.client) if target.client is not None and target.kind == "velollm" else {}
    traces = []
    for record in _answered(done):
        spans, queued = told.get(f"{name}-{record.number}", ([], 0.0))
        spans = placed(spans, record.sent, record.latency)
        traces.append(trace_of(_closed(record), spans, queued=queued))
    return traces


async def _spans(client: HttpClient) -> dict[str, tuple[list[Span], float]]:
    """The spans of a proxy by the ids of requests; none where it times nothing, or does not tell."""
    reply = await client.get("/velollm/api/traces")
    if reply.status != 200:
        why = "start it with --traces on" if reply.status == 404 else "its traces are for administrators"
        sys.stderr.write(f"the proxy's layers cannot be told apart: {why}\n")
        return {}
    told = orjson.loads(b"".join(piece for _, piece in reply.pieces))["traces"]
    return {one["id"]: ([Span(**span) for span in one["spans"]], float(one["queued"])) for one in told}


async def _through_layers(
    args: argparse.Namespace,
    target: Target,
    asking: Asking,
    asked: Sequence[Question],
    schedule: Schedule,
    line: ProgressLine,
) -> list[Trace]:
    settings = load_settings(config=getattr(args, "config", None))
    url = args.backend if args.backend and target.kind == "backend" else target.url
    backend = BackendSettings(url=url, api_key_env=args.api_key_env)
    settings = attrs.evolve(settings, backends=(backend,))
    async with ProfiledStack(settings, asking) as stack:
        await ask_all(stack, _warm_up(args), [0.0], schedule)
        stack.forget()
        done = await ask_all(stack, asked, [0.0] * len(asked), schedule, progress=line)
        return [stack.trace(_closed(record), done.begun) for record in _answered(done)]


def _warm_up(args: argparse.Namespace) -> list[Question]:
    return questions(args.profile, 1, seed=args.seed + 1, prompt=16, answer=2)


def _closed(record: Record) -> Record:
    """In a closed loop a request is due when there is a place for it."""
    record.planned = record.sent
    return record


def _answered(done: Run) -> list[Record]:
    good = [record for record in done.records if record.good]
    if not good:
        raise BackendError(f"no request was answered: {done.records[0].error}")
    return good


async def _first_model(target: Target) -> str:
    models = await target.models()
    if not models:
        raise ConfigError(f"{target.name} lists no model: say which with --model")
    return next((name for name in models if "embed" not in name.lower()), models[0])


# ---- live ------------------------------------------------------------------------------------------------------------


async def _watch(args: argparse.Namespace) -> int:
    place = (args.backend or PROXY).rstrip("/")
    key = api_key(args.api_key_env)
    client = HttpClient(place, headers={"authorization": f"Bearer {key}"} if key else {}, patience=10.0)
    history: deque[float] = deque(maxlen=HISTORY)
    drawn = sys.stdout.isatty()
    count = 0
    if drawn:
        sys.stdout.write(HIDE + CLEAR)
    try:
        while args.frames is None or count < args.frames:
            if count:
                await asyncio.sleep(args.interval)
            count += 1
            state, requests = await _get(client, "status", place), await _get(client, "requests", place)
            if args.json:
                sys.stdout.write(orjson.dumps({**state, **requests}).decode() + "\n")
            else:
                history.append(float((state.get("rates") or {}).get("generation_tokens_per_second", 0.0)))
                _draw(state, requests, list(history), place, drawn=drawn)
            sys.stdout.flush()
    except asyncio.CancelledError:
        return 0
    finally:
        if drawn:
            sys.stdout.write(SHOW + "\n")
        await client.aclose()
    return 0


def _draw(state: dict[str, Any], requests: dict[str, Any], history: list[float], place: str, *, drawn: bool) -> None:
    width, height = shutil.get_terminal_size((100, 30))
    text = frame(
        state, requests.get("requests") or [], history, place=place, width=width, height=height, colour=drawn
    )  # fmt: skip
    sys.stdout.write(HOME + "\x1b[K\n".join(text.split("\n")) + "\x1b[K\x1b[J" if drawn else text + "\n\n")


async def _get(client: HttpClient, what: str, place: str) -> dict[str, Any]:
    reply = await client.get(f"/velollm/api/{what}")
    body = b"".join(piece for _, piece in reply.pieces)
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        value = None
    if reply.status in (401, 403):
        raise ConfigError(f"{place} wants a key of an administrator: name its variable with --api-key-env")
    if reply.status != 200 or not isinstance(value, dict):
        raise ConfigError(f"{place} is no VeloLLM, or an old one: {reply.status} for /velollm/api/{what}")
    return value
