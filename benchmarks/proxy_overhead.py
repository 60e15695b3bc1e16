"""CPU time that a proxy spends on a request: VeloLLM, nginx, LiteLLM and any other in front of the same upstream.

    python benchmarks/proxy_overhead.py [--litellm VENV/bin/python] [--rounds 5] [--seconds 1]

Rounds are interleaved, figures are medians over rounds. A proxy's figure is the CPU time of its processes, user and
system, divided by the requests answered; `direct` has no proxy and shows what client and upstream cost in latency.
Writes results/proxy_overhead.md and .json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import attrs
import httpx
from harness import HERE, MARK, cpu_seconds, free_port, http_request, machine, press, raw_upstream

# As many at once as come: this upstream answers at any pace, from which nothing can be learned about its slots.
VELOLLM = "{python} -m velollm serve --backend openai+http://127.0.0.1:{upstream}/v1 --port {port} --concurrency 256"
ALONE = "--cache off --tool-calls off"
CHUNKS = 64
MESSAGES = [
    {"role": "system", "content": "You are a helpful assistant that answers briefly."},
    {"role": "user", "content": f"Why is the sky blue? Explain it to child {MARK.decode()}, in three sentences."},
]

NGINX = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log crit; {user}
events {{ worker_connections 1024; }}
http {{
    access_log off; keepalive_requests 1000000;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    upstream engine {{ server 127.0.0.1:{upstream}; keepalive 64; keepalive_requests 1000000; }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
        }}
    }}
}}
"""


@attrs.frozen(kw_only=True)
class Case:
    """What is asked for: an answer in JSON, a stream as fast as it comes, or one at the pace of a model.

    What is not `sampled` names no temperature, as most clients do: then the answers of identical requests in flight are
    shared, and shadow mode compares them with what it would have said.
    """

    name: str
    stream: bool
    concurrency: int
    paced: bool = False
    sampled: bool = True

    @property
    def path(self) -> str:
        return "/v1/chat/completions"

    @property
    def body(self) -> bytes:
        asked: dict[str, Any] = {"model": "m", "messages": MESSAGES, "stream": self.stream}
        if self.sampled:
            asked["temperature"] = 0.7
        if self.paced:
            asked["user"] = "/paced/"
        return json.dumps(asked).encode()


CASES = [
    Case(name="JSON, 1 at a time", stream=False, concurrency=1),
    Case(name="JSON, 32 at a time", stream=False, concurrency=32),
    Case(name="JSON, 32 at a time, no temperature named", stream=False, concurrency=32, sampled=False),
    Case(name="SSE, 1 at a time", stream=True, concurrency=1),
    Case(name="SSE, 32 at a time", stream=True, concurrency=32),
    Case(name="SSE, 32 at a time, a chunk every 5 ms", stream=True, concurrency=32, paced=True),
]


@attrs.define(kw_only=True)
class Target:
    """A proxy under test: the port it listens on, and its process (None: the upstream itself)."""

    name: str
    port: int
    pid: int | None = None


@attrs.define(kw_only=True)
class Cell:
    """One measurement: CPU seconds a request, median latency in seconds, requests a second."""

    cpu: float
    latency: float
    rate: float


# ---- proxies ---------------------------------------------------------------------------------------------------------


@contextmanager
def running(name: str, command: list[str], port: int, log: Path, env: dict[str, str]) -> Iterator[Target]:
    """A proxy as a process of its own, once it answers."""
    with (
        log.open("wb") as out,
        subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, **env}) as process,
    ):
        try:
            _wait(name, process, port, log)
            yield Target(name=name, port=port, pid=process.pid)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait(name: str, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        try:
            answer = httpx.post(f"http://127.0.0.1:{port}{CASES[0].path}", content=CASES[0].body, timeout=30)
            if answer.status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise RuntimeError(f"{name} did not answer; its log ends:\n{log.read_text(errors='replace')[-3000:]}")


def nginx(folder: Path, upstream: int) -> tuple[list[str], int, dict[str, str]]:
    port = free_port()
    user = "user root;" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, upstream=upstream, port=port, user=user))
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    return [program, "-p", str(folder), "-c", str(folder / "nginx.conf")], port, {}


def litellm(python: Path, folder: Path, upstream: int) -> tuple[list[str], int, dict[str, str]]:
    port = free_port()
    params = {"model": "openai/m", "api_base": f"http://127.0.0.1:{upstream}/v1", "api_key": "none"}
    config = {"model_list": [{"model_name": "m", "litellm_params": params}], "litellm_settings": {"telemetry": False}}
    (folder / "litellm.json").write_text(json.dumps(config))  # JSON is YAML
    command = [str(python.parent / "litellm"), "--config", str(folder / "litellm.json"), "--host", "127.0.0.1"]
    env = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MODE": "PRODUCTION", "LITELLM_LOG": "ERROR"}
    env["LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY"] = "true"  # it listens on loopback, for a moment
    return [*command, "--port", str(port), "--num_workers", "1"], port, env


def by_command(template: str, upstream: int) -> tuple[list[str], int, dict[str, str]]:
    port = free_port()
    values = {"python": sys.executable, "upstream": upstream, "port": port}
    own = {"VELOLLM_EMBEDDER_DIR": os.devnull}  # as it comes: without an embedding model that may be installed here
    return [part.format(**values) for part in shlex.split(template)], port, own


