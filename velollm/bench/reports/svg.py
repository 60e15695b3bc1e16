"""Plots as inline SVG: lines over two axes, and spans over time. Colours are classes, so that the page themes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import attrs

__all__ = ["Line", "lines", "nice", "spans"]

WIDTH, HEIGHT = 560.0, 260.0
LEFT, RIGHT, TOP, BOTTOM = 62.0, 14.0, 12.0, 40.0
ROW, LEAST_ROWS = 7.0, 8


@attrs.frozen(kw_only=True)
class Line:
    """Points (x, y) of one series; `marks` are words at its points."""

    name: str
    points: Sequence[tuple[float, float]]
    marks: Sequence[str] = ()


def nice(highest: float, about: int = 5) -> list[float]:
    """Round ticks from 0 to at least `highest`."""
    if not highest > 0:
        return [0.0, 1.0]
    rough = highest / about
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    return [step * number for number in range(math.ceil(highest / step * 0.999) + 1)]


def lines(series: Sequence[Line], *, x: str, y: str, steps: bool = False) -> str:
    """Lines from the origin; `x` and `y` say what is measured in which unit."""
    points = [point for line in series for point in line.points]
    if not points:
        return ""
    across = nice(max(point[0] for point in points))
    up = nice(max(point[1] for point in points))
    right, top = across[-1], up[-1]

    def place(point: tuple[float, float]) -> tuple[float, float]:
        return (
            LEFT + point[0] / right * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - point[1] / top * (HEIGHT - TOP - BOTTOM),
        )

    parts = [_axes(across, up, x, y)]
    for number, line in enumerate(series):
        placed = [place(point) for point in line.points]
        parts.append(f'<path class="line s{number}" d="{_path(placed, steps)}"/>')
        if len(placed) <= 16:
            parts += [f'<circle class="dot s{number}" cx="{a:.1f}" cy="{b:.1f}" r="3"/>' for a, b in placed]
        for mark, (a, b) in zip(line.marks, placed, strict=False):
            parts.append(f'<text class="mark" x="{a:.1f}" y="{b - 7:.1f}" text-anchor="middle">{escape(mark)}</text>')
    return _figure(WIDTH, HEIGHT, parts, [line.name for line in series])


def spans(rows: Sequence[Sequence[tuple[float, float, str]]], *, x: str, names: Sequence[tuple[str, str]]) -> str:
    """A row for each request, with spans (begin, end, class); `names` are the classes and their words."""
    if not any(rows):
        return ""
    height = TOP + BOTTOM + ROW * max(len(rows), LEAST_ROWS)
    across = nice(max(end for row in rows for _, end, _ in row))
    scale = (WIDTH - LEFT - RIGHT) / across[-1]
    parts = []
    for tick in across:
        a = LEFT + tick * scale
        parts.append(f'<line class="grid" x1="{a:.1f}" x2="{a:.1f}" y1="{TOP}" y2="{height - BOTTOM}"/>')
        parts.append(f'<text x="{a:.1f}" y="{height - BOTTOM + 15:.1f}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.1f}" y="{height - 6:.1f}" text-anchor="middle">{x}</text>')
    for number, row in enumerate(rows):
        top = TOP + number * ROW
        for begin, end, kind in row:
            wide = max((end - begin) * scale, 0.5)
            parts.append(
                f'<rect class="{kind}" x="{LEFT + begin * scale:.1f}" y="{top:.1f}" width="{wide:.1f}" '
                f'height="{ROW - 1.5}"/>'
            )
    kinds = "".join(f'<span class="key {kind}">{escape(words)}</span>' for kind, words in names)
    return _svg(WIDTH, height, parts) + f'<p class="keys">{kinds}</p>'


def _axes(across: Sequence[float], up: Sequence[float], x: str, y: str) -> str:
    parts = []
    for tick in up:
        b = HEIGHT - BOTTOM - tick / up[-1] * (HEIGHT - TOP - BOTTOM)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{b:.1f}" y2="{b:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{b + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in across:
        a = LEFT + tick / across[-1] * (WIDTH - LEFT - RIGHT)
        parts.append(f'<text x="{a:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{tick:g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle:.1f}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x)}</text>')
    half = (HEIGHT - BOTTOM + TOP) / 2
    parts.append(
        f'<text x="14" y="{half}" text-anchor="middle" transform="rotate(-90 14 {half})">{escape(y)}</text>'
    )  # fmt: skip
    return "".join(parts)


def _path(points: Sequence[tuple[float, float]], steps: bool) -> str:
    drawn = f"M{points[0][0]:.1f} {points[0][1]:.1f}" if points else ""
    for a, b in points[1:]:
        drawn += f"H{a:.1f}V{b:.1f}" if steps else f"L{a:.1f} {b:.1f}"
    return drawn


def _figure(width: float, height: float, parts: Sequence[str], names: Sequence[str]) -> str:
    keys = "".join(f'<span class="key s{number}">{escape(name)}</span>' for number, name in enumerate(names))
    return _svg(width, height, parts) + f'<p class="keys">{keys}</p>'


def _svg(width: float, height: float, parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {width:g} {height:g}" role="img">{"".join(parts)}</svg>'
