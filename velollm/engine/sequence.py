"""One generation as the scheduler sees it: its tokens, how many of them are computed, and what it may cost."""

from __future__ import annotations

from enum import Enum
from typing import Any

from velollm.engine.blocks import Table, hash_chain, root_hash

__all__ = ["Sequence", "Status"]


class Status(Enum):
    """waiting ⇄ running → finished; a preempted sequence waits again."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class Sequence:
    """`prompt` and what follows it. `owner` is whatever the caller wants to find again.

    `priority` is a class, smaller is more urgent; `arrival` is in seconds of the caller's clock, and so is `deadline`,
    by which the first token must be there. `root` (of `root_hash`) keeps apart what must not share its KV cache.
    """

    __slots__ = (
        "arrival",
        "deadline",
        "hashes",
        "id",
        "num_cached",
        "num_computed",
        "num_prompt",
        "owner",
        "preemptions",
        "priority",
        "published",
        "root",
        "status",
        "swapped",
        "table",
        "tokens",
    )

    def __init__(
        self,
        number: int,
        prompt: list[int],
        *,
        priority: int = 0,
        arrival: float = 0.0,
        deadline: float | None = None,
        root: bytes = root_hash(),
        owner: Any = None,
    ) -> None:
        if not prompt:
            raise ValueError("a sequence begins with at least one token")
        self.id = number
        self.tokens = prompt[:]
        self.num_prompt = len(prompt)
        self.num_computed = 0
        self.num_cached = 0  # of the prompt's tokens, those found at the first admission
        self.priority = priority
        self.arrival = arrival
        self.deadline = deadline
        self.root = root
        self.owner = owner
        self.status = Status.WAITING
        self.table: Table | None = None
        self.hashes: list[bytes] = []
        self.published = 0  # blocks that were offered to others
        self.swapped = False
        self.preemptions = 0

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def num_left(self) -> int:
        """Tokens that are known and not computed yet; 1 while it decodes."""
        return len(self.tokens) - self.num_computed

    @property
    def output(self) -> list[int]:
        """The tokens that were generated."""
        return self.tokens[self.num_prompt :]

    def hash_to(self, size: int) -> list[bytes]:
        """The hashes of all full blocks of `size` tokens."""
        hash_chain(self.tokens, self.root, self.hashes, size)
        return self.hashes

    def __repr__(self) -> str:
        return f"<Sequence {self.id} {self.status.value} {self.num_computed}/{len(self.tokens)}>"
