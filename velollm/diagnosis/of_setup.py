"""Rules about VeloLLM's own set-up."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from velollm.diagnosis.facts import Facts
from velollm.diagnosis.finding import Finding
from velollm.hardware.report import gigabytes

__all__ = ["RULES", "clock"]

OLLAMA_PORT = 11434
SKEW = 120.0


def settings(facts: Facts) -> Iterator[Finding]:
    """A configuration that does not load."""
    if facts.config_error:
        first, *rest = facts.config_error.splitlines()
        more = f" (and {len(rest)} more)" if rest else ""
        yield Finding(
            "config-invalid", "error", f"{first}{more}", "correct it; `velollm serve --help` lists every setting"
        )


def keys(facts: Facts) -> Iterator[Finding]:
    """Keys that other users may read."""
    if facts.keys_open:
        yield Finding(
            "keys-readable",
            "warning",
            f"{facts.keys_file} may be read by other users",
            f"`chmod 600 {facts.keys_file}`",
        )


def ports(facts: Facts) -> Iterator[Finding]:
    """Ports that something else has."""
    engines = {urlsplit(engine.url).port for engine in facts.machine.engines}
    if facts.our_port in facts.listeners:
        kind = "an engine" if facts.our_port in engines else "something"
        yield Finding(
            "port-taken",
            "info",
            f"{kind} listens on port {facts.our_port}, where `velollm serve` would (unless it is VeloLLM itself)",
            f"`velollm serve --port {facts.our_port + 1}`, or end what is there "
            f"(`ss -ltnp 'sport = :{facts.our_port}'`)",
        )
    if OLLAMA_PORT in facts.listeners and OLLAMA_PORT not in engines:
        yield Finding(
            "port-taken",
            "warning",
            f"something that is not Ollama (or that hangs) listens on port {OLLAMA_PORT}",
            f"`ss -ltnp 'sport = :{OLLAMA_PORT}'` names it; restart Ollama, or give it another port with OLLAMA_HOST",
        )


def models(facts: Facts) -> Iterator[Finding]:
    """Nothing to run."""
    if not facts.machine.installed and not any(engine.models for engine in facts.machine.engines):
        yield Finding(
            "no-model", "info", "no model is installed", "`velollm models install smollm2`, or `ollama pull NAME`"
        )


def limit(facts: Facts) -> Iterator[Finding]:
    """A container too small for what it loads."""
    memory = facts.machine.memory
    sizes = [model.size for engine in facts.machine.engines for model in engine.loaded if model.size]
    if memory.limit is not None and sizes and max(sizes) > 0.8 * memory.limit and not facts.machine.accelerated:
        yield Finding(
            "memory-limit-small",
            "warning",
            f"a loaded model takes {gigabytes(max(sizes))}, the container may use {gigabytes(memory.limit)}",
            "raise the container's limit (`docker run --memory`, `resources.limits.memory`), or take a smaller model; "
            "the kernel ends the engine at the limit",
        )


def build(facts: Facts) -> Iterator[Finding]:
    """A wheel that does not use all of the processor."""
    isa = set(facts.machine.cpu.isa)
    if (
        not facts.wheel_installed
        or facts.native_build
        or facts.machine.accelerated
        or not isa & {"AVX512_VNNI", "AMX_INT8"}
    ):
        return
    amx = "AMX_INT8" in isa
    gain = "2.8 x prefill" if amx else "1.7 x prefill and 1.5 x generation at 16 clients"
    yield Finding(
        "narrow-build",
        "info",
        f"the embedded llama.cpp is built for AVX2; this processor has {'AMX' if amx else 'AVX512 VNNI'}",
        f"`velollm tune velo --native-build` compiles it for this processor, and keeps that if it pays ({gain} were "
        "measured); vLLM for CPUs was 3.5 to 5 x as fast at 16 to 32 clients, and half as fast at one: "
        "`--backend openai+http://host:8000/v1`",
    )


def clock(facts: Facts, now: float) -> Iterator[Finding]:
    """Entries from the future: the clock went back, and they will not expire when they should."""
    if facts.newest_entry is not None and facts.newest_entry > now + SKEW:
        yield Finding(
            "cache-clock",
            "warning",
            f"the cache's file was used {(facts.newest_entry - now) / 60:.0f} minutes in the future: the clock "
            f"went back",
            "`timedatectl set-ntp true` keeps the clock right; `velollm cache purge` drops what is dated wrongly",
        )


RULES = (settings, keys, ports, models, limit, build)
