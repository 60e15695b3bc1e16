"""A running proxy as one screen of text, from what it says of itself. No I/O: states come in, a frame goes out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

__all__ = ["frame"]

JSON: TypeAlias = Mapping[str, Any]

BOLD, DIM, RED, GREEN, RESET = "\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[32m", "\x1b[0m"
BARS = " ▁▂▃▄▅▆▇█"
SPARKS = 40  # values of a history that are drawn
BAR = 24
CODES = (BOLD, DIM, RED, GREEN, RESET)


def frame(
    state: JSON,
    requests: Sequence[JSON],
    history: Sequence[float],
    *,
    place: str,
    width: int = 100,
    height: int = 30,
    colour: bool = True,
) -> str:
    """A screen of `width` by `height`; `state` and `requests` as in `/velollm/api`, `history` in tokens a second."""
    lines = [*_head(state, history, place), "", *_backends(state), "", *_models(state), ""]
    room = max(height - len(lines) - 2, 3)
    lines += _requests(requests, room)
    text = "\n".join(_cut(line, width) for line in lines[: max(height - 1, 1)])
    if not colour:
        for code in CODES:
            text = text.replace(code, "")
    return text


def _head(state: JSON, history: Sequence[float], place: str) -> Iterator[str]:
    rates = state.get("rates") or {}
    yield f"{BOLD}VeloLLM {state.get('version', '')}{RESET} {place}   up {_span(float(state.get('uptime', 0)))}"
    yield (
        f"running {state.get('running', 0)}   {rates.get('requests_per_second', 0):.2f} requests/s   "
        f"{rates.get('prompt_tokens_per_second', 0):.0f} prompt tokens/s   "
        f"{BOLD}{rates.get('generation_tokens_per_second', 0):.1f} tokens/s{RESET}  {_sparks(history)}"
    )


def _backends(state: JSON) -> Iterator[str]:
    yield f"{DIM}{'backend':<28}{'kind':<12}models{RESET}"
    for one in state.get("backends") or ():
        mark = f"{GREEN}●{RESET}" if one.get("up") else f"{RED}●{RESET}"
        said = _plain(one.get("error") or ", ".join(one.get("models") or ()))
        yield f"{mark} {_plain(one.get('name'))[:25]:<26}{_plain(one.get('kind'))[:11]:<12}{said}"


def _models(state: JSON) -> Iterator[str]:
    names = f"{'run':>4}{'done':>7}{'failed':>7}{'TTFT':>9}{'p99':>8}{'ITL':>8}{'p99':>8}{'hit':>6}"
    yield f"{DIM}{'model':<30}{names}{RESET}"
    for name, one in (state.get("models") or {}).items():
        ttft, itl = one.get("ttft") or {}, one.get("itl") or {}
        asked = one.get("prefix_cache", {}).get("queries", 0)
        hit = f"{one['prefix_cache']['hits'] / asked:.0%}" if asked else "-"
        yield (
            f"{_plain(name)[:29]:<30}{one.get('running', 0):>4}{sum((one.get('finished') or {}).values()):>7}"
            f"{sum((one.get('failed') or {}).values()):>7}{_ms(ttft.get('p50')):>9}{_ms(ttft.get('p99')):>8}"
            f"{_ms(itl.get('p50')):>8}{_ms(itl.get('p99')):>8}{hit:>6}"
        )


def _requests(requests: Sequence[JSON], room: int) -> Iterator[str]:
    yield f"{DIM}{'last requests':<26}{'model':<18}{'tokens':>12}{'first':>9}{'total':>9}{RESET}"
    generations = [one for one in requests if one.get("model")][:room]
    longest = max((one.get("duration_ms", 0) for one in generations), default=0) or 1
    for one in generations:
        first, total = one.get("ttft_ms"), one.get("duration_ms", 0)
        tokens = f"{one.get('prompt_tokens', '-')}>{one.get('completion_tokens', '-')}"
        before = round((first or 0) / longest * BAR)
        bar = "░" * before + "█" * (round(total / longest * BAR) - before)
        bad = one.get("outcome") not in ("ok", None)
        said = f"{RED}{_plain(one.get('outcome'))}{RESET}" if bad else bar
        yield (
            f"{_plain(one.get('path'))[:25]:<26}{_plain(one.get('model'))[:17]:<18}{tokens:>12}"
            f"{'-' if first is None else f'{first:.0f}':>9}{total:>9.0f}  {said}"
        )


def _sparks(history: Sequence[float]) -> str:
    shown = history[-SPARKS:]
    most = max(shown, default=0.0)
    if not most:
        return ""
    return "".join(BARS[round(value / most * (len(BARS) - 1))] for value in shown)


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.0f}"


def _span(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def _plain(value: Any) -> str:
    """A name as others gave it, without what a terminal would obey."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(value or ""))


def _cut(line: str, width: int) -> str:
    """So much of a line as fits, where colours take no room."""
    shown, place = 0, 0
    while place < len(line):
        code = next((code for code in CODES if line.startswith(code, place)), None)
        if code is not None:
            place += len(code)
            continue
        if shown == width:
            rest = "".join(code for code in CODES if code in line[place:] and code == RESET)
            return line[:place] + rest
        shown += 1
        place += 1
    return line
