"""Keys: what may differ without changing the answer, and that nothing else may."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.cache import ask

from velollm.cache.keys import IGNORED_FIELDS, Unhashable, derive_keys, tenant_digest

TENANT = tenant_digest("t")

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.text(min_size=1, max_size=6).filter(lambda name: name not in IGNORED_FIELDS | {"messages", "prompt"})
EXTRA = st.dictionaries(NAMES, JSON)


def shuffled(value: Any, rng: random.Random) -> Any:
    if isinstance(value, dict):
        items = [(key, shuffled(inner, rng)) for key, inner in value.items()]
        rng.shuffle(items)
        return dict(items)
    return [shuffled(inner, rng) for inner in value] if isinstance(value, list) else value


@given(EXTRA, st.text(max_size=20), st.randoms(use_true_random=False))
def test_the_order_of_fields_does_not_matter(extra: dict[str, Any], prompt: str, rng: random.Random) -> None:
    body = ask(prompt, {"role": "system", "content": "s"}, **extra)
    assert derive_keys(TENANT, body) == derive_keys(TENANT, shuffled(body, rng))


@given(EXTRA, st.sampled_from(sorted(IGNORED_FIELDS)), JSON)
def test_fields_that_cannot_change_the_answer_are_not_part_of_it(extra: dict[str, Any], field: str, value: Any) -> None:
    body = ask("hello", **extra)
    assert derive_keys(TENANT, body).exact == derive_keys(TENANT, {**body, field: value}).exact


@given(EXTRA, st.text(min_size=1, max_size=6).map(lambda name: "x_" + name), JSON.filter(lambda v: v is not None))
def test_any_other_field_is(extra: dict[str, Any], field: str, value: Any) -> None:
    body = {key: inner for key, inner in ask("hello", **extra).items() if key != field}
    changed = derive_keys(TENANT, {**body, field: value})
    assert derive_keys(TENANT, body).exact != changed.exact
    assert derive_keys(TENANT, body).scope != changed.scope


@given(st.text(max_size=30), st.text(max_size=30))
def test_only_the_last_user_text_is_left_out_of_the_scope(one: str, other: str) -> None:
    a, b = derive_keys(TENANT, ask(one)), derive_keys(TENANT, ask(other))
    assert a.scope == b.scope
    assert (a.exact == b.exact) == (one == other)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1}, {"seed": 2}, {"stop": ["x"]}, {"max_tokens": 5}, {"n": 2}, {"model": "other"},
        {"temperature": 0.5}, {"top_p": 0.5}, {"response_format": {"type": "json_object"}},
        {"tools": [{"type": "function"}]},
        {"tool_choice": "required"}, {"logprobs": True}, {"messages": []},
        {"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "hello"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}]},
    ],
)  # fmt: skip
def test_what_decides_the_answer(change: dict[str, Any]) -> None:
    assert derive_keys(TENANT, ask("hello")).exact != derive_keys(TENANT, {**ask("hello"), **change}).exact


@pytest.mark.parametrize(
    "same",
    [
        {"n": 1}, {"stop": None}, {"stop": []}, {"temperature": 0.0}, {"logprobs": False}, {"tools": []},
        {"response_format": {"type": "text"}}, {"tool_choice": "auto"}, {"stream": True}, {"user": "ann"},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]},
        {"messages": [{"role": "user", "content": "hello", "name": None}]},
    ],
)  # fmt: skip
def test_what_says_the_same_in_other_words(same: dict[str, Any]) -> None:
    assert derive_keys(TENANT, ask("hello")).exact == derive_keys(TENANT, {**ask("hello"), **same}).exact


def test_tenants_and_variants_have_keys_of_their_own() -> None:
    keys = [derive_keys(tenant_digest(t), ask("hello"), v) for t in ("a", "b", "", None) for v in ("", "sha256:1")]
    assert len({k.exact for k in keys}) == len(keys) == len({k.scope for k in keys}) == len({k.check for k in keys})


def test_a_tenant_cannot_be_read_from_its_digest() -> None:
    assert b"sk-secret" not in tenant_digest("sk-secret")
    assert tenant_digest(None) != tenant_digest("")


@pytest.mark.parametrize("value", [float("nan"), object(), "\ud800"])
def test_what_json_cannot_carry_has_no_key(value: object) -> None:
    if value != value:  # NaN is written as null, which is still one document
        assert derive_keys(TENANT, ask("hello", x=value)).exact
    else:
        with pytest.raises(Unhashable):
            derive_keys(TENANT, ask("hello", x=value))


def test_nesting_without_end_has_no_key() -> None:
    deep: Any = 0
    for _ in range(2000):
        deep = [deep]
    with pytest.raises(Unhashable):
        derive_keys(TENANT, ask("hello", x=deep))


def test_an_opening_of_courtesies_is_not_part_of_the_scope() -> None:
    hello = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello! How can I help?"}]
    assert derive_keys(TENANT, ask("x", *hello)).scope == derive_keys(TENANT, ask("x")).scope
    assert derive_keys(TENANT, ask("x", *hello)).exact != derive_keys(TENANT, ask("x")).exact
