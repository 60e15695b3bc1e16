"""What is known of one question and its answer. Times are in seconds; `sent` is on the clock of the whole run."""

from __future__ import annotations

import attrs

__all__ = ["Record"]


@attrs.define(kw_only=True)
class Record:
    """One request.

    `arrivals` are the times, from `sent` on, of the chunks that carried output, as `vllm bench serve` counts them
    (text, reasoning, a piece of a call, or an empty text that is no greeting): the first of them is the time to the
    first token, the last the latency. `planned` is when the request was due.
    """

    number: int = 0
    group: str = ""
    planned: float = 0.0
    sent: float = 0.0
    arrivals: list[float] = attrs.field(factory=list)
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int | None = None
    counted: bool = False  # by the server; else output tokens are the chunks that came
    inputs: int = 1
    text: str = ""
    finish: str = ""
    status: int = 0
    error: str = ""
    cache: str = ""  # `x-velollm-cache`
    phases: dict[str, float] = attrs.field(factory=dict)  # `server-timing`, in seconds
    engine: dict[str, float] = attrs.field(factory=dict)  # the engine's own timings: load, prefill, decode, in seconds

    @property
    def good(self) -> bool:
        """Whether it was answered."""
        return not self.error and bool(self.arrivals)

    @property
    def ttft(self) -> float:
        """Time to the first token, 0 without one."""
        return self.arrivals[0] if self.arrivals else 0.0

    @property
    def latency(self) -> float:
        """From sending to the last chunk with output."""
        return self.arrivals[-1] if self.arrivals else 0.0

    @property
    def itl(self) -> list[float]:
        """The gaps between chunks."""
        return [later - one for one, later in zip(self.arrivals, self.arrivals[1:], strict=False)]

    @property
    def tpot(self) -> float | None:
        """Time per output token after the first; None with fewer than two."""
        if self.output_tokens < 2:
            return None
        return (self.latency - self.ttft) / (self.output_tokens - 1)

    @property
    def waited(self) -> float:
        """How long it waited in the client for a place."""
        return max(0.0, self.sent - self.planned)