@contextmanager
def proxies(arguments: argparse.Namespace) -> Iterator[list[Target]]:
    """Everything to be compared, running."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        upstream = stack.enter_context(raw_upstream())
        made: dict[str, Callable[[], tuple[list[str], int, dict[str, str]]]] = {
            "nginx": lambda: nginx(folder, upstream)
        }
        if arguments.litellm:
            made["LiteLLM"] = lambda: litellm(arguments.litellm, folder, upstream)
        if arguments.velollm:
            made["VeloLLM"] = lambda: by_command(arguments.velollm, upstream)
            made["VeloLLM, no layers"] = lambda: by_command(f"{arguments.velollm} {ALONE}", upstream)
        for target in arguments.target:
            name, _, template = target.partition("=")
            made[name] = lambda template=template: by_command(template, upstream)  # type: ignore[misc]
        targets = [Target(name="direct", port=upstream)]
        for name, make in made.items():
            command, port, env = make()
            log = folder / f"{name}.log"
            targets.append(stack.enter_context(running(name, command, port, log, env)))
        yield targets


# ---- measuring -------------------------------------------------------------------------------------------------------


def measure(target: Target, case: Case, seconds: float) -> Cell:
    """Load one proxy with one case."""
    request = http_request(target.port, case.path, case.body)
    frames = CHUNKS + 1 if case.stream else 0
    before = cpu_seconds(target.pid) if target.pid else 0.0
    load = asyncio.run(press(target.port, request, frames=frames, concurrency=case.concurrency, seconds=seconds))
    used = cpu_seconds(target.pid) - before if target.pid else 0.0
    return Cell(cpu=used / load.requests, latency=statistics.median(load.latencies), rate=load.requests / load.seconds)


Figures = dict[str, dict[str, Cell]]


def compare(targets: list[Target], rounds: int, seconds: float) -> Figures:
    """Medians over interleaved rounds, by case and target."""
    cells: dict[tuple[str, str], list[Cell]] = {}
    for target in targets:
        for case in CASES:
            measure(target, case, 0.3)  # warm-up
    for number in range(rounds):
        for case in CASES:
            for target in targets:
                cells.setdefault((case.name, target.name), []).append(measure(target, case, seconds))
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
    return {case.name: {target.name: _median(cells[case.name, target.name]) for target in targets} for case in CASES}


def _median(cells: list[Cell]) -> Cell:
    return Cell(
        cpu=statistics.median(cell.cpu for cell in cells),
        latency=statistics.median(cell.latency for cell in cells),
        rate=statistics.median(cell.rate for cell in cells),
    )


# ---- reporting -------------------------------------------------------------------------------------------------------


def table(figures: Figures) -> str:
    """The comparison in Markdown."""
    lines = ["| case | proxy | CPU µs a request | CPU µs a chunk | times nginx | latency ms | requests/s |"]
    lines.append("|---|---|--:|--:|--:|--:|--:|")
    for case in CASES:
        base = figures[case.name]["nginx"].cpu
        for name, cell in figures[case.name].items():
            cpu = f"{cell.cpu * 1e6:.0f}" if cell.cpu else "-"
            chunk = f"{cell.cpu * 1e6 / CHUNKS:.1f}" if cell.cpu and case.stream else "-"
            times = f"{cell.cpu / base:.1f}" if cell.cpu else "-"
            shown = f"| {case.name} | {name} | {cpu} | {chunk} | {times} |"
            lines.append(f"{shown} {cell.latency * 1e3:.2f} | {cell.rate:.0f} |")
    return "\n".join(lines)


def write(figures: Figures, versions: dict[str, str], arguments: argparse.Namespace) -> None:
    """results/proxy_overhead.md and .json."""
    folder = arguments.out
    folder.mkdir(parents=True, exist_ok=True)
    about = ", ".join(f"{name} {version}" for name, version in versions.items())
    text = f"""# CPU time of a proxy per request

{table(figures)}

`VeloLLM` has all of its default layers hung in (admission, cache, tool calls, scheduling, routing, observation), and
every question is a new one; `no layers` is started with `{ALONE}`. A stream has {CHUNKS} chunks. CPU is user and
system time of the proxy's processes; medians of {arguments.rounds} interleaved rounds of {arguments.seconds:g} s each.
Measured on {machine()}; {about}.

Repeat with `python benchmarks/proxy_overhead.py --litellm PYTHON_OF_A_VENV_WITH_LITELLM`.
"""
    (folder / "proxy_overhead.md").write_text(text)
    plain = {case: {name: attrs.asdict(cell) for name, cell in row.items()} for case, row in figures.items()}
    record = {"machine": machine(), "versions": versions, "rounds": arguments.rounds, "cases": plain}
    (folder / "proxy_overhead.json").write_text(json.dumps(record, indent=1) + "\n")


def versions_of(arguments: argparse.Namespace) -> dict[str, str]:
    """Versions of what is compared, as far as they can be had."""
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    shown = subprocess.run([program, "-v"], capture_output=True, text=True, check=True).stderr
    found = {"nginx": shown.rpartition("/")[2].strip()}
    if arguments.litellm:
        code = "from importlib.metadata import version; print(version('litellm'))"
        shown = subprocess.run([arguments.litellm, "-c", code], capture_output=True, text=True, check=True).stdout
        found["LiteLLM"] = shown.strip()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--velollm", default=VELOLLM, metavar="COMMAND", help="how to start it; empty: leave it out")
    parser.add_argument("--litellm", type=Path, metavar="PYTHON", help="the interpreter of an environment that has it")
    parser.add_argument("--target", action="append", default=[], metavar="NAME=COMMAND", help="another proxy")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of load, for each case and round")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="where the tables are written")
    arguments = parser.parse_args()
    with proxies(arguments) as targets:
        figures = compare(targets, arguments.rounds, arguments.seconds)
    write(figures, versions_of(arguments), arguments)
    print(table(figures))


if __name__ == "__main__":
    main()
