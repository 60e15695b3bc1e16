"""Who is asked next when a request has failed. No I/O.

Before the first event, others are asked, and the same one again after a pause, within a budget. Afterwards only others,
and only to go on with what was said: never the same one twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from velollm.errors import BackendError, BackendRefused, BackendUnreachable, VeloError
from velollm.routing.retries import MOST_ATTEMPTS, Purse, may_retry, pause_before

__all__ = ["Attempts", "Budget"]

T = TypeVar("T")


class Budget:
    """What all requests together may spend: on asking once more, and on asking another after one broke off."""

    def __init__(self) -> None:
        self.retries = Purse()
        self.others = Purse(most=16.0)

    def earn(self) -> None:
        """A request was answered."""
        self.retries.earn()
        self.others.earn()


class Attempts(Generic[T]):
    """The attempts of one request at `targets`, the best first. `current` is the one to ask.

    `usable` says of a target whether it is well now.
    """

    __slots__ = ("_broke_off", "_budget", "_left", "_targets", "_usable", "count", "current", "first_error")

    def __init__(self, targets: Sequence[T], budget: Budget, usable: Callable[[T], bool]) -> None:
        self._targets = targets
        self._usable = usable
        self._left = list(targets[1:])  # not asked yet
        self._budget = budget
        self._broke_off = False
        self.current = targets[0]
        self.count = 1
        self.first_error: VeloError | None = None

    def after(self, error: VeloError, *, begun: bool) -> float:
        """Choose the next; seconds to wait before it is asked. `begun` when the client has read anything.

        Raises the first error when nobody is to be asked any more.
        """
        if self.first_error is None:
            self.first_error = error
        if begun:
            if not self._left or not broke_off(error):
                raise self.first_error
            self.current = self._next()
            return 0.0
        self.count += 1
        if self.count > MOST_ATTEMPTS or not self._worth_it(error):
            raise error
        if self._left:
            self.current = self._next()
            return 0.0
        if not may_retry(error):
            raise error
        pause = pause_before(self.count, error)
        if pause is None:
            raise error
        self.current = self._targets[(self.count - 1) % len(self._targets)]
        return pause

    def cannot_go_on(self) -> None:
        """The current one cannot go on with what was said: ask the next. Raises the first error when there is none."""
        if not self._left:
            assert self.first_error is not None
            raise self.first_error
        self.current = self._next()

    def _next(self) -> T:
        chosen = next((target for target in self._left if self._usable(target)), self._left[0])
        self._left.remove(chosen)
        return chosen

    def _worth_it(self, error: VeloError) -> bool:
        if isinstance(error, BackendUnreachable) and self._left:
            return True  # nothing reached an engine
        if may_retry(error) or (isinstance(error, BackendRefused) and error.status == 429 and self._left):
            return self._budget.retries.spend()
        if broke_off(error) and self._left and not self._broke_off:
            self._broke_off = True  # once: a request that ends engines must not end them all
            return self._budget.others.spend()
        return False


def broke_off(error: VeloError) -> bool:
    """Whether the engine failed, rather than said no."""
    return isinstance(error, BackendError) and not isinstance(error, BackendRefused)
