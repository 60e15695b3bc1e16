"""How many calls come out right, and what that costs: `velollm.toolcalls` beside json_repair with a schema filter.

    python benchmarks/toolcalls.py [--save benchmarks/results/toolcalls]

The cases are made: every family's format (tests/support/toolcall_formats.py), clean and under each kind of damage, and
texts that hold no call to run. json_repair is asked for whatever JSON the text holds, and what comes back counts as a
call if it names a tool and its arguments validate (jsonschema). Times are of one process on this machine, warm; only
their ratios carry over to another one.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import json_repair
import jsonschema

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "toolcalls")]

from support.toolcall_damage import AROUND, CALLS, INSIDE  # noqa: E402
from support.toolcall_formats import FORMATS, TOOLS  # noqa: E402
from test_families import CALLS as CLEAN  # noqa: E402
from test_shapes import NO_CALL, ONE_CALL, X  # noqa: E402

from velollm.toolcalls import StreamFixer, fix  # noqa: E402

Calls = list[tuple[str, dict[str, Any]]]
VALIDATORS = {
    tool["function"]["name"]: jsonschema.Draft202012Validator(tool["function"]["parameters"]) for tool in TOOLS
}


def cases() -> Iterator[tuple[str, str, Calls]]:
    """(group, text, the calls that are meant)."""
    for write in FORMATS.values():
        for calls in CLEAN.values():
            yield "clean", write(calls), list(calls)
        text = write(CALLS)
        for name, damage in AROUND.items():
            yield f"around: {name}", damage(text), list(CALLS)
        for name, damage in INSIDE.items():
            broken = damage(text)
            if broken != text and name != "None for null" and "functions.functions" not in broken:
                yield f"inside: {name}", broken, list(CALLS)
    for text in ONE_CALL:
        yield "other shapes", text, [("read_sensor", X)]
    for text in NO_CALL:
        yield "no call", text, []


def by_velollm(text: str) -> Calls:
    return [(call.name, call.arguments) for call in fix(text, TOOLS).calls]


def by_json_repair(text: str) -> Calls:
    found: Calls = []
    _collect(json_repair.loads(text), found, 0)
    return found


def _collect(value: Any, found: Calls, depth: int) -> None:
    if isinstance(value, list):
        for item in value:
            _collect(item, found, depth + 1)
    elif isinstance(value, dict) and depth < 4:
        name = value.get("name") or value.get("tool_name")
        given = value.get("arguments", value.get("parameters", {}))
        if isinstance(given, str):
            given = json_repair.loads(given)
        if (
            isinstance(name, str)
            and name in VALIDATORS
            and isinstance(given, dict)
            and VALIDATORS[name].is_valid(given)
        ):
            found.append((name, given))


def accuracy(read: Callable[[str], Calls], made: list[tuple[str, str, Calls]]) -> dict[str, Any]:
    groups: dict[str, list[int]] = {}
    false, wrong = 0, 0
    for group, text, meant in made:
        got = read(text)
        groups.setdefault(group, []).append(got == meant)
        false += bool(got and not meant)
        wrong += any(call not in meant for call in got) if meant else 0
    sums = {group: f"{sum(hits)}/{len(hits)}" for group, hits in groups.items()}
    repairable = [hit for group, hits in groups.items() if group not in ("clean", "no call") for hit in hits]
    return {
        "clean": _share(groups["clean"]),
        "repairable": _share(repairable),
        "no_call": _share(groups["no call"]),
        "false_positives": false,
        "answers_with_a_wrong_call": wrong,
        "groups": sums,
    }


def _share(hits: list[int]) -> float:
    return round(sum(hits) / len(hits), 4)


def latency(read: Callable[[str], Any], texts: list[str], rounds: int = 5) -> dict[str, float]:
    """Microseconds a case: of each, the best of `rounds`."""
    best = [1e9] * len(texts)
    for _ in range(rounds):
        for number, text in enumerate(texts):
            began = time.perf_counter_ns()
            read(text)
            best[number] = min(best[number], (time.perf_counter_ns() - began) / 1000)
    return _summary(best)


def _summary(times: list[float]) -> dict[str, float]:
    ordered = sorted(times)
    return {
        "median_us": round(statistics.median(ordered), 1),
        "p99_us": round(ordered[int(len(ordered) * 0.99)], 1),
        "max_us": round(ordered[-1], 1),
    }


def streaming(texts: list[str]) -> dict[str, float]:
    """Microseconds a delta of about four characters, the last one (`finish`) counted as any other."""
    chance = random.Random(0)
    times: list[float] = []
    for _ in range(3):
        for text in texts:
            fixer = StreamFixer(TOOLS)
            pos = 0
            while pos < len(text):
                size = chance.choice((1, 3, 4, 5, 7))
                began = time.perf_counter_ns()
                fixer.feed(text[pos : pos + size])
                times.append((time.perf_counter_ns() - began) / 1000)
                pos += size
            began = time.perf_counter_ns()
            fixer.finish()
            times.append((time.perf_counter_ns() - began) / 1000)
    return _summary(times)


def large() -> dict[str, float]:
    """Milliseconds for 100 KB of broken argument."""
    body = "He said \"no\", then {left}. It's 5 o'clock:\n" * 2300
    text = '<tool_call>{"name": "write_note", "arguments": {"path": "a", "body": "' + body + '",}}</tool_call>'
    assert by_velollm(text) == [("write_note", {"path": "a", "body": body})]
    return {
        "velollm_ms": round(_best(lambda: by_velollm(text)) * 1000, 1),
        "json_repair_ms": round(_best(lambda: by_json_repair(text)) * 1000, 1),
    }


def _best(work: Callable[[], Any]) -> float:
    times = []
    for _ in range(3):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def markdown(report: dict[str, Any]) -> str:
    ours, theirs = report["accuracy"]["velollm"], report["accuracy"]["json_repair"]
    lines = [
        "# Tool calls: what comes out right, and what it costs",
        "",
        f"`python benchmarks/toolcalls.py`, {report['cases']} cases, Python {report['python']}, {report['machine']}.",
        "",
        "| | velollm.toolcalls | json_repair + schema filter |",
        "|---|---|---|",
        f"| clean calls | {ours['clean']:.1%} | {theirs['clean']:.1%} |",
        f"| damaged calls | {ours['repairable']:.1%} | {theirs['repairable']:.1%} |",
        f"| texts without a call to run, left alone | {ours['no_call']:.1%} | {theirs['no_call']:.1%} |",
        f"| answers with a wrong call | {ours['answers_with_a_wrong_call']} | {theirs['answers_with_a_wrong_call']} |",
    ]
    times = report["latency"]
    lines += [
        f"| median a case | {times['velollm']['median_us']} µs | {times['json_repair']['median_us']} µs |",
        f"| p99 a case | {times['velollm']['p99_us']} µs | {times['json_repair']['p99_us']} µs |",
        f"| 100 KB of broken argument | {report['large']['velollm_ms']} ms | {report['large']['json_repair_ms']} ms |",
        f"| a streamed delta, median | {report['streaming']['median_us']} µs | |",
        f"| a streamed delta, p99 | {report['streaming']['p99_us']} µs | |",
        "",
        "## By group",
        "",
        "| group | velollm.toolcalls | json_repair |",
        "|---|---|---|",
    ]
    lines += [f"| {group} | {hits} | {theirs['groups'][group]} |" for group, hits in ours["groups"].items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", type=Path, help="write PATH.json and PATH.md")
    options = parser.parse_args()
    made = list(cases())
    texts = [text for _, text, _ in made]
    readers = {"velollm": by_velollm, "json_repair": by_json_repair}
    report = {
        "cases": len(made),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {platform.system()}",
        "accuracy": {name: accuracy(read, made) for name, read in readers.items()},
        "latency": {name: latency(read, texts) for name, read in readers.items()},
        "streaming": streaming(texts),
        "large": large(),
    }
    print(markdown(report))
    if options.save:
        options.save.with_suffix(".json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
        options.save.with_suffix(".md").write_text(markdown(report))


if __name__ == "__main__":
    main()
