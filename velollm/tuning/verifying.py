"""Before against after, in turns on the same workload: a tuning has to pay, or it is withdrawn."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import attrs

from velollm.errors import ConfigError
from velollm.hardware.apart import run_apart
from velollm.tuning.measuring import Load, Measurement, measure, middle
from velollm.tuning.trials import Trial

__all__ = ["WORTH", "Verdict", "judge", "verify"]

WORTH = 1.05  # a gain below this is noise
PATIENCE = 1.25  # how much later the first token of a lone request may come
BLINK = 0.05  # seconds that nobody notices, whatever the factor


@attrs.frozen(kw_only=True)
class Verdict:
    """`gain` is throughput after by before, the median over the rounds; `kept` says whether the tuning pays."""

    kept: bool
    gain: float
    before: Measurement
    after: Measurement
    words: str
    rounds: tuple[tuple[Measurement, Measurement], ...] = ()


def verify(
    before: Trial,
    after: Trial,
    load: Load,
    *,
    rounds: int = 3,
    say: Callable[[str], None] = lambda text: None,
) -> Verdict:
    """Start both engines and measure them in turns: before, after, after, before, ... Each round has its own prompts.

    Raises `ConfigError` when an engine does not start, or answers nothing.
    """
    pairs = []
    with before, after:
        for number in range(rounds):
            order = (before, after) if number % 2 == 0 else (after, before)
            found = {}
            for trial in order:
                found[trial] = run_apart(
                    measure(trial.url, trial.kind, trial.model, load, key=trial.key, seed=number + 1)
                )
            one, other = found[before], found[after]
            pairs.append((one, other))
            say(
                f"round {number + 1} of {rounds}: {one.throughput:.1f} -> {other.throughput:.1f} tokens/s, first token "
                f"{one.ttft:.2f} -> {other.ttft:.2f} s with {load.clients} clients, "
                f"{one.ttft_alone:.2f} -> {other.ttft_alone:.2f} s alone"
            )
    return judge(pairs)


def judge(rounds: list[tuple[Measurement, Measurement]]) -> Verdict:
    """What pairs of measurements (before, after) say, each pair taken side by side so that neighbours disturb both."""
    before, after = (middle([pair[side] for pair in rounds]) for side in (0, 1))
    if not before.throughput:
        raise ConfigError("the engine answered nothing with its present settings: there is nothing to compare with")
    gain = median(other.throughput / max(one.throughput, 1e-9) for one, other in rounds)
    slower = after.ttft_alone > before.ttft_alone * PATIENCE and after.ttft_alone - before.ttft_alone > BLINK
    figures = (
        f"{before.throughput:.1f} -> {after.throughput:.1f} tokens/s ({gain:.2f} x), first token "
        f"{before.ttft:.2f} -> {after.ttft:.2f} s under load, {before.ttft_alone:.2f} -> {after.ttft_alone:.2f} s alone"
    )
    if after.failed > before.failed:
        kept, why = False, f"withdrawn: {after.failed} requests failed that did not fail before"
    elif slower:
        kept, why = False, "withdrawn: a lone request waits longer for its first token"
    elif gain < WORTH:
        kept, why = False, "withdrawn: it does not pay"
    elif 3 * sum(other.throughput > one.throughput for one, other in rounds) < 2 * len(rounds):
        kept, why = False, "withdrawn: the rounds disagree; measure again when the machine is quieter"
    else:
        kept, why = True, "kept"
    return Verdict(kept=kept, gain=gain, before=before, after=after, words=f"{why}. {figures}", rounds=tuple(rounds))
