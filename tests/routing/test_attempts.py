"""Who is asked next, and who is not risked."""

from __future__ import annotations

import pytest

from velollm.errors import BackendProtocolError, BackendTimeout, VeloError
from velollm.routing.attempts import Attempts, Budget

ENDED = BackendProtocolError("the connection ended")
SILENT = BackendTimeout("no first byte")


def after(*failures: tuple[VeloError, bool]) -> list[str]:
    """Who is left after engines have failed one after the other, each in an outage or not."""
    attempts = Attempts(["a", "b", "c", "d"], Budget())
    for engine, (error, outage) in zip("abcd", failures, strict=False):
        attempts.begin(engine)
        assert attempts.after(error, begun=False, outage=outage) == 0
    return list(attempts.choices)


@pytest.mark.parametrize("first", [ENDED, SILENT])
@pytest.mark.parametrize("outage", [False, True])
def test_one_that_fails_before_its_first_word_is_followed_by_another(first: VeloError, outage: bool) -> None:
    assert after((first, outage)) == ["b", "c", "d"]


def test_one_that_is_silent_to_all_does_not_count() -> None:
    assert after((ENDED, True), (SILENT, True)) == ["c", "d"]


@pytest.mark.parametrize("second", [(ENDED, True), (ENDED, False), (SILENT, False)])
def test_a_request_that_ends_engines_does_not_end_them_all(second: tuple[VeloError, bool]) -> None:
    with pytest.raises(type(second[0])):
        after((ENDED, True), second)
