"""Successive halving: many settings measured briefly, the better half again and longer, until one is left.

Jamieson & Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization", AISTATS 2016.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import product
from typing import TypeAlias

import attrs

from velollm.hardware.machine import Machine
from velollm.tuning.values import Tuning

__all__ = ["Found", "Values", "candidates", "knobs", "search"]

Values: TypeAlias = Mapping[str, str]
MOST = 16
LOOKUPS = ("none", "ngram-simple", "ngram-mod")  # drafts that need no further model
# llama.cpp's own lengths seldom find anything; `velollm speculative` tries others.
SHORT_LOOKUP = {"--spec-ngram-simple-size-n": "4", "--spec-ngram-simple-size-m": "8"}


@attrs.frozen(kw_only=True)
class Found:
    """The best settings, their score and that of the starting point, and how many trials were made."""

    values: Values
    score: float
    start_score: float
    trials: int
    history: tuple[tuple[Values, int, float], ...]


def knobs(tuning: Tuning, machine: Machine, flags: Collection[str] = ()) -> dict[str, list[str]]:
    """What arithmetic cannot settle, with the values worth a trial; the present one first.

    `flags` are those that a llama-server knows, as far as it was asked: drafts by lookup are tried where it has them.
    """
    values, cpu = tuning.values, machine.cpu
    if tuning.target == "ollama":
        found = {
            "OLLAMA_NUM_PARALLEL": _around(values.get("OLLAMA_NUM_PARALLEL", "1")),
            "OLLAMA_FLASH_ATTENTION": _first(values.get("OLLAMA_FLASH_ATTENTION", "0"), ["0", "1"]),
        }
        if "OMP_WAIT_POLICY" in values:
            found["OMP_WAIT_POLICY"] = ["passive", "active"]
        if "OLLAMA_KV_CACHE_TYPE" in values:
            found["OLLAMA_KV_CACHE_TYPE"] = [values["OLLAMA_KV_CACHE_TYPE"], "f16"]
        return found
    threads = sorted({cpu.usable_cores, max(1, cpu.usable_cores - 1), cpu.logical}, reverse=True)
    name = "engine.threads" if tuning.target == "velo" else "--threads"
    found = {name: _first(values.get(name, str(cpu.usable_cores)), [str(count) for count in threads])}
    kind = "engine.kv_type" if tuning.target == "velo" else "--cache-type-k"
    found[kind] = _first(values.get(kind, "f16"), ["f16", "q8_0"])
    if tuning.target == "llama-server":
        found["--ubatch-size"] = _first(values.get("--ubatch-size", "512"), ["256", "512", "1024"])
        found["--flash-attn"] = _first(values.get("--flash-attn", "auto"), ["auto", "off"])
        found["--parallel"] = _around(values.get("--parallel", "1"))
        if "--spec-type" in flags:
            found["--spec-type"] = _first(values.get("--spec-type", "none"), LOOKUPS)
    return found


def candidates(tuning: Tuning, choices: Mapping[str, Sequence[str]], most: int = MOST) -> list[Values]:
    """The starting point, then each knob turned alone, then pairs and all the rest, up to `most`; no two alike."""
    start = {name: options[0] for name, options in choices.items()}
    every = [dict(zip(choices, values, strict=True)) for values in product(*choices.values())]
    every.sort(key=lambda values: sum(values[name] != start[name] for name in start))
    return [_coupled(tuning, values) for values in every[:most]]


def search(
    options: Sequence[Values],
    evaluate: Callable[[Values, int], float],
    *,
    budget: float,
    clock: Callable[[], float],
) -> Found:
    """The best of `options` (the first is the starting point) within `budget` seconds.

    `evaluate(values, effort)` gives a score, higher is better, 0 for what does not run; `effort` doubles each time a
    half is dropped. The starting point stays in until the end: the winner has been compared with it to the last.
    """
    start, end = options[0], clock() + budget
    alive = list(options)
    history: list[tuple[Values, int, float]] = []
    effort = 1
    while alive:
        scores: dict[int, float] = {}
        for number, values in enumerate(alive):
            if history and clock() >= end:
                break
            scores[number] = evaluate(values, effort)
            history.append((values, effort, scores[number]))
        ranked = sorted(scores, key=lambda number: -scores[number])
        if len(scores) < len(alive) or len(alive) <= 2:
            break
        keep = ranked[: max(1, (len(alive) + 1) // 2)]
        survivors = [alive[number] for number in keep]
        if start not in survivors:
            survivors[-1] = start
        if len(survivors) == len(alive):
            break
        alive, effort = survivors, effort * 2
    return _best(start, history)


def _best(start: Values, history: list[tuple[Values, int, float]]) -> Found:
    """The winner among those measured with the most effort that the starting point has seen too."""
    deepest = max(effort for values, effort, _ in history if values == start)
    last = [(values, score) for values, effort, score in history if effort == deepest]
    values, score = max(last, key=lambda entry: entry[1])
    before = next(score for one, score in last if one == start)
    return Found(values=values, score=score, start_score=before, trials=len(history), history=tuple(history))


def _coupled(tuning: Tuning, values: dict[str, str]) -> Values:
    """What has to change together: both caches, the context of all slots, and what OpenMP's two names mean."""
    values = dict(values)
    if "--cache-type-k" in values:
        values["--cache-type-v"] = values["--cache-type-k"]
        if values["--cache-type-k"] != "f16" and values.get("--flash-attn") == "off":
            values["--flash-attn"] = "on"
    if "--parallel" in values and "--ctx-size" in tuning.values:
        each = int(tuning.values["--ctx-size"]) // max(int(tuning.values.get("--parallel", "1")), 1)
        values["--ctx-size"] = str(each * int(values["--parallel"]))
    if values.get("--spec-type") == "ngram-simple":
        values |= SHORT_LOOKUP
    if "OMP_WAIT_POLICY" in values:
        values["GOMP_SPINCOUNT"] = "0" if values["OMP_WAIT_POLICY"] == "passive" else "300000"
    if values.get("OLLAMA_KV_CACHE_TYPE", "f16") != "f16":
        values["OLLAMA_FLASH_ATTENTION"] = "1"
    return values


def _around(value: str) -> list[str]:
    """A number, its half and its double."""
    number = int(value)
    return list(dict.fromkeys(str(one) for one in (number, max(1, number // 2), number * 2)))


def _first(value: str, others: Sequence[str]) -> list[str]:
    return list(dict.fromkeys([value, *others]))
