"""Rules about the engines that run, and how they were started."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from urllib.parse import urlsplit

from velollm.diagnosis.facts import Facts
from velollm.diagnosis.finding import Finding
from velollm.hardware.machine import Engine
from velollm.tuning.variables import DEAD, VARIABLES, parse_version

__all__ = ["FAULTS", "RULES"]

# Engine: (fixed in, what is wrong before). Builds of llama.cpp count up.
FAULTS: dict[str, list[tuple[tuple[int, ...], str]]] = {
    "ollama": [
        ((0, 1, 34), "a model from a registry could write files anywhere (CVE-2024-37032)"),
        ((0, 3, 15), "a crafted GGUF file crashes the server (CVE-2024-12055, CVE-2025-0315, CVE-2025-0317)"),
        ((0, 17, 1), "a crafted GGUF file leaks the server's memory through /api/create (CVE-2026-7482)"),
    ],
    "llamacpp": [
        ((5662,), "a crafted vocabulary overflows a buffer (CVE-2025-49847)"),
        ((5721,), "a long prompt overflows the tokenizer (CVE-2025-52566)"),
    ],
}
BUILD = re.compile(r"b(\d{3,6})\b")
CUT = re.compile(r'msg="truncating input prompt" limit=(\d+) prompt=(\d+)')
# One line a load: the model's blob, and its context for all slots, as old and new versions log them.
STARTED = re.compile(r"(?:--model |ModelPath:)(?P<model>\S+)")
CONTEXT = re.compile(r"(?:KvSize:|--ctx-size |-c )(?P<tokens>\d+)")
COMMITTED = re.compile(r"Operation:commit|starting llama-server")
RELOADS = 3
SOFT_VARIABLES = re.compile(r"OLLAMA_[A-Z_]+")


def missing(facts: Facts) -> Iterator[Finding]:
    """Nothing answers."""
    if facts.machine.engines:
        return
    remedy = (
        "`ollama serve`, or `systemctl start ollama`"
        if facts.ollama_installed
        else "`velollm serve` brings a small model"
    )
    crashed = [process for process in facts.processes if not process.child]
    seen = f"; process {crashed[0].pid} ({crashed[0].kind}) runs, but does not answer" if crashed else ""
    yield Finding("engine-not-running", "error", f"no engine answers on the usual ports{seen}", remedy)


def outdated(facts: Facts) -> Iterator[Finding]:
    """Versions with faults that are known and mended."""
    for engine in facts.machine.engines:
        number: tuple[int, ...] = parse_version(engine.version)
        build = BUILD.search(engine.version)
        if engine.kind == "llamacpp":
            number = (int(build[1]),) if build else ()
        known = [(fixed, words) for fixed, words in FAULTS.get(engine.kind, ()) if number and number < fixed]
        if known:
            since = ".".join(map(str, known[-1][0]))
            yield Finding(
                "old-version",
                "error",
                f"{engine.kind} {engine.version} at {engine.url}: {'; '.join(words for _, words in known)}",
                f"update it to {'b' if engine.kind == 'llamacpp' else ''}{since} or later"
                + ("; `curl -fsSL https://ollama.com/install.sh | sh` on Linux" if engine.kind == "ollama" else ""),
            )


def cut(facts: Facts) -> Iterator[Finding]:
    """Prompts longer than the context lose their beginning, and nobody says so."""
    found = [(int(limit), int(prompt)) for limit, prompt in CUT.findall(facts.ollama_log)]
    if found:
        limit, longest = found[-1][0], max(prompt for _, prompt in found)
        yield Finding(
            "prompts-cut",
            "error",
            f"Ollama's log: {len(found)} prompts were cut at {limit} tokens; the longest had {longest}",
            f"`velollm tune ollama --context {-(-longest * 5 // 4 // 1024) * 1024} --apply`, "
            'or set num_ctx for the model in velollm.toml ([models."NAME"] num_ctx)',
        )


def spilled(facts: Facts) -> Iterator[Finding]:
    """A model that does not fit into the GPU computes at the speed of the CPU."""
    if not facts.machine.accelerated:
        return
    for engine in facts.machine.engines:
        for model in engine.loaded:
            if model.gpu_share is not None and model.gpu_share < 0.99:
                yield Finding(
                    "model-on-cpu",
                    "warning",
                    f"{model.name}: {model.gpu_share:.0%} of it is on the GPU, at a context of "
                    f"{model.context or '?'} tokens",
                    f"`velollm tune {_target(engine)} --model {model.name}` says what fits: a shorter context, a "
                    f"q8_0 cache, "
                    "or a smaller quantisation",
                )


def one_slot(facts: Facts) -> Iterator[Finding]:
    """Requests that stand in line."""
    for engine in facts.machine.engines:
        open_now = facts.clients.get(_port(engine), 0)
        if engine.slots != 1:
            continue
        many = open_now > 1
        seen = f"{open_now} clients are connected" if many else "a second client would wait for the first"
        yield Finding(
            "one-slot",
            "warning" if many else "info",
            f"{engine.kind} at {engine.url} answers one request at a time; {seen}",
            f"`velollm tune {_target(engine)} --clients {max(open_now, 4)} --apply --verify`",
        )


def reloads(facts: Facts) -> Iterator[Finding]:
    """The same model loaded again and again, because clients ask for different contexts."""
    contexts: dict[str, list[str]] = defaultdict(list)
    model = ""
    for line in facts.ollama_log.splitlines():
        started = STARTED.search(line)
        if started:
            model = started["model"].rpartition("/")[2][:19]
        context = CONTEXT.search(line)
        if context and COMMITTED.search(line) and model:
            contexts[model].append(context["tokens"])
    for name, sizes in contexts.items():
        changes = sum(one != other for one, other in zip(sizes, sizes[1:]))  # noqa: B905, RUF007
        if changes >= RELOADS:
            yield Finding(
                "context-reloads",
                "warning",
                f"Ollama's log: {name} was loaded {len(sizes)} times, with contexts of "
                f"{', '.join(sorted(set(sizes), key=int))}",
                "clients that name different num_ctx reload the model at every turn: put VeloLLM in front and "
                "set one num_ctx "
                'for it (velollm.toml, [models."NAME"] num_ctx), or take num_ctx out of the clients',
            )


def variables(facts: Facts) -> Iterator[Finding]:
    """Variables that are set, and do nothing."""
    for engine in facts.machine.engines:
        if engine.kind != "ollama":
            continue
        settings = engine.settings
        for name in sorted(settings.keys() & DEAD.keys()):
            yield Finding(
                "dead-variable", "warning", f"{name} is set, but Ollama does not read it", f"use {DEAD[name]}"
            )
        quantised = settings.get("OLLAMA_KV_CACHE_TYPE", "f16") not in ("", "f16")
        if quantised and settings.get("OLLAMA_FLASH_ATTENTION", "").lower() not in ("1", "true"):
            yield Finding(
                "kv-type-ignored",
                "warning",
                f"OLLAMA_KV_CACHE_TYPE={settings['OLLAMA_KV_CACHE_TYPE']} without OLLAMA_FLASH_ATTENTION=1: it "
                f"may be ignored",
                "set OLLAMA_FLASH_ATTENTION=1, too (`velollm tune ollama --apply`)",
            )
        if settings.get("OLLAMA_KEEP_ALIVE", "") in ("0", "0s", "0m"):
            yield Finding(
                "keep-alive-zero",
                "warning",
                f"OLLAMA_KEEP_ALIVE={settings['OLLAMA_KEEP_ALIVE']}: the model is loaded anew for every request",
                "unset it, or set 5m and more (`velollm tune ollama --apply`)",
            )
        for name in sorted(set(filter(SOFT_VARIABLES.fullmatch, settings)) - VARIABLES.keys() - DEAD.keys()):
            yield Finding(
                "unknown-variable",
                "info",
                f"{name} is set, but no version up to 0.32 reads it",
                "see `ollama serve --help` for the names",
            )


def exposed(facts: Facts) -> Iterator[Finding]:
    """An engine that anyone on the network may use, and empty."""
    for engine in facts.machine.engines:
        wide = facts.listeners.get(_port(engine), set()) & {"0.0.0.0", "::"}  # noqa: S104
        keyed = any(
            one.kind == engine.kind and any("--api-key" in word for word in one.command) for one in facts.processes
        )
        open_to_all = engine.kind in ("ollama", "llamacpp") or engine.models  # others tell nothing without their key
        if wide and open_to_all and not (engine.kind != "ollama" and keyed):
            yield Finding(
                "exposed-without-keys",
                "error",
                f"{engine.kind} listens on {sorted(wide)[0]}:{_port(engine)} and asks for no key",
                "let it listen on 127.0.0.1 (OLLAMA_HOST, --host), and put "
                "`velollm serve --host 0.0.0.0 --keys keys.toml` "
                "in front (`velollm keys add NAME`)",
            )


def threads(facts: Facts) -> Iterator[Finding]:
    """More threads than the container may run."""
    cpu = facts.machine.cpu
    allowed = min(cpu.quota or cpu.logical, cpu.affinity or cpu.logical)
    if facts.machine.accelerated or allowed >= cpu.physical:
        return
    for engine in facts.machine.engines:
        told = engine.settings.get("-t") or engine.settings.get("--threads") or ""
        count = int(told) if told.isdigit() else cpu.physical
        if engine.kind in ("ollama", "llamacpp") and count > cpu.usable_cores and (told or engine.process_known):
            remedy = "`PARAMETER num_thread {0}` in the Modelfile" if engine.kind == "ollama" else "`--threads {0}`"
            yield Finding(
                "threads-exceed-limit",
                "warning",
                f"{engine.kind} computes on {count} threads, but the container may use {allowed:g} CPUs",
                f"{remedy.format(cpu.usable_cores)}: threads without a core hold up all the others",
            )


def spinning(facts: Facts) -> Iterator[Finding]:
    """Threads that wait busily beside neighbours."""
    cpu = facts.machine.cpu
    if facts.machine.accelerated or cpu.load is None or cpu.load < cpu.usable_cores + 0.5:
        return
    for engine in facts.machine.engines:
        passive = engine.settings.get("OMP_WAIT_POLICY", "").lower() == "passive"
        if not engine.process_known or engine.kind not in ("ollama", "llamacpp") or passive:
            continue
        openmp = engine.kind == "llamacpp" or (parse_version(engine.version) or (0,)) >= (0, 30)
        fewer = max(1, cpu.usable_cores - 1)
        thread = f"PARAMETER num_thread {fewer} in the Modelfile" if engine.kind == "ollama" else f"--threads {fewer}"
        yield Finding(
            "busy-waiting",
            "warning",
            f"{cpu.load:g} programs want {cpu.usable_cores} cores, and {engine.kind}'s threads spin while they wait",
            f"OMP_WAIT_POLICY=passive and GOMP_SPINCOUNT=0 in its environment, or {thread}" if openmp else thread,
        )


def _port(engine: Engine) -> int:
    parts = urlsplit(engine.url)
    return parts.port or (443 if parts.scheme == "https" else 80)


def _target(engine: Engine) -> str:
    return "llama-server" if engine.kind == "llamacpp" else "ollama"


RULES = (missing, outdated, cut, spilled, one_slot, reloads, variables, exposed, threads, spinning)
