"""Small charts as SVG: axes, lines with intervals, bars. Colours come from the page's CSS.

Written by hand because a page must need nothing: no script, no font, no plotting library.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 460, 260
LEFT, RIGHT, TOP, BOTTOM = 64, 14, 14, 42


@dataclass(frozen=True)
class Point:
    """A value at `x`, with the ends of its interval where it has one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """Points under one name. `style` is 1..4, a colour and a mark; dashed lines are estimates."""

    name: str
    points: Sequence[Point]
    style: int = 1
    dashed: bool = False


@dataclass(frozen=True)
class Level:
    """A value to compare with, drawn across the chart."""

    name: str
    value: float


@dataclass(frozen=True)
class Axis:
    """What is on an axis, and the values that get a tick with their text."""

    label: str
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]


def lines(
    title: str, x: Axis, y: Axis, series: Sequence[Series], levels: Sequence[Level] = ()
) -> Markup:
    """A chart of lines; `title` is what a screen reader says, names go into a legend."""
    frame = _Frame(x, y)
    parts = [frame.axes()]
    parts += [frame.across(level) for level in levels]
    for one in series:
        parts.append(frame.line(one))
    names = [_Name(one.name, f"line s{one.style}", one.dashed) for one in series]
    names += [_Name(level.name, "level") for level in levels]
    return _figure(title, Markup("").join(parts), names)


def bars(
    title: str,
    x: Axis,
    y: Axis,
    counts: Sequence[tuple[float, float, float]],
    levels: Sequence[Level] = (),
    marks: Series | None = None,
) -> Markup:
    """A histogram: each of `counts` is (from, to, height).

    `levels` stand upright at their x; `marks` are crosses at theirs.
    """
    frame = _Frame(x, y)
    parts = [frame.axes()]
    for low, high, count in counts:
        left, right, top = frame.x(low), frame.x(high), frame.y(count)
        parts.append(
            Markup('<rect class="bar" x="{}" y="{}" width="{}" height="{}"/>').format(
                _n(left + 0.5), _n(top), _n(max(0.5, right - left - 1)), _n(frame.y(y.low) - top)
            )
        )
    for level in levels:
        at = _n(frame.x(level.value))
        parts.append(Markup('<path class="level" d="M{} {}V{}"/>').format(at, TOP, HEIGHT - BOTTOM))
    names = [_Name(level.name, "level") for level in levels]
    if marks is not None:
        parts += [
            _mark(f"s{marks.style}", 4, frame.x(p.x), frame.y(p.y), marks.name)
            for p in marks.points
        ]
        names.append(_Name(marks.name, f"mark mark4 s{marks.style}", cross=True))
    return _figure(title, Markup("").join(parts), names)


