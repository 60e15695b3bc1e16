"""Which models a backend holds, and when it is worth changing them. No I/O.

Two clients that ask one engine for two models which do not fit together make it load one at every turn. Requests for
the model that is loaded go first, for a quantum of time; then those for the other have their turn.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

__all__ = ["Residency"]

UNKNOWN_QUANTUM = 1.0  # while it is not known whether two models fit together, the other one waits so long at most
LOAD_SECONDS = 0.25  # what an engine calls loading although the model was there takes less
SLOWER, HARDLY_SLOWER = 3.0, 1.5  # times what is usual; between the two, nothing is known
BELIEVED = 600.0
KEPT_SECONDS = 240.0  # engines drop a model that was idle for longer (Ollama: five minutes)
MOST_PAIRS = 1024
MOST_MODELS = 256


class Residency:
    """The models of one backend. `quantum` is in seconds; with 0, models change as requests come."""

    __slots__ = ("_doubts", "_pairs", "_used", "current", "quantum", "since")

    def __init__(self, quantum: float) -> None:
        self.quantum = quantum
        self.current: str | None = None
        self.since = 0.0
        self._pairs: dict[frozenset[str], tuple[bool, float]] = {}
        self._doubts: set[frozenset[str]] = set()
        self._used: dict[str, float] = {}

    def apart(self, one: str, other: str, now: float) -> bool | None:
        """Whether loading one unloads the other; None when it is not known."""
        if one == other or not self.quantum:
            return False
        verdict = self._pairs.get(frozenset((one, other)))
        if verdict is None or now - verdict[1] > BELIEVED:
            return None
        return verdict[0]

    def allows(self, model: str, waited: float, running: Iterable[str], rival: tuple[str, float] | None,
               wanted: bool, now: float) -> bool:  # fmt: skip
        """Whether a request for `model` that has waited for `waited` seconds may start now.

        `running` are the models that are at work; `rival` is the model other than the current one that is waited for
        longest, with how long; `wanted` says that requests for the current model wait.
        """
        current = self.current
        if current is None:
            return True
        if model == current:
            return rival is None or not self._due(current, rival[0], rival[1], now)
        if any(self._blocks(other, model, waited, now) for other in running):
            return False
        return not wanted or not self._blocks(current, model, waited, now) or self._due(current, model, waited, now)

    def _blocks(self, other: str, model: str, waited: float, now: float) -> bool:
        apart = self.apart(other, model, now)
        return apart is True or (
            apart is None and not self._had_its_time(min(UNKNOWN_QUANTUM, self.quantum), waited, now)
        )

    def _due(self, current: str, rival: str, waited: float, now: float) -> bool:
        """Whether it is the rival's turn."""
        apart = self.apart(current, rival, now)
        if apart is None:
            return self._had_its_time(min(UNKNOWN_QUANTUM, self.quantum), waited, now)
        return apart and now - self.since >= self.quantum

    def _had_its_time(self, quantum: float, waited: float, now: float) -> bool:
        return waited >= quantum and now - self.since >= quantum

    def started(self, model: str, now: float) -> str | None:
        """A request for `model` was sent. The model before, when the change says whether the two fit together."""
        previous = self.current
        if previous == model:
            return None
        recent = now - self._used.get(model, -KEPT_SECONDS) < KEPT_SECONDS
        self.ended(model, now)
        if previous is None or self.apart(previous, model, now) is not False:
            self.current, self.since = model, inf
        return previous if recent else None

    def loaded(self, now: float) -> None:
        """The current model has answered, or failed to: its time begins."""
        self.since = now

    def ended(self, model: str, now: float) -> None:
        """A request for `model` is over."""
        if len(self._used) >= MOST_MODELS and model not in self._used:
            del self._used[min(self._used, key=self._used.__getitem__)]
        self._used[model] = now

    def told(self, previous: str, model: str, load: float, now: float) -> None:
        """The engine said how long it loaded `model`, which it had served before `previous`, in seconds."""
        self._judge(previous, model, load > LOAD_SECONDS, now)

    def observed(self, previous: str, model: str, seconds: float, usual: float, now: float) -> None:
        """The first byte of `model` after `previous` took `seconds`, where `usual` are what it takes otherwise."""
        if seconds > SLOWER * usual + LOAD_SECONDS:
            self._judge(previous, model, True, now)
        elif seconds <= HARDLY_SLOWER * usual + LOAD_SECONDS / 2:
            self._judge(previous, model, False, now)

    def _judge(self, previous: str, model: str, apart: bool, now: float) -> None:
        """Note a verdict; one that two models fit together after all needs to be found twice."""
        pair = frozenset((previous, model))
        known = self._pairs.get(pair)
        if known is not None and known[0] and not apart and pair not in self._doubts:
            self._doubts.add(pair)
            return
        self._doubts.discard(pair)
        if len(self._pairs) >= MOST_PAIRS and known is None:
            del self._pairs[next(iter(self._pairs))]
        self._pairs[pair] = (apart, now)
