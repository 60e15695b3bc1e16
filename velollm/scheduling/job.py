"""A request as the dispatcher sees it: how urgent, how large, whose, and which backends could answer it. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, TypeAlias

import attrs

__all__ = ["BATCH", "INTERACTIVE", "LEVELS", "NORMAL", "Job", "State"]

INTERACTIVE: Final = 0
NORMAL: Final = 1
BATCH: Final = 2
LEVELS: Final = ("interactive", "normal", "batch")

State: TypeAlias = Literal["new", "waiting", "running", "done"]

# Of a generated token against one of a prompt. VTC (Sheng et al., OSDI 2024) has 2; small engines differ by more.
OUTPUT_WEIGHT = 4.0


@attrs.define(kw_only=True, eq=False)
class Job:
    """One request. Times are readings of one clock in seconds; counts are tokens, `size` is bytes.

    `targets` maps each backend that has the model to its own name for it. `deadline` is the latest first byte,
    `expires` the latest start. `conversation` is what keeps its order. `prefix` is the hash chain of the leading blocks
    of its prompt, of which those before `shared` (system prompt, tools) belong to many conversations; `block_tokens` is
    the length of the prompt up to each. A `pinned` job goes on where it was while that backend is open.
    """

    targets: Mapping[str, str]
    level: int = NORMAL
    tenant: str = ""
    conversation: str | None = None
    prompt_tokens: int = 1
    max_tokens: int | None = None
    stream: bool = True
    size: int = 0
    arrival: float = 0.0
    deadline: float | None = None
    expires: float | None = None
    prefix: tuple[int, ...] = ()
    block_tokens: tuple[int, ...] = ()
    shared: int = 0
    preemptible: bool = False
    avoid: frozenset[str] = frozenset()

    state: State = "new"
    queued: float = 0.0  # since when it waits
    lane: str | None = None
    model: str = ""  # the lane's own name for the model
    granted: float = 0.0
    answered: float | None = None
    produced: int = 0
    before: int = 0  # of these, what it had produced when it started last
    prompt_used: int | None = None  # tokens of the prompt that were computed, as the engine says
    expected_tokens: int = 0
    charged: float = 0.0
    aged: bool = False
    preemptions: int = 0
    preempting: bool = False
    pinned: str | None = None
    home: str | None = None
    saves: int = 0  # tokens of prefill that `home` has done already
    patience: float = 0.0
    switches: str | None = None  # the model that the lane had before
    cold: bool = False  # its model may have had to be loaded first

    @property
    def expected_cost(self) -> float:
        """What it is charged when it starts, in tokens of a prompt."""
        return self.prompt_tokens + OUTPUT_WEIGHT * self.expected_tokens

    @property
    def cost(self) -> float:
        """What it has cost since it started."""
        prompt = self.prompt_tokens if self.prompt_used is None else self.prompt_used
        return prompt + OUTPUT_WEIGHT * (self.produced - self.before)