def whole_numbers(label: str, last: int, first: int = 1) -> Axis:
    """An axis of the integers `first`..`last`, with room at both ends."""
    step = max(1, -(-(last - first + 1) // 16))
    ticks = [(float(i), str(i)) for i in range(first, last + 1, step)]
    return Axis(label, first - 0.4, last + 0.4, ticks)


def shares(label: str) -> Axis:
    """An axis from 0 to 100 %."""
    return Axis(label, 0.0, 1.0, [(i / 4, f"{25 * i} %") for i in range(5)])


def from_zero(label: str, largest: float) -> Axis:
    """An axis from 0 to a round number that is at least `largest`."""
    if not 1e-300 < largest < 1e300:
        return Axis(label, 0.0, 1.0, [(0.0, "0"), (1.0, "1")])
    step = _round_step(largest / 4)
    count = max(1, math.ceil(largest / step - 1e-9))
    return Axis(label, 0.0, count * step, [(i * step, f"{i * step:.4g}") for i in range(count + 1)])


def powers_of_ten(label: str, first: int, last: int) -> Axis:
    """An axis of logarithms: its values are exponents, `first` < `last`."""
    step = max(1, -(-(last - first) // 6))
    ticks = [(float(e), f"{10.0**e:g}") for e in range(first, last + 1, step)]
    return Axis(label, first, last, ticks)


def _round_step(rough: float) -> float:
    scale: float = 10.0 ** math.floor(math.log10(rough))
    return next(scale * s for s in (1.0, 2.0, 2.5, 5.0, 10.0) if scale * s >= rough * (1 - 1e-9))


class _Frame:
    """Values to places on the canvas."""

    def __init__(self, x: Axis, y: Axis) -> None:
        self._x, self._y = x, y
        self.x = _scale(x, LEFT, WIDTH - RIGHT)
        self.y = _scale(y, HEIGHT - BOTTOM, TOP)

    def axes(self) -> Markup:
        bottom = HEIGHT - BOTTOM
        parts = []
        for value, text in self._y.ticks:
            at = self.y(value)
            parts.append(
                Markup('<path class="grid" d="M{} {}H{}"/>').format(LEFT, _n(at), WIDTH - RIGHT)
            )
            parts.append(
                Markup('<text class="tick end" x="{}" y="{}">{}</text>').format(
                    LEFT - 7, _n(at + 4), text
                )
            )
        for value, text in self._x.ticks:
            parts.append(
                Markup('<text class="tick" x="{}" y="{}">{}</text>').format(
                    _n(self.x(value)), bottom + 17, text
                )
            )
        parts.append(
            Markup('<path class="axis" d="M{} {}H{}"/>').format(LEFT, bottom, WIDTH - RIGHT)
        )
        middle = (LEFT + WIDTH - RIGHT) / 2
        parts.append(
            Markup('<text class="label" x="{}" y="{}">{}</text>').format(
                _n(middle), HEIGHT - 6, self._x.label
            )
        )
        middle = (TOP + bottom) / 2
        parts.append(
            Markup('<text class="label" transform="translate(12 {}) rotate(-90)">{}</text>').format(
                _n(middle), self._y.label
            )
        )
        return Markup("").join(parts)

    def line(self, series: Series) -> Markup:
        places = [(self.x(p.x), self.y(p.y)) for p in series.points]
        style = f"s{series.style}" + (" dashed" if series.dashed else "")
        path = "L".join(f"{_n(x)} {_n(y)}" for x, y in places)
        parts = [Markup('<path class="line {}" d="M{}"/>').format(style, path)] if path else []
        for p, (x, y) in zip(series.points, places, strict=True):
            text = f"{series.name}: {p.y:.4g}"
            if p.low is not None and p.high is not None:
                text += f" ({p.low:.4g} to {p.high:.4g})"
                low, high = _n(self.y(p.low)), _n(self.y(p.high))
                parts.append(
                    Markup('<path class="whisker {}" d="M{x} {}V{}"/>').format(
                        style, low, high, x=_n(x)
                    )
                )
            if not series.dashed:
                parts.append(_mark(style, series.style, x, y, text))
        return Markup("").join(parts)

    def across(self, level: Level) -> Markup:
        return Markup('<path class="level" d="M{} {}H{}"/>').format(
            LEFT, _n(self.y(level.value)), WIDTH - RIGHT
        )


def _scale(axis: Axis, start: float, end: float) -> Callable[[float], float]:
    """Values of an axis to places; what lies outside stays at its end."""

    def place(value: float) -> float:
        share = (value - axis.low) / (axis.high - axis.low)
        return start + min(1.0, max(0.0, share)) * (end - start)

    return place


# Marks differ in shape too: colours are lost in print and to some eyes.
MARKS = {
    1: "M-4 0A4 4 0 1 0 4 0A4 4 0 1 0 -4 0Z",
    2: "M-3.5 -3.5H3.5V3.5H-3.5Z",
    3: "M0 -4.8L4.8 0L0 4.8L-4.8 0Z",
    4: "M-4.5 -4.5L4.5 4.5M-4.5 4.5L4.5 -4.5",
}


def _mark(style: str, shape: int, x: float, y: float, text: str) -> Markup:
    return Markup(
        '<path class="mark {} mark{shape}" transform="translate({} {})" d="{}">'
        "<title>{}</title></path>"
    ).format(style, _n(x), _n(y), MARKS[shape], text, shape=shape)


@dataclass(frozen=True)
class _Name:
    """An entry of a legend: a piece of line, or a cross."""

    text: str
    style: str
    dashed: bool = False
    cross: bool = False


def _figure(title: str, body: Markup, names: Sequence[_Name]) -> Markup:
    entry = Markup(
        '<li><svg viewBox="0 0 24 12" aria-hidden="true"><path class="{}" d="{}"/></svg>{}</li>'
    )
    legend = Markup("").join(
        entry.format(
            name.style + (" dashed" if name.dashed else ""),
            "M8 2L16 10M8 10L16 2" if name.cross else "M1 6H23",
            name.text,
        )
        for name in names
    )
    return Markup(
        '<svg class="chart" viewBox="0 0 {w} {h}" role="img" aria-label="{t}">{body}</svg>'
        '<ul class="legend">{legend}</ul>'
    ).format(w=WIDTH, h=HEIGHT, t=escape(title), body=body, legend=legend)


def _n(value: float) -> str:
    return f"{value:.1f}"
