"""A result as one HTML page: everything in it, nothing loaded, no script."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from velollm.bench.record import Record
from velollm.bench.reports.block import block
from velollm.bench.reports.svg import Line, lines, spans
from velollm.bench.result import Result
from velollm.bench.statistics import Spread, per_second
from velollm.bench.summary import spreads

__all__ = ["page"]

MOST_ROWS = 200
LEAST_WAIT = 0.001
CURVE = (*range(0, 100, 2), 99, 99.5, 100)
TILES = (
    ("output_throughput", "tokens a second", 1, 1.0),
    ("input_sequence_throughput", "inputs a second", 1, 1.0),
    ("request_throughput", "requests a second", 2, 1.0),
    ("request_goodput", "good requests a second", 2, 1.0),
    ("median_ttft_ms", "ms to the first token, median", 0, 1.0),
    ("p99_ttft_ms", "ms to the first token, p99", 0, 1.0),
    ("mean_tpot_ms", "ms a token after the first", 1, 1.0),
    ("median_e2el_ms", "ms end to end, median", 0, 1.0),
    ("prefix_cache_hit_rate", "% of prompts from the prefix cache", 1, 100.0),
)
NAMES = {"ttft": "first token", "tpot": "token after the first", "itl": "gap between tokens", "e2el": "end to end"}
KINDS = (("wait", "waits in the client"), ("first", "until the first token"), ("decode", "until the last"),
         ("failed", "failed"))  # fmt: skip

STYLE = """
:root { color-scheme: light dark; --bg: #fcfcfa; --fg: #1d2129; --dim: #667; --grid: #dfe1e6; --card: #fff;
  --s0: #2463c9; --s1: #c2410c; --s2: #15803d; --s3: #9333ea; }
@media (prefers-color-scheme: dark) { :root { --bg: #14161a; --fg: #e6e8ec; --dim: #9aa1ad; --grid: #2c3038;
  --card: #1b1e24; --s0: #7aa7f7; --s1: #f59e62; --s2: #6cc98a; --s3: #c79bf5; } }
body { font: 15px/1.5 system-ui, sans-serif; background: var(--bg); color: var(--fg); margin: 0 auto; padding: 2rem;
  max-width: 1180px; }
h1 { font-size: 1.5rem; margin: 0 0 .2rem; } h2 { font-size: 1rem; margin: 0 0 .6rem; } .dim { color: var(--dim); }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: .8rem; margin: 1.4rem 0; }
.tile, section { background: var(--card); border: 1px solid var(--grid); border-radius: 8px; padding: .8rem 1rem; }
.tile b { display: block; font-size: 1.5rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.tile span { color: var(--dim); font-size: .82rem; line-height: 1.25; display: block; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); gap: 1rem;
  margin-bottom: 1rem; align-items: start; }
svg { width: 100%; height: auto; } svg text { fill: var(--dim); font-size: 11px; } .grid { stroke: var(--grid); }
.line { fill: none; stroke-width: 2; } .mark { fill: var(--fg); }
path.s0 { stroke: var(--s0); } path.s1 { stroke: var(--s1); } path.s2 { stroke: var(--s2); } path.s3 { stroke:
var(--s3); } circle.s0, rect.decode { fill: var(--s0); } circle.s1, rect.first { fill: var(--s1); } circle.s2 { fill:
var(--s2); } circle.s3 { fill: var(--s3); } rect.wait { fill: var(--grid); } rect.failed { fill: #d22; }
.keys { margin: .3rem 0 0; } .key { margin-right: 1.2rem; font-size: .85rem; white-space: nowrap; }
.key::before { content: ""; display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .4em; }
.key.s0::before, .key.decode::before { background: var(--s0); } .key.s1::before, .key.first::before { background:
var(--s1); } .key.s2::before { background: var(--s2); } .key.s3::before { background: var(--s3); }
.key.wait::before { background: var(--grid); } .key.failed::before { background: #d22; }
.note { border-left: 3px solid var(--s1); padding-left: .8rem; margin: .4rem 0; }
pre { overflow-x: auto; font-size: .85rem; margin: 0; }
"""


def page(result: Result) -> str:
    """The page; it holds no prompt and no answer."""
    facts = result.as_json()
    title = f"{facts['model_id']} · {facts['profile']}"
    plots = "".join(f"<section><h2>{name}</h2>{plot}</section>" for name, plot in _plots(result) if plot)
    notes = "".join(f'<p class="note">{escape(words)}</p>' for words in result.warnings)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>"
        f'<h1>{escape(title)}</h1><p class="dim">{escape(_subtitle(result))}</p>{notes}'
        f'<div class="tiles">{"".join(_tiles(result))}</div><div class="plots">{plots}</div>'
        f"<section><h2>All figures</h2><pre>{escape(block(result))}</pre></section></body></html>\n"
    )


def _subtitle(result: Result) -> str:
    facts = result.as_json()
    load = f"{facts['request_rate']} requests a second" if facts["request_rate"] != "inf" else ""
    clients = f"at most {facts['max_concurrency']} at once" if facts["max_concurrency"] else ""
    date = facts["date"]
    when = f"{date[:4]}-{date[4:6]}-{date[6:8]} {date[9:11]}:{date[11:13]}"
    words = (str(facts["label"]), f"{facts['num_prompts']} requests", load, clients, f"seed {facts['seed']}", when)
    return " · ".join(word for word in words if word)


def _tiles(result: Result) -> Iterator[str]:
    for key, words, digits, factor in TILES:
        value = result.figures.get(key)
        if isinstance(value, (int, float)):
            yield f'<div class="tile"><b>{value * factor:.{digits}f}</b><span>{words}</span></div>'
    if result.figures["failed"]:
        yield f'<div class="tile"><b>{result.figures["failed"]}</b><span>requests failed</span></div>'


def _plots(result: Result) -> Iterator[tuple[str, str]]:
    if result.steps:
        yield "Latency against load", _load(result, ("median_ttft_ms", "p99_ttft_ms"), ("first token", "p99"))
        tpot = _load(result, ("mean_tpot_ms", "p99_tpot_ms"), ("token after the first", "p99"))
        yield "Token time against load", tpot
    records = [record for record in result.records if record.good]
    found = spreads(records)
    yield "Percentiles, until the answer is there", _curves({name: found[name] for name in ("ttft", "e2el")})
    yield "Percentiles, token by token", _curves({name: found[name] for name in ("tpot", "itl")})
    yield "Over time", _over_time(records)
    yield "Requests", _timeline(result.records, waiting=result.settings["request_rate"] != "inf")


def _load(result: Result, keys: Sequence[str], names: Sequence[str]) -> str:
    marks = [f"{step.concurrency}" for step in result.steps]
    series = [
        Line(
            name=name,
            points=[(step.figures["output_throughput"], step.figures.get(key, 0.0)) for step in result.steps],
            marks=marks if number == 0 else (),
        )
        for number, (key, name) in enumerate(zip(keys, names, strict=True))
    ]
    return lines(series, x="output tokens a second (at the points: clients at once)", y="ms")


def _curves(found: dict[str, Spread]) -> str:
    series = [
        Line(name=NAMES[name], points=[(float(percent), values.at(percent) * 1000) for percent in CURVE])
        for name, values in found.items()
        if values.count
    ]
    return lines(series, x="percentile", y="ms")


def _over_time(records: Sequence[Record]) -> str:
    if not records:
        return ""
    begin = min(record.sent for record in records)
    tokens = per_second((record.sent + at for record in records for at in record.arrivals), begin)
    ends = [(record.sent - begin, record.sent - begin + record.latency) for record in records]
    running = [sum(one < second + 1 and other > second for one, other in ends) for second in range(len(tokens))]
    series = [
        Line(name="tokens in each second", points=[(float(second), float(n)) for second, n in enumerate(tokens)]),
        Line(name="requests running", points=[(float(second), float(n)) for second, n in enumerate(running)]),
    ]
    return lines(series, x="seconds", y="")


def _timeline(records: Sequence[Record], *, waiting: bool) -> str:
    rows = []
    for record in sorted(records, key=lambda one: one.sent)[:MOST_ROWS]:
        if record.good:
            first = record.sent + record.ttft
            row = [(record.sent, first, "first"), (first, record.sent + record.latency, "decode")]
        else:
            row = [(record.sent, record.sent + 0.01, "failed")]
        if waiting and record.waited > LEAST_WAIT:
            row.insert(0, (record.planned, record.sent, "wait"))
        rows.append(row)
    used = {kind for row in rows for _, _, kind in row}
    return spans(rows, x="seconds", names=[(kind, words) for kind, words in KINDS if kind in used])
