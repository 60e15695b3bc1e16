"""`velollm bench`: how fast an engine answers, measured; results saved, compared, drawn."""

from __future__ import annotations

import argparse
import math
import os
import secrets
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import orjson

from velollm.bench.comparison import compare, read_runs, render
from velollm.bench.dataset import read_questions
from velollm.bench.question import Question
from velollm.bench.reports import block, page, save
from velollm.bench.reports.files import check_place, check_writable, write
from velollm.bench.result import Result
from velollm.bench.runner import Progress
from velollm.bench.running import Plan, benchmark_async, run_quickly
from velollm.bench.target import engine_here
from velollm.bench.workload import ALIASES, PROFILES
from velollm.errors import ConfigError, VeloError

__all__ = ["ProgressLine", "api_key", "configure", "run"]

EXAMPLES = """\
examples:
  velollm bench                                               whatever engine runs here, 32 chats, 4 at once
  velollm bench --backend http://gpu:11434 --max-concurrency 8 --save before.json
  velollm bench --profile rag --request-rate 2 --goodput ttft:2000 tpot:80
  velollm bench --profile sweep --html report.html            1, 2, 4, 8, 16 clients, with plots
  velollm bench --dataset-path ShareGPT.json --num-prompts 100
  velollm bench --compare before.json after.json
  velollm bench --compare http://127.0.0.1:8000 http://127.0.0.1:11434      in turns, now
"""
LARGEST = 1 << 30
REDRAW_SECONDS = 0.1


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `velollm bench`."""
    parser.description = "Measure what answers requests, in the words and with the figures of `vllm bench serve`."
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    asked = parser.add_argument_group("whom to ask")
    asked.add_argument(
        "--backend", "--base-url", metavar="URL", default="auto",
        help="a server, a GGUF file or an installed model (default: the engine that runs here)",
    )  # fmt: skip
    asked.add_argument("--model", help="which of its models (default: the first)")
    asked.add_argument("--api-key-env", metavar="NAME", help="the environment variable that holds the key")
    asked.add_argument("--header", metavar="NAME=VALUE", action="append", default=[], help="sent along; repeatable")
    asked.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS", help="of silence (default: 600)")
    _add_workload(parser.add_argument_group("what to ask"))
    load = parser.add_argument_group("how much at once")
    load.add_argument("--max-concurrency", type=int, metavar="N", help="requests at once (default: 4 without a rate)")
    load.add_argument("--request-rate", type=float, default=math.inf, metavar="RPS", help="requests a second")
    load.add_argument(
        "--burstiness", type=float, default=1.0, help="shape of the gaps: 1 Poisson, below in bursts, above steadier"
    )
    load.add_argument("--sweep", metavar="N,N,...", default="1,2,4,8,16", help="numbers of clients of --profile sweep")
    _add_results(parser.add_argument_group("what becomes of it"))


def _add_workload(group: argparse._ArgumentGroup) -> None:
    kinds = "; ".join(f"{profile.name}: {profile.about}" for profile in PROFILES.values())
    about = f"kind of work (default: chat). {kinds}"
    group.add_argument("--profile", choices=[*PROFILES, *ALIASES], metavar="NAME", default="chat", help=about)
    group.add_argument(
        "--dataset-path", type=Path, metavar="FILE",
        help="questions of your own: ShareGPT-style JSON, JSON lines with prompt or messages, or one a line",
    )  # fmt: skip
    group.add_argument("--num-prompts", type=int, default=None, metavar="N", help="how many (default: 32)")
    group.add_argument("--input-len", type=int, metavar="TOKENS", help="length of prompts, about")
    group.add_argument("--output-len", type=int, metavar="TOKENS", help="longest answer")
    group.add_argument("--seed", type=int, help="ask the same again (default: something new in each run)")
    group.add_argument("--temperature", type=float, default=0.0, help="of sampling (default: 0)")
    group.add_argument("--ignore-eos", action="store_true", help="answers of full length, where the engine can")
    group.add_argument("--extra-body", metavar="JSON", default="{}", help="further fields of every request")
    group.add_argument("--completions", action="store_true", help="ask /v1/completions in place of the chat")
    group.add_argument("--num-warmups", type=int, default=1, metavar="N", help="requests before it counts (default: 1)")


def _add_results(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--goodput", nargs="+", metavar="NAME:MS", default=[], help="count what keeps ttft, tpot and e2el below these"
    )
    group.add_argument(
        "--metric-percentiles", metavar="P,P,...", default="50,90,95,99", help="which (default: 50,90,95,99)"
    )
    group.add_argument(
        "--save",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help=".json, .jsonl (adds), .csv, .md; repeatable",
    )
    group.add_argument("--html", type=Path, metavar="FILE", help="a page with plots")
    group.add_argument("--label", default="", help="a name for this run")
    group.add_argument("--metadata", nargs="+", metavar="NAME=VALUE", default=[], help="kept in the saved result")
    group.add_argument("--json", action="store_true", help="print the result as JSON")
    group.add_argument(
        "--compare", nargs=2, metavar=("A", "B"),
        help="two saved results; or two servers (URLs), which are measured in turns",
    )  # fmt: skip
    group.add_argument(
        "--rounds", type=int, default=3, metavar="N", help="of two servers that are compared (default: 3)"
    )


def run(args: argparse.Namespace) -> int:
    """Measure, or compare: 0 when it was done, 1 when it could not be."""
    try:
        if args.compare:
            return _compare(args)
        plan = _plan(args)
        for path in args.save:
            check_place(path)
        if args.html:
            check_writable("--html", args.html)
        with ProgressLine(quiet=args.quiet) as line:
            result = run_quickly(_measure(args.backend, plan, line))
    except VeloError as error:
        if isinstance(error, ConfigError) and error.message.startswith("--"):
            raise
        sys.stderr.write(f"velollm bench: {error.message}\n")
        return 1
    if args.json:
        sys.stdout.write(orjson.dumps(result.as_json(), option=orjson.OPT_INDENT_2).decode() + "\n")
    else:
        sys.stdout.write(block(result))
    for path in args.save:
        save(result, path)
    if args.html:
        write(args.html, page(result))
    for path in [*args.save, *([args.html] if args.html else [])]:
        sys.stderr.write(f"saved: {path}\n")
    return 0


async def _measure(place: str, plan: Plan, line: ProgressLine) -> Result:
    return await benchmark_async(await engine_here(os.environ) if place == "auto" else place, plan, progress=line)


def _plan(args: argparse.Namespace) -> Plan:
    if args.num_prompts is not None and args.num_prompts < 1:
        raise ConfigError("--num-prompts must be at least 1")
    return Plan(
        model=args.model,
        profile=args.profile,
        dataset=_dataset(args),
        num_prompts=args.num_prompts or 32,
        max_concurrency=args.max_concurrency,
        request_rate=args.request_rate,
        burstiness=args.burstiness,
        input_len=args.input_len,
        output_len=args.output_len,
        seed=args.seed,
        goodput=_goodput(args.goodput),
        percentiles=_numbers("--metric-percentiles", args.metric_percentiles),
        num_warmups=args.num_warmups,
        sweep=[int(number) for number in _numbers("--sweep", args.sweep)],
        completions=args.completions,
        ignore_eos=args.ignore_eos,
        temperature=args.temperature,
        extra_body=_object("--extra-body", args.extra_body),
        headers=_pairs("--header", args.header),
        api_key=api_key(args.api_key_env),
        timeout=args.timeout,
        label=args.label,
        metadata=_pairs("--metadata", args.metadata),
    )


def _dataset(args: argparse.Namespace) -> list[Question] | None:
    if args.dataset_path is None:
        return None
    text = _read(args.dataset_path).decode("utf-8", "replace")
    found = read_questions(text, args.dataset_path.name, count=args.num_prompts, seed=args.seed or 0)
    if args.output_len is None:
        return found
    return [Question(messages=one.messages, tools=one.tools, max_tokens=args.output_len) for one in found]


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(LARGEST)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


def _goodput(pairs: list[str]) -> dict[str, float]:
    found = {}
    for pair in pairs:
        name, sep, value = pair.partition(":")
        if not sep or not _is_number(value):
            raise ConfigError(f"--goodput {pair}: NAME:MILLISECONDS is wanted, with ttft, tpot or e2el")
        found[name] = float(value)
    return found


def _numbers(flag: str, text: str) -> list[float]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or not all(map(_is_number, words)):
        raise ConfigError(f"{flag} {text}: numbers with commas between them are wanted")
    return [float(word) for word in words]


def _is_number(word: str) -> bool:
    try:
        return math.isfinite(float(word))
    except ValueError:
        return False


def _pairs(flag: str, pairs: list[str]) -> dict[str, str]:
    for pair in pairs:
        if "=" not in pair.strip("="):
            raise ConfigError(f"{flag} {pair}: NAME=VALUE is wanted")
    return {name.strip(): value.strip() for name, _, value in (pair.partition("=") for pair in pairs)}


def _object(flag: str, text: str) -> Mapping[str, Any]:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise ConfigError(f"{flag}: a JSON object is wanted")
    return value


def api_key(name: str | None) -> str:
    """The key in the variable `name`. Raises `ConfigError` when there is none."""
    if name is None:
        return ""
    key = os.environ.get(name, "")
    if not key:
        raise ConfigError(f"--api-key-env {name}: there is no such variable")
    return key


def _compare(args: argparse.Namespace) -> int:
    one, other = args.compare
    if "://" in one and "://" in other:
        found = compare(*_in_turns(args))
    else:
        found = compare(*(read_runs(_read(Path(name)), name) for name in args.compare))
    if args.json:
        sys.stdout.write(orjson.dumps(found, default=_plain, option=orjson.OPT_INDENT_2).decode() + "\n")
    else:
        sys.stdout.write(render(found, {"A": one, "B": other}))
    return 0


def _in_turns(args: argparse.Namespace) -> tuple[list[Any], list[Any]]:
    """Both servers measured in turns, A B B A ..., with the same questions, which are new to each one's caches."""
    if args.rounds < 1:
        raise ConfigError("--rounds must be at least 1")
    plan = _plan(args)
    seed = secrets.randbits(30) if plan.seed is None else plan.seed
    runs: tuple[list[Any], list[Any]] = ([], [])
    with ProgressLine(quiet=args.quiet) as line:
        for turn in range(args.rounds):
            for side in (0, 1) if turn % 2 == 0 else (1, 0):
                asked = attrs.evolve(plan, seed=seed + turn, salt="ab"[side])
                done = run_quickly(benchmark_async(args.compare[side], asked, progress=line))
                runs[side].append(done.as_json(details=True))
    return runs


def _plain(value: Any) -> Any:
    return attrs.asdict(value)


class ProgressLine:
    """How far a run is, drawn over itself on a terminal; nothing elsewhere."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._shown = sys.stderr.isatty() and not quiet
        self._due = 0.0
        self._open = False

    def __call__(self, state: Progress) -> None:
        """Show it, ten times a second at most."""
        now = time.monotonic()
        if not self._shown or (now < self._due and state.done < state.total):
            return
        self._due = now + REDRAW_SECONDS
        self._open = True
        failed = f", {state.failed} failed" if state.failed else ""
        rate = state.tokens / state.seconds if state.seconds else 0.0
        sys.stderr.write(
            f"\r\x1b[K{state.done} of {state.total} answered, {state.asked - state.done} running{failed}, "
            f"{rate:.1f} tokens/s"
        )
        sys.stderr.flush()

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *problem: object) -> None:
        if self._open:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
