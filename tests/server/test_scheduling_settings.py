"""What the settings of scheduling and routing make of a pool."""

from __future__ import annotations

import pytest

from velollm.config import AUTO, BackendSettings, Settings, load_settings, parse_concurrency, show_concurrency
from velollm.errors import ConfigError
from velollm.routing.placement import PrefixAffinity
from velollm.server.backends import open_pool


def limits(settings: Settings, environ: dict[str, str] | None = None) -> dict[str, int | None]:
    pool = open_pool(settings, environ=environ or {}, on_health=lambda name, up: None)
    return {name: lane.limit for name, lane in pool.turns.scheduler.dispatcher.lanes.items()}


def load(*arguments: tuple[str, object]) -> Settings:
    return load_settings(dict(arguments), environ={}, config=None)


BACKENDS = (
    BackendSettings(name="a", url="openai+http://127.0.0.1:1/v1", concurrency=parse_concurrency(3), weight=2.0),
    BackendSettings(name="b", url="ollama://localhost:11434"),
    BackendSettings(name="c", url="ollama://10.0.0.1:11434", concurrency=AUTO),
)


def test_each_backend_has_its_limit() -> None:
    assert limits(Settings(backends=BACKENDS)) == {"a": 3, "b": None, "c": None}
    told = {"OLLAMA_NUM_PARALLEL": "2"}
    assert limits(Settings(backends=BACKENDS), told) == {"a": 3, "b": 2, "c": None}, "only an Ollama of this machine"
    assert limits(Settings(backends=BACKENDS), {"OLLAMA_NUM_PARALLEL": "many"})["b"] is None


def test_settings_reach_the_dispatcher() -> None:
    settings = load(
        ("defaults.concurrency", "2"), ("scheduling.max_queue", "7"), ("scheduling.ageing", "1m"),
        ("routing.policy", "prefix"), ("scheduling.slo", "2"), ("scheduling.queue_timeout", "5s"),
        ("scheduling.model_quantum", "0"),
    )  # fmt: skip
    pool = open_pool(settings, environ={"OLLAMA_NUM_PARALLEL": "9"}, on_health=lambda name, up: None)
    dispatcher = pool.turns.scheduler.dispatcher
    assert dispatcher.waiting.most == 7
    assert isinstance(dispatcher.placement, PrefixAffinity)
    assert [lane.limit for lane in dispatcher.lanes.values()] == [2]
    assert [lane.residency.quantum for lane in dispatcher.lanes.values()] == [0]


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", 0, True, None, "9" * 30])
def test_a_concurrency_that_is_none(value: object) -> None:
    with pytest.raises(ValueError, match="auto or a whole number"):
        parse_concurrency(value)


@pytest.mark.parametrize("value", [1, 4, "8", "auto", " AUTO "])
def test_a_concurrency_reads_as_it_is_shown(value: object) -> None:
    assert parse_concurrency(show_concurrency(parse_concurrency(value))) == parse_concurrency(value)


@pytest.mark.parametrize(
    "argument",
    [
        ("scheduling.slo", "0"),
        ("scheduling.max_queue", "-1"),
        ("defaults.concurrency", "0"),
        ("routing.policy", "random"),
    ],
)
def test_settings_that_make_no_sense(argument: tuple[str, str]) -> None:
    with pytest.raises(ConfigError):
        load(argument)
