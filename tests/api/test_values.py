"""The shared readers of JSON fields."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velollm.api import values
from velollm.errors import RequestError

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def test_paths() -> None:
    assert values.at("", "model") == "model"
    assert values.at("messages", 2) == "messages[2]"
    assert values.at(values.at("messages", 2), "role") == "messages[2].role"


def test_absent_and_null_are_the_same() -> None:
    for read in (
        values.get_str,
        values.get_int,
        values.get_bool,
        values.get_number,
        values.get_list,
        values.get_object,
    ):
        assert read({}, "x") is None
        assert read({"x": None}, "x") is None


@pytest.mark.parametrize(
    ("read", "value", "problem"),
    [
        (values.get_str, 1, "x must be a string, not an integer"),
        (values.get_bool, 0, "x must be a boolean, not an integer"),
        (values.get_int, True, "x must be an integer, not a boolean"),
        (values.get_int, 1.5, "x must be an integer, not a number"),
        (values.get_int, 1e30, "x is too large for an integer: send one of 64 bits"),
        (values.get_int, math.inf, "x must be an integer, not a number"),
        (values.get_number, "1", "x must be a number, not a string"),
        (values.get_number, math.nan, "x must be a finite number"),
        (values.get_list, {}, "x must be an array, not an object"),
        (values.get_object, [], "x must be an object, not an array"),
        (values.need_str, None, "x is required and must be a string"),
    ],
)
def test_wrong_types(read, value, problem) -> None:
    with pytest.raises(RequestError) as caught:
        read({"x": value}, "x")
    assert caught.value.message == problem
    assert caught.value.param == "x"
    assert caught.value.status == 400


def test_ranges() -> None:
    assert values.get_int({"n": 5.0}, "n", low=5, high=5) == 5
    with pytest.raises(RequestError, match=r"choice\[1\]\.n must be at most 4"):
        values.get_int({"n": 5}, "n", "choice[1]", high=4)
    with pytest.raises(RequestError, match="n must be at least 0"):
        values.get_number({"n": -0.5}, "n", low=0)


def test_unknown_word_names_the_nearest() -> None:
    with pytest.raises(RequestError, match="did you mean 'assistant'"):
        values.get_choice({"role": "asistant"}, "role", ("user", "assistant"))
    with pytest.raises(RequestError) as caught:
        values.get_choice({"role": "x" * 10_000}, "role", ("user", "assistant"))
    assert len(caught.value.message) < 200


def test_lists() -> None:
    assert values.get_str_list({"stop": "a"}, "stop", lone=True) == ["a"]
    with pytest.raises(RequestError) as caught:
        values.get_str_list({"stop": ["a", 1]}, "stop")
    assert caught.value.param == "stop[1]"
    with pytest.raises(RequestError, match="must not be empty"):
        values.need_list({"messages": []}, "messages", min_length=1)
    with pytest.raises(RequestError, match="at most 1 items, not 2"):
        values.get_list({"x": [1, 2]}, "x", max_length=1)
    with pytest.raises(RequestError, match=r"ids\[0\] must be an integer, not a boolean"):
        values.get_int_list({"ids": [True]}, "ids")


def test_rest_keeps_what_is_unknown() -> None:
    assert values.rest({"a": 1, "b": None}, {"a"}) == {"b": None}


@given(anything)
def test_readers_raise_nothing_else(value: object) -> None:
    readers = [
        values.get_str, values.get_int, values.get_bool, values.get_number, values.get_list, values.get_object,
        values.get_str_list, values.get_int_list, values.need_str, values.need_list, values.need_object,
    ]  # fmt: skip
    for read in readers:
        param = _param(read, value)
        assert param is None or param == "x" or param.startswith("x[")


def _param(read, value: object) -> str | None:
    try:
        read({"x": value}, "x")
    except RequestError as error:
        return error.param
    return None
