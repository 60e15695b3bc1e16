"""When requests are sent. Closed loop: as soon as one of so many clients is free. Open loop: when they are due."""

from __future__ import annotations

import math
from itertools import accumulate
from random import Random

import attrs

from velollm.errors import ConfigError

__all__ = ["Schedule", "due_times"]


@attrs.frozen(kw_only=True)
class Schedule:
    """`rate` is requests a second (infinite: all at once), `burstiness` the shape of the gaps' gamma distribution:

    1 is a Poisson process, less comes in bursts, more is steadier. At most `concurrency` run at once (None: any
    number). A rate with a concurrency is an open loop that a client with few connections holds back.
    """

    rate: float = math.inf
    burstiness: float = 1.0
    concurrency: int | None = None

    def __attrs_post_init__(self) -> None:
        if not self.rate > 0:
            raise ConfigError(f"a request rate must be above 0, not {self.rate:g}")
        if not (self.burstiness > 0 and math.isfinite(self.burstiness)):
            raise ConfigError(f"a burstiness must be above 0, not {self.burstiness:g}")
        if self.concurrency is not None and self.concurrency < 1:
            raise ConfigError(f"a concurrency must be at least 1, not {self.concurrency}")

    @property
    def is_open(self) -> bool:
        """Whether requests come whether or not others are answered."""
        return math.isfinite(self.rate)


def due_times(schedule: Schedule, count: int, random: Random) -> list[float]:
    """Seconds from the beginning at which each of `count` requests is due, ascending.

    The last one is due at `count / rate` exactly: gaps are scaled, as vLLM does, so that the rate that was asked for is
    kept.
    """
    if not schedule.is_open:
        return [0.0] * count
    gaps = [random.gammavariate(schedule.burstiness, 1.0) for _ in range(count)]
    scale = count / schedule.rate / (math.fsum(gaps) or 1.0)
    return [time * scale for time in accumulate(gaps)]
