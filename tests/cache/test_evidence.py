"""Evidence adds up, stays bounded, survives as bytes, and forgets what is purged."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from velollm.cache.entry import Damaged
from velollm.cache.evidence import ROUTES, Disagreement, Evidence, Ledger, decode_evidence, encode_evidence
from velollm.cache.selection import Selection

COUNT = st.integers(0, 2**53)
TIME = st.floats(0, 2e9)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
DISAGREEMENTS = st.builds(
    Disagreement,
    asked=TEXT, stored=TEXT, agreement=st.floats(0, 0.5), tenant=st.binary(max_size=16), model=TEXT,
    tags=st.lists(TEXT, max_size=2).map(tuple),
)  # fmt: skip
EVIDENCE = st.builds(
    Evidence,
    asked=COUNT, compared=COUNT, agreed=COUNT, tokens=COUNT, seconds=TIME, skipped=COUNT, first=TIME, last=TIME,
    disagreements=st.lists(DISAGREEMENTS, max_size=10),
)  # fmt: skip


def quoted(number: int = 0, **fields: object) -> Disagreement:
    return Disagreement(
        **{"asked": f"a{number}", "stored": "b", "agreement": 0.0, "tenant": b"t", "model": "m", **fields}  # type: ignore[arg-type]
    )


@given(EVIDENCE)
def test_bytes_and_back(evidence: Evidence) -> None:
    assert decode_evidence(encode_evidence(evidence)) == evidence


@given(EVIDENCE, st.data())
def test_damaged_bytes_are_refused(evidence: Evidence, data: st.DataObject) -> None:
    whole = bytearray(encode_evidence(evidence))
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(Damaged):
        decode_evidence(bytes(whole))
    with pytest.raises(Damaged):
        decode_evidence(bytes(whole[:at]))


def test_it_adds_up_and_quotes_the_last_ones() -> None:
    known = Evidence()
    for number in range(30):
        one = Evidence(asked=2, compared=1, agreed=1, tokens=7, seconds=0.5, first=100.0 + number, last=200.0 + number)
        one.disagreements.append(quoted(number))
        known.add(one)
    assert (known.asked, known.compared, known.agreed, known.tokens, known.seconds) == (60, 30, 30, 210, 15.0)
    assert (known.first, known.last) == (100.0, 229.0)
    assert [one.asked for one in known.disagreements] == [f"a{number}" for number in range(20, 30)]


def test_the_routes_are_bounded_and_the_one_heard_of_last_stays() -> None:
    ledger = Ledger()
    for number in range(ROUTES + 50):
        ledger.add(f"route-{number}" + "x" * 10_000, Evidence(asked=1))
        ledger.add("busy", Evidence(asked=1))
    known = dict(ledger.copies())
    assert len(known) == len(ledger) == ROUTES
    assert known["busy"].asked == ROUTES + 50
    assert max(map(len, known)) == 200
    assert len(ledger.take()) == ROUTES
    assert not ledger.take()


@pytest.mark.parametrize(
    ("selection", "left"),
    [
        (Selection(tenant=b"t"), ["a2"]),
        (Selection(model="n"), ["a0", "a2"]),
        (Selection(tag="key:ann"), ["a0", "a1"]),
        (Selection(tenant=b"t", model="n"), ["a0", "a2"]),
    ],
)
def test_a_purge_takes_the_words_and_leaves_the_counts(selection: Selection, left: list[str]) -> None:
    ledger = Ledger()
    said = [quoted(0), quoted(1, model="n"), quoted(2, tenant=b"u", tags=("key:ann",))]
    ledger.add("m", Evidence(asked=3, compared=3, disagreements=said))
    ledger.forget(selection)
    ((_, evidence),) = ledger.copies()
    assert [one.asked for one in evidence.disagreements] == left
    assert attrs.evolve(evidence, disagreements=[]) == Evidence(asked=3, compared=3)
    ledger.forget(Selection())
    assert not len(ledger)
