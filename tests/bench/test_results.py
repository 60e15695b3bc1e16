"""Figures under vLLM's keys, the block, files, the page, and comparisons."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any
from xml.etree import ElementTree

import pytest

from velollm.bench.comparison import compare, read_runs, render
from velollm.bench.lag import Lag
from velollm.bench.record import Record
from velollm.bench.reports import block, page, save
from velollm.bench.reports.files import as_csv, as_markdown, check_place, check_writable
from velollm.bench.reports.svg import nice
from velollm.bench.result import Result, Step, client_facts, settings_of, warnings_of
from velollm.bench.schedule import Schedule
from velollm.bench.summary import good_requests, summarise
from velollm.errors import ConfigError


def record(number: int = 0, *, ttft: float = 0.1, gap: float = 0.02, tokens: int = 5, **more: Any) -> Record:
    arrivals = [ttft + gap * place for place in range(tokens)]
    return Record(
        number=number,
        sent=0.5 * number,
        arrivals=arrivals,
        prompt_tokens=10,
        output_tokens=tokens,
        counted=True,
        **more,
    )


def result(records: list[Record], *, seconds: float = 2.0, label: str = "", **more: Any) -> Result:
    figures = summarise(records, seconds)
    schedule = Schedule(concurrency=2)
    client = client_facts(records, Lag(median=0.0001, p95=0.0003, p99=0.0005, most=0.001, cpu=0.1), schedule)
    settings = settings_of(
        backend="openai", model="m", profile="chat", count=len(records), schedule=schedule, seed=1,
        now=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), label=label,
    )  # fmt: skip
    return Result(
        settings=settings, figures=figures, records=records, client=client,
        warnings=warnings_of(records, figures, client), **more,
    )  # fmt: skip


# What vLLM 0.33.0 writes with --save-result --save-detailed for a generation.
VLLM = {
    "date", "endpoint_type", "backend", "label", "model_id", "tokenizer_id", "num_prompts", "request_rate",
    "burstiness", "max_concurrency", "duration", "completed", "failed", "total_input_tokens", "total_output_tokens",
    "request_throughput", "request_goodput", "output_throughput", "total_token_throughput", "input_lens", "output_lens",
    "ttfts", "itls", "latencies", "start_times", "queue_times", "generated_texts", "errors", "max_output_tokens_per_s",
    "max_concurrent_requests", *(f"{kind}_{name}_ms" for kind in ("mean", "median", "std", "p99")
                                 for name in ("ttft", "tpot", "itl", "e2el")),
}  # fmt: skip


def test_vllms_keys_and_their_meaning() -> None:
    records = [record(0), record(1, ttft=0.3, gap=0.04, tokens=3), record(2, error="broken")]
    facts = result(records).as_json(details=True)
    assert set(facts) >= VLLM
    assert (facts["completed"], facts["failed"], facts["request_rate"]) == (2, 1, "inf")
    assert facts["total_input_tokens"] == 20
    assert facts["output_throughput"] == pytest.approx(8 / 2)
    assert facts["total_token_throughput"] == pytest.approx(28 / 2)
    assert facts["mean_ttft_ms"] == pytest.approx(200)
    assert facts["std_ttft_ms"] == pytest.approx(100)
    assert facts["mean_tpot_ms"] == pytest.approx(30)
    assert facts["mean_itl_ms"] == pytest.approx((4 * 20 + 2 * 40) / 6)
    assert facts["mean_e2el_ms"] == pytest.approx((180 + 380) / 2)
    assert facts["max_output_tokens_per_s"] == 8
    assert facts["max_concurrent_requests"] == 1
    assert facts["errors"] == ["", "", "broken"]
    assert facts["output_lens"] == [5, 3, 0]
    assert "1 of 3 requests failed, the first with: broken" in facts["warnings"]
    json.dumps(facts, allow_nan=False)
    found = result(records)
    assert dict(found) == found.as_json()
    assert found.get("nothing") is None


def test_embeddings_have_their_own_keys() -> None:
    facts = summarise([Record(arrivals=[0.2], prompt_tokens=40, inputs=4)], 2.0, embeds=True)
    assert (facts["total_input_sequences"], facts["input_sequence_throughput"]) == (4, 2.0)
    assert facts["mean_e2el_ms"] == pytest.approx(200)
    assert "mean_ttft_ms" not in facts


def test_goodput_is_what_keeps_every_objective() -> None:
    records = [record(0), record(1, ttft=0.3), record(2, gap=0.5), record(3, tokens=1), record(4, error="x")]
    assert good_requests(records, {"ttft": 0.2, "tpot": 0.1}) == 2  # one token has no time per token
    assert good_requests(records, {"e2el": 0.2}) == 2
    assert summarise(records, 2.0, slos={"ttft": 0.2})["request_goodput"] == pytest.approx(1.5)


def test_caches_and_drafts_are_told() -> None:
    first = record(0, cached_tokens=8, cache="hit-exact", engine={"draft_n": 10, "draft_n_accepted": 7})
    figures = summarise([first, record(1, cached_tokens=0)], 1.0)
    assert (figures["prefix_cached_tokens"], figures["prefix_cache_hit_rate"]) == (8, 0.4)
    assert figures["answer_cache_hits"] == 1
    assert figures["spec_decode_acceptance_rate"] == pytest.approx(70)
    assert any("came from a cache of answers" in words for words in warnings_of([first], figures, {}))


@pytest.mark.parametrize(
    ("lag", "bottleneck"),
    [
        (Lag(median=0.0002, p95=0.001, cpu=0.3), False),
        (Lag(median=0.003, p95=0.004, cpu=0.3), True),
        (Lag(median=0.0002, p95=0.012, cpu=0.3), True),
        (Lag(median=0.0002, p95=0.001, cpu=0.97), True),
    ],
)
def test_a_client_that_cannot_keep_up_says_so(lag: Lag, bottleneck: bool) -> None:
    records = [record(0)]
    facts = client_facts(records, lag, Schedule(concurrency=1))
    assert facts["bottleneck"] is bottleneck
    said = warnings_of(records, summarise(records, 1.0), facts)
    assert any("load generator was the bottleneck" in words for words in said) is bottleneck


def test_late_sending_is_the_clients_fault() -> None:
    late = record(0, planned=0.0)
    late.sent = 0.2
    assert client_facts([late], Lag(), Schedule(rate=5))["bottleneck"]
    assert not client_facts([late], Lag(), Schedule(rate=5, concurrency=1))["bottleneck"]  # it had to wait


def test_the_block() -> None:
    text = block(result([record(0), record(1)]))
    lines = text.splitlines()
    assert lines[0] == "============ Serving Benchmark Result ============"
    assert "Successful requests:                     2         " in lines
    assert "Output token throughput (tok/s):         5.00      " in lines
    assert "---------------Time to First Token----------------" in lines
    assert "-----Time per Output Token (excl. 1st token)------" in lines
    assert "P99 TTFT (ms):                           100.00    " in lines


def test_files(tmp_path: Path) -> None:
    found = result([record(0, text="secret"), record(1, error="x")])
    for name in ("a.json", "a.jsonl", "a.jsonl", "a.csv", "a.md"):
        save(found, tmp_path / name)
    assert json.loads((tmp_path / "a.json").read_text())["generated_texts"] == ["secret", ""]
    assert len(read_runs((tmp_path / "a.jsonl").read_bytes(), "a")) == 2
    assert as_csv(found).splitlines()[1] == "0,,0.0,0.0,100.0,20.0,180.0,10,5,,,"
    assert "| TTFT | 100.0 | 100.0 |" in as_markdown(found)
    assert (tmp_path / "a.csv").read_text() == as_csv(found)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_places_where_nothing_can_be_saved(tmp_path: Path) -> None:
    for wrong, words in ((tmp_path / "x.txt", "the suffix"), (tmp_path / "none" / "x.json", "there is no folder")):
        with pytest.raises(ConfigError, match=words):
            check_place(wrong)
    check_writable("--html", tmp_path / "x.html")


def test_the_page_is_whole_and_says_nothing_of_what_was_said() -> None:
    steps = tuple(
        Step(concurrency=number, rate=math.inf, figures=summarise([record(0, ttft=0.1 * number)], 1.0))
        for number in (1, 2, 4)
    )
    records = [record(0, text="42 is it"), record(1), record(2, error="<script>alert(1)</script>")]
    text = page(result(records, label="<b>&", steps=steps))
    assert "42 is it" not in text
    assert "<script" not in text
    assert "&lt;b&gt;&amp;" in text
    assert not [word for word in ("http:", "https:", "src=", "url(") if word in text]
    for part in text.split("<svg ")[1:]:
        ElementTree.fromstring("<svg " + part.partition("</svg>")[0] + "</svg>")
    assert text.count("<svg ") == 6


def test_ticks_are_round() -> None:
    assert nice(97) == [0, 20, 40, 60, 80, 100]
    assert nice(0.0031)[-1] >= 0.0031
    assert nice(0) == [0.0, 1.0]


# ---- comparing -------------------------------------------------------------------------------------------------------


def runs(slower: float, *, count: int = 2, seed: int = 0, failed: int = 0) -> list[dict[str, Any]]:
    random = Random(seed)
    found = []
    for _ in range(count):
        records = [
            record(number, ttft=0.1 * slower * random.uniform(0.8, 1.2), gap=0.02 * slower, tokens=8)
            for number in range(40)
        ]
        records += [record(40, error="x")] * failed
        found.append(json.loads(json.dumps(result(records, seconds=20.0).as_json(details=True))))
    return found


def test_a_difference_is_found() -> None:
    found = compare(runs(1.0), runs(0.7, seed=1), resamples=200)
    by_name = {one.name: one for one in found.differences}
    assert by_name["mean TTFT"].better
    assert by_name["mean TTFT"].ratio.value == pytest.approx(0.7, rel=0.05)
    assert by_name["mean TPOT"].better
    assert found.verdict.startswith("B is better: mean TTFT -")
    assert found.doubts == ()
    assert "B is worse" in compare(runs(0.7), runs(1.0, seed=1), resamples=200).verdict
    assert "better" in render(found, {"A": "a.json", "B": "b.json"})


def test_chance_is_no_difference() -> None:
    found = compare(runs(1.0), runs(1.0, seed=1), resamples=200)
    assert found.verdict.startswith("no difference")


def test_what_makes_a_comparison_doubtful() -> None:
    others = runs(1.0, count=1, failed=1)
    others[0]["max_concurrency"] = 9
    others[0]["client"]["bottleneck"] = True
    doubts = " ".join(compare(runs(1.0), others, resamples=20).doubts)
    for words in (
        "max_concurrency differs: 2 against 9",
        "1 requests of B failed",
        "bottleneck in B",
        "one run a side",
    ):
        assert words in doubts


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "is empty"),
        (b"nonsense", "no result of a benchmark: JSON"),
        (b"[1]", "no result of a benchmark"),
        (b'{"duration": 1, "mean_ttft_ms": 3}', "holds no single requests"),
    ],
)
def test_files_that_hold_no_runs(text: bytes, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_runs(text, "x")
