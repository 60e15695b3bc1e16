"""What computes: the one protocol that engines of the scheduler's steps keep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias

import attrs

from velollm.engine.blocks import BLOCK_SIZE
from velollm.engine.events import Event
from velollm.engine.scheduler import Chunk

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from velollm.engine.sampling import Draw

    Floats: TypeAlias = npt.NDArray[np.float32]

__all__ = ["ChoosingRunner", "Runner", "RunnerError", "RunnerLimits"]


class RunnerError(Exception):
    """The step could not be computed; what its sequences had in memory is lost."""


@attrs.frozen(kw_only=True)
class RunnerLimits:
    """What a runner has room for.

    `context` is the longest sequence and `batch` the largest step, in tokens; `slots` are the sequences and holders
    that its memory can tell apart. With `sharing` sequences may share blocks, with `swapping` states can be exported.
    With `idle_costs` every step gets slower by what lies in memory, whether it is used or not.
    """

    vocabulary: int
    context: int
    num_blocks: int
    batch: int
    slots: int
    block_size: int = BLOCK_SIZE
    sharing: bool = True
    swapping: bool = True
    idle_costs: bool = False


class Runner(Protocol):
    """Computes steps over a KV memory of its own. Used by one thread at a time."""

    limits: RunnerLimits

    def apply(self, events: Sequence[Event]) -> None:
        """Make `events` happen in memory, in order."""
        ...

    def execute(self, chunks: Sequence[Chunk]) -> Floats:
        """Compute `chunks`, at most `limits.batch` tokens.

        Returns one row of logits [vocabulary] for each chunk that wants a sample, in order; valid until the next call.
        Raises `RunnerError`.
        """
        ...

    def close(self) -> None:
        """Let go of memory. May be called again."""
        ...


class ChoosingRunner(Runner, Protocol):
    """A runner whose logits lie far away: it can choose tokens there."""

    def choose(
        self, chunks: Sequence[Chunk], draws: Sequence[Draw | None]
    ) -> tuple[list[int | None], list[Floats | None]]:
        """Compute `chunks` as `execute` does, with a draw for each of its rows, or None.

        Returns for each row the token that was drawn, or its logits where there was no draw.
        """
        ...
