"""Which draft pays: predicted from real answers and measured step costs, then proved by runs in turns, or withdrawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import attrs

from velollm.bench.question import Question
from velollm.errors import BackendError, ConfigError
from velollm.hardware.apart import run_apart
from velollm.speculation.lookup import replay
from velollm.speculation.measuring import Conversations, Engine, Outcome
from velollm.speculation.methods import Method
from velollm.speculation.theory import acceptance_of, best_length, speed_up
from velollm.tuning.measuring import Measurement
from velollm.tuning.trials import Trial
from velollm.tuning.verifying import WORTH, judge

__all__ = ["Estimate", "Findings", "Proof", "find_draft"]

GUESSED = 0.7  # of a draft model's tokens that are accepted, before it was tried: a good one reaches that
MOST_PROVED = 3


@attrs.frozen(kw_only=True)
class Estimate:
    """What a method is expected to bring. `acceptance` is measured where the answers tell it, else None: then `gain` is
    what a good draft would bring."""

    method: Method
    gain: float
    acceptance: float | None = None
    drafted: int = 0
    tokens_a_step: float = 1.0


@attrs.frozen(kw_only=True)
class Proof:
    """What a run showed: tokens a second against those without drafts, and whether it is kept."""

    method: Method
    gain: float
    kept: bool
    words: str
    acceptance: float | None = None
    expected: float | None = None


@attrs.frozen(kw_only=True)
class Findings:
    """All of it. `best` is the method that pays most, None when none does."""

    tpot: float
    costs: Mapping[int, float]
    estimates: tuple[Estimate, ...]
    proofs: tuple[Proof, ...] = ()
    best: Method | None = None
    gain: float = 1.0


def find_draft(
    plain: Trial,
    with_method: Callable[[Method], Trial],
    methods: Sequence[Method],
    rounds: Sequence[Sequence[Question]],
    *,
    clients: int = 1,
    verify: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> Findings:
    """Try `methods` against `plain`: predictions from the first of `rounds`, proofs from all the others.

    Each round has questions of its own, so that no method is asked what it has heard before. Raises `ConfigError` when
    the engine does not start, `BackendError` when it answers nothing.
    """
    with plain:
        conversations, costs = run_apart(_study(plain, rounds[0]))
        say(f"{len(conversations.tokens)} answers, {conversations.tpot * 1000:.1f} ms a token")
        estimates = sorted(
            (_estimate(method, conversations, costs, clients) for method in methods), key=lambda one: -one.gain
        )
        findings = Findings(tpot=conversations.tpot, costs=costs, estimates=tuple(estimates))
        if not verify:
            return findings
        proofs = []
        for method in _worth_proving(estimates):
            try:
                proofs.append(_prove(plain, with_method(method), method, rounds[1:], costs, clients, say))
            except ConfigError as error:
                last = error.message.splitlines()[-1][:200]
                proofs.append(Proof(method=method, gain=0.0, kept=False, words=f"withdrawn: it does not start: {last}"))
            say(f"{method.name}: {proofs[-1].words}")
    kept = [proof for proof in proofs if proof.kept]
    best = max(kept, key=lambda proof: proof.gain, default=None)
    return attrs.evolve(
        findings,
        proofs=tuple(proofs),
        best=best.method if best is not None else None,
        gain=best.gain if best is not None else 1.0,
    )


async def _study(plain: Trial, questions: Sequence[Question]) -> tuple[Conversations, dict[int, float]]:
    async with Engine(plain.url, plain.model, key=plain.key) as engine:
        conversations = await engine.converse(questions)
        words = sorted({token for prompt, answer in conversations.tokens for token in (*prompt, *answer)})
        return conversations, await engine.costs(words)


def _estimate(method: Method, conversations: Conversations, costs: Mapping[int, float], clients: int) -> Estimate:
    lookup = method.lookup()
    if lookup is None:
        _, gain = best_length(GUESSED, draft=method.draft, costs=costs, clients=clients, longest=method.length)
        return Estimate(method=method, gain=gain)
    found = replay(lookup, conversations.tokens)
    steps = sum(found.steps.values())
    return Estimate(
        method=method,
        gain=found.speed_up(costs, clients),
        acceptance=found.acceptance if found.drafted else None,
        drafted=found.drafted,
        tokens_a_step=found.tokens / steps if steps else 1.0,
    )


def _worth_proving(estimates: Sequence[Estimate]) -> list[Method]:
    """The most promising of each kind, as far as they promise anything."""
    best: dict[str, Estimate] = {}
    for one in estimates:
        key = f"{one.method.kind} {one.method.flags.get('--spec-draft-model', '')}"
        if one.gain >= WORTH and (key not in best or one.gain > best[key].gain):
            best[key] = one
    return [one.method for one in sorted(best.values(), key=lambda one: -one.gain)[:MOST_PROVED]]


def _prove(
    plain: Trial,
    other: Trial,
    method: Method,
    rounds: Sequence[Sequence[Question]],
    costs: Mapping[int, float],
    clients: int,
    say: Callable[[str], None],
) -> Proof:
    pairs, outcomes = [], []
    with other:
        for number, questions in enumerate(rounds):
            order = (plain, other) if number % 2 == 0 else (other, plain)
            found = {trial: run_apart(_ask(trial, questions, clients)) for trial in order}
            pairs.append((_measurement(found[plain]), _measurement(found[other])))
            outcomes.append(found[other])
            say(
                f"round {number + 1} of {len(rounds)}: {found[plain].throughput:.1f} -> "
                f"{found[other].throughput:.1f} tokens/s"
            )
    verdict = judge(pairs)
    drafted, accepted = (sum(getattr(one, name) for one in outcomes) for name in ("drafted", "accepted"))
    acceptance = accepted / drafted if drafted else None
    expected = None
    if method.lookup() is None and acceptance is not None:
        each = acceptance_of(drafted, accepted, method.length)
        expected = speed_up(each, method.length, draft=method.draft, costs=costs, clients=clients)
    return Proof(
        method=method, gain=verdict.gain, kept=verdict.kept, words=verdict.words, acceptance=acceptance,
        expected=expected,
    )  # fmt: skip


async def _ask(trial: Trial, questions: Sequence[Question], clients: int) -> Outcome:
    async with Engine(trial.url, trial.model, key=trial.key) as engine:
        outcome, records = await engine.answer(questions, clients)
    if outcome.failed == len(records):
        raise BackendError(f"no question was answered: {records[0].error}")
    return outcome


def _measurement(outcome: Outcome) -> Measurement:
    return Measurement(throughput=outcome.throughput, ttft=outcome.ttft, ttft_alone=outcome.ttft, failed=outcome.failed)
