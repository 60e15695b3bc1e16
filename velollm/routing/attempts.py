"""Who is asked next when a request has failed. No I/O.

Before the first event, others are asked, and the same one again after a pause, within a budget. Afterwards only others,
and only to go on with what was said: never the same one twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

from velollm.errors import BackendError, BackendRefused, BackendTimeout, BackendUnreachable, VeloError, let_go
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
    """The attempts of one request at `targets`. `choices` are those that may be asked next."""

    __slots__ = ("_broke_off", "_budget", "_count", "_left", "_targets", "choices", "first_error")

    def __init__(self, targets: Sequence[T], budget: Budget) -> None:
        self._targets = targets
        self._left = list(targets)  # not asked yet
        self._budget = budget
        self._broke_off = False
        self._count = 1
        self.choices: Sequence[T] = targets
        self.first_error: VeloError | None = None

    def begin(self, target: T) -> None:
        """`target`, one of the choices, is asked."""
        if target in self._left:
            self._left.remove(target)

    def after(self, error: VeloError, *, begun: bool, outage: bool = False) -> float:
        """Say who may be asked next; seconds to wait before that. `begun` when the client has read anything; `outage`
        when the backend was well as it was asked, and is not any more: its other requests have failed as well.

        Raises the first error when nobody is to be asked any more.
        """
        going_on = begun and self.first_error is not None  # whatever keeps this one from it, the next may be able to
        if self.first_error is None:
            self.first_error = error
        if begun:
            if not self._left or not (going_on or broke_off(error)):
                raise self.first_error
            return self._go_on(error, self._left)
        self._count += 1
        if self._count > MOST_ATTEMPTS or not self._worth_it(error, outage):
            raise error
        if self._left:
            return self._go_on(error, self._left)
        if not may_retry(error):
            raise error
        pause = pause_before(self._count, error)
        if pause is None:
            raise error
        return self._go_on(error, self._targets, pause)

    def cannot_go_on(self, error: VeloError) -> None:
        """The one that was asked cannot go on with what was said. Raises the first error when nobody else is left."""
        if self.first_error is None:
            self.first_error = error
        if not self._left:
            raise self.first_error
        self._go_on(error, self._left)

    def _go_on(self, error: VeloError, choices: Sequence[T], pause: float = 0.0) -> float:
        let_go(error)
        self.choices = choices
        return pause

    def _worth_it(self, error: VeloError, outage: bool) -> bool:
        if isinstance(error, BackendUnreachable) and self._left:
            return True  # nothing reached an engine
        if may_retry(error) or (isinstance(error, BackendRefused) and error.status == 429 and self._left):
            return self._budget.retries.spend()
        if not broke_off(error) or not self._left:
            return False
        if (
            self._broke_off
        ):  # a request that ends engines must not end them all; one that is silent to all was not ended
            return outage and isinstance(error, BackendTimeout)
        self._broke_off = True
        return self._budget.others.spend() or outage  # of one outage, so many as were under way


def broke_off(error: VeloError) -> bool:
    """Whether the engine failed, rather than said no."""
    return isinstance(error, BackendError) and not isinstance(error, BackendRefused)
