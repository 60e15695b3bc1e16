"""Single words: stems, synonyms, and which word is a slip of another."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velollm.cache import words
from velollm.cache.words import Synonyms, base_of_gerund, base_of_past, is_known, is_slip, stem, synonyms


@pytest.mark.parametrize(
    ("word", "base"),
    [
        ("boxes", "box"), ("works", "work"), ("cities", "city"), ("movies", "movie"), ("children", "child"),
        ("news", "news"), ("bus", "bus"), ("glass", "glass"), ("analysis", "analysis"), ("is", "is"), ("c++s", "c++s"),
        ("potatoes", "potato"), ("matches", "match"),
    ],
)  # fmt: skip
def test_stems(word: str, base: str) -> None:
    assert stem(word) == base


@pytest.mark.parametrize(
    ("word", "base"), [("changing", "change"), ("running", "run"), ("baking", "bake"), ("string", None), ("king", None)]
)
def test_gerunds(word: str, base: str | None) -> None:
    assert base_of_gerund(word) == base


@pytest.mark.parametrize(("word", "base"), [("invented", "invent"), ("fell", "fall"), ("red", None), ("table", None)])
def test_pasts(word: str, base: str | None) -> None:
    assert base_of_past(word) == base


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("recipie", "recipe"), ("bananna", "banana"), ("configrue", "configure"), ("orchd", "orchid"),
        ("hipocampus", "hippocampus"), ("temprature", "temperature"), ("lether", "leather"),
    ],
)  # fmt: skip
def test_slips(wrong: str, right: str) -> None:
    assert is_slip(wrong, right)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("form", "from"), ("affect", "effect"), ("slovakia", "slovenia"), ("prednisone", "prednisolone"),
        ("photon", "proton"), ("mitosis", "meiosis"), ("sildenafil", "sildenafyl"), ("chloride", "chlorite"),
        ("qwxz", "qwxv"), ("cat", "bat"), ("python2", "python3"), ("iran", "iraq"), ("desert", "dessert"),
        ("encrypt", "decrypt"), ("lock", "unlock"), ("install", "uninstall"),
    ],
)  # fmt: skip
def test_real_words_and_two_unknown_ones_are_never_slips(one: str, other: str) -> None:
    assert not is_slip(one, other)
    assert not is_slip(other, one)


@given(st.text(max_size=9), st.text(max_size=9))
def test_nothing_is_a_slip_both_ways(one: str, other: str) -> None:
    assert not (is_slip(one, other) and is_slip(other, one))


def test_the_dictionary_knows_english_and_the_names_of_tools() -> None:
    assert all(map(is_known, ["banana", "hippocampus", "kubernetes", "ox", "reinstall"]))
    assert not any(map(is_known, ["bananna", "hipocampus"]))


def test_every_word_of_the_dictionary_is_found_and_no_other() -> None:
    listed = words._dictionary().decode().split()
    assert listed == sorted(set(listed))
    for word in (*listed[:50], *listed[::997], *listed[-50:]):
        assert words._listed(word)
        assert words._listed(word + "zqx") is False
    assert not any(map(words._listed, ["", "a", "zzzzzz", "\n", "aachen\naalborg"]))


def test_synonyms_unify_words_and_phrases() -> None:
    unify = synonyms().unify
    assert unify(["purchase", "car"], frozenset()) == unify(["buy", "automobile"], frozenset())
    assert unify(["get", "rid", "of"], frozenset()) == ["remove"]
    assert unify(["apple"], frozenset(["apple"])) == ["apple"]


def test_a_name_is_no_synonym() -> None:
    assert synonyms().unify(["fall", "metro"], frozenset(["metro"])) == [synonyms().words.get("fall", "fall"), "metro"]


def test_a_word_in_two_groups_is_an_error() -> None:
    with pytest.raises(ValueError, match="two groups"):
        Synonyms.parse(["a, b", "b, c"])


def test_no_group_holds_opposites() -> None:
    heads = synonyms().words
    opposites = (
        "increase decrease, raise lower, enable disable, start stop, open close, buy sell, win lose, big "
        "small, hot cold, fast slow, good bad, push pull, add remove, install uninstall, import export, "
        "encrypt decrypt, more less, most least, first last, before after, with without, from to, best worst, "
        "easy hard, rich poor, safe dangerous, up down, in out, on off, always never, all some, male female, "
        "man woman, boy girl, mother father, son daughter, brother sister, day night, north south, east west, "
        "left right, read write, upload download, cause prevent"
    )
    for pair in opposites.split(","):
        one, other = pair.split()
        assert heads.get(one, one) != heads.get(other, other), pair
