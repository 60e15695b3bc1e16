"""Results in files: JSON as vLLM has it, JSON lines, a row for each request, a table to paste."""

from __future__ import annotations

import csv
import io
import os
import tempfile
from pathlib import Path

import orjson

from velollm.bench.reports.block import METRICS, sweep_table
from velollm.bench.result import Result
from velollm.errors import ConfigError

__all__ = ["FORMATS", "as_csv", "as_markdown", "check_place", "check_writable", "save", "write"]

FORMATS = {".json": "json", ".jsonl": "jsonl", ".csv": "csv", ".md": "markdown", ".markdown": "markdown"}
FIGURES = (
    ("request_throughput", "Requests a second"),
    ("output_throughput", "Output tokens a second"),
    ("input_sequence_throughput", "Inputs a second"),
    ("total_token_throughput", "All tokens a second"),
    ("request_goodput", "Goodput, requests a second"),
    ("prefix_cache_hit_rate", "Share of prompt tokens from the prefix cache"),
)
COLUMNS = ("number", "group", "start_s", "queued_s", "ttft_ms", "tpot_ms", "e2el_ms", "prompt_tokens", "output_tokens",
           "cached_tokens", "finish", "error")  # fmt: skip


def check_place(path: Path) -> None:
    """Raises `ConfigError` when a result cannot be saved there, before a long run is made for nothing."""
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"--save {path}: the suffix says the form: {', '.join(FORMATS)}")
    check_writable("--save", path)


def check_writable(flag: str, path: Path) -> None:
    """Raises `ConfigError` when the file that `flag` names cannot be written."""
    if not path.parent.is_dir():
        raise ConfigError(f"{flag} {path}: there is no folder {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigError(f"{flag} {path}: it may not be written")


def save(result: Result, path: Path) -> None:
    """Write `result` in the form that the suffix says; JSON lines are added to what is there.

    Raises `ConfigError` when it cannot be written.
    """
    form = FORMATS[path.suffix.lower()]
    if form == "jsonl":
        try:
            with path.open("ab") as file:
                file.write(orjson.dumps(result.as_json(details=True)) + b"\n")
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error.strerror}") from error
        return
    if form == "json":
        text = orjson.dumps(result.as_json(details=True), option=orjson.OPT_INDENT_2).decode() + "\n"
    else:
        text = as_csv(result) if form == "csv" else as_markdown(result)
    write(path, text)


def write(path: Path, text: str) -> None:
    """Replace a file whole. Raises `ConfigError` when that is not possible."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            Path(name).chmod(path.stat().st_mode & 0o777 if path.exists() else 0o644)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error


def as_csv(result: Result) -> str:
    """A row for each request."""
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(COLUMNS)
    for one in result.records:
        tpot = one.tpot
        rows.writerow(
            (one.number, one.group, round(one.sent, 6), round(one.waited, 6), round(one.ttft * 1000, 3),
             "" if tpot is None else round(tpot * 1000, 3), round(one.latency * 1000, 3), one.prompt_tokens,
             one.output_tokens, "" if one.cached_tokens is None else one.cached_tokens, one.finish, one.error)
        )  # fmt: skip
    return out.getvalue()


def as_markdown(result: Result) -> str:
    """The figures as tables to paste into an issue."""
    facts = result.as_json()
    load = f"{facts['request_rate']} requests a second" if facts["request_rate"] != "inf" else ""
    clients = f"{facts['max_concurrency']} clients" if facts["max_concurrency"] else ""
    head = ", ".join(word for word in (facts["model_id"], facts["profile"], clients, load) if word)
    lines = [f"**{head}**: {facts['completed']} of {facts['completed'] + facts['failed']} answered", ""]
    if result.steps:
        lines += ["```", sweep_table(result.steps), "```", ""]
    lines += ["| | |", "|---|--:|"]
    lines += [f"| {words} | {facts[key]:.2f} |" for key, words in FIGURES if isinstance(facts.get(key), (int, float))]
    shown = [name for name in ("mean", "median", "p90", "p95", "p99") if f"{name}_e2el_ms" in facts]
    lines += ["", f"| ms | {' | '.join(shown)} |", f"|---|{'--:|' * len(shown)}"]
    for name, short, _ in METRICS:
        if f"mean_{name}_ms" in facts:
            cells = [f"{facts[f'{one}_{name}_ms']:.1f}" for one in shown]
            lines.append(f"| {short} | {' | '.join(cells)} |")
    lines += ["", *(f"- {words}" for words in result.warnings)]
    return "\n".join(lines).rstrip() + "\n"
