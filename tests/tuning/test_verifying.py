"""Searching and judging: what pays is kept, what does not is withdrawn."""

from __future__ import annotations

import stat
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.engine_script import ENGINE
from support.machines import RecordedHost

from velollm.errors import ConfigError
from velollm.hardware import read_machine
from velollm.tuning import verifying
from velollm.tuning.measuring import Load, Measurement
from velollm.tuning.ollama import tune_ollama
from velollm.tuning.searching import candidates, knobs, search
from velollm.tuning.trials import LlamaServerTrial, OllamaTrial
from velollm.tuning.values import Setting, Tuning, Workload
from velollm.tuning.verifying import judge, verify

# ---- judging ---------------------------------------------------------------------------------------------------------


def measured(throughput: float, alone: float = 0.1, failed: int = 0) -> Measurement:
    return Measurement(throughput=throughput, ttft=1.0, ttft_alone=alone, failed=failed)


@pytest.mark.parametrize(
    ("rounds", "kept", "words"),
    [
        ([(measured(10), measured(25))] * 3, True, "kept"),
        ([(measured(10), measured(10.2))] * 3, False, "does not pay"),
        ([(measured(10), measured(5))] * 3, False, "does not pay"),
        ([(measured(10), measured(25, alone=0.5))] * 3, False, "waits longer"),
        ([(measured(10, alone=0.01), measured(25, alone=0.03))] * 3, True, "kept"),  # nobody notices
        ([(measured(10), measured(25, failed=1))], False, "failed"),
        ([(measured(10), measured(25)), (measured(10), measured(9))], False, "disagree"),
        # a neighbour halves one round: it disturbs both sides of the pair, and the median of the factors stands
        ([(measured(10), measured(25)), (measured(4), measured(10)), (measured(10), measured(24))], True, "2.50 x"),
    ],
)
def test_verdicts(rounds: list[tuple[Measurement, Measurement]], kept: bool, words: str) -> None:
    verdict = judge(rounds)
    assert verdict.kept is kept
    assert words in verdict.words


def test_nothing_to_compare_with() -> None:
    with pytest.raises(ConfigError, match="answered nothing"):
        judge([(measured(0), measured(5))])


# ---- searching -------------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@given(st.lists(st.floats(1, 100), min_size=1, max_size=12), st.floats(0.5, 200))
def test_search_never_does_worse_and_keeps_its_time(scores: list[float], budget: float) -> None:
    clock = Clock()
    options: list[Mapping[str, str]] = [{"n": str(number)} for number in range(len(scores))]

    def evaluate(values: Mapping[str, str], effort: int) -> float:
        clock.now += effort
        return scores[int(values["n"])]

    found = search(options, evaluate, budget=budget, clock=clock)
    assert found.score >= found.start_score == scores[0]
    assert clock.now <= budget + max(effort for _, effort, _ in found.history)
    if budget > 100:
        assert found.score == max(scores)


def test_what_does_not_start_loses() -> None:
    options: list[Mapping[str, str]] = [{"n": "0"}, {"n": "1"}]
    found = search(options, lambda values, effort: 5.0 if values["n"] == "0" else 0.0, budget=99, clock=Clock())
    assert found.values == {"n": "0"}


def test_candidates_start_with_what_is_and_fit_together() -> None:
    machine = read_machine(RecordedHost("intel_arc"))
    tuning = tune_ollama(machine, None, Workload(clients=4), version="0.17.4")
    options = candidates(tuning, knobs(tuning, machine))
    assert options[0]["OLLAMA_NUM_PARALLEL"] == tuning.values["OLLAMA_NUM_PARALLEL"]
    assert len(options) == len({tuple(sorted(one.items())) for one in options}) <= 16
    server = Tuning(
        target="llama-server",
        settings=(Setting(name="--parallel", value="4", why=""), Setting(name="--ctx-size", value="8192", why="")),
    )
    for one in candidates(server, knobs(server, machine)):
        assert int(one["--ctx-size"]) == 2048 * int(one["--parallel"])
        assert one["--cache-type-v"] == one["--cache-type-k"]
        assert one["--cache-type-k"] == "f16" or one["--flash-attn"] != "off"


def test_a_search_knows_drafts_where_the_engine_does() -> None:
    machine = read_machine(RecordedHost("intel_arc"))
    server = Tuning(target="llama-server", settings=(Setting(name="--parallel", value="4", why=""),))
    assert "--spec-type" not in knobs(server, machine)
    options = candidates(server, knobs(server, machine, {"--spec-type"}))
    assert options[0]["--spec-type"] == "none"
    tried = {one["--spec-type"] for one in options}
    assert tried == {"none", "ngram-simple", "ngram-mod"}
    (lookup,) = (one for one in options if one["--spec-type"] == "ngram-simple" and one["--parallel"] == "4"
                 and one["--flash-attn"] == "auto" and one["--threads"] == options[0]["--threads"]
                 and one["--cache-type-k"] == "f16" and one["--ubatch-size"] == "512")  # fmt: skip
    assert int(lookup["--spec-ngram-simple-size-n"]) < 12


# ---- trials ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def engine(tmp_path: Path) -> str:
    path = tmp_path / "ollama"
    path.write_text(ENGINE.format(python=sys.executable))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_slots_pay(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifying, "BLINK", 60.0)  # how soon a lone request is answered is the test machine's affair
    said: list[str] = []
    environ = {"OLLAMA_NUM_PARALLEL": "99999", "PATH": "/usr/bin:/bin"}  # the service's own do not leak into a trial
    before = OllamaTrial(engine, "m", {"OLLAMA_NUM_PARALLEL": "1"}, environ)
    after = OllamaTrial(engine, "m", {"OLLAMA_NUM_PARALLEL": "8"}, environ)
    verdict = verify(before, after, Load(clients=8, tokens=12), rounds=2, say=said.append)
    assert verdict.kept
    assert verdict.gain > 1.5
    assert verdict.after.failed == 0
    assert len(said) == len(verdict.rounds) == 2
    for trial in (before, after):
        assert not trial.log.exists()


def test_engines_that_do_not_start(engine: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did not start: out of memory, says the engine"):
        OllamaTrial(engine, "m", {"OLLAMA_NUM_PARALLEL": "65"}, {}).__enter__()
    with pytest.raises(ConfigError, match="cannot be started"):
        LlamaServerTrial(str(tmp_path / "none"), tmp_path / "m.gguf", {}, {}).__enter__()
