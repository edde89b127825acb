"""The page of a benchmark: what its template is given, made from the saved JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from markupsafe import Markup

from gguf_mtp.errors import FormatError
from gguf_mtp.report import charts, common
from gguf_mtp.report.node import Node

SCHEMA = "gguf-mtp.bench/1"
MAX_TASKS = 50
DRAWN_TASKS = 3  # more lines than that in one chart cannot be told apart


@dataclass(frozen=True)
class Spread:
    """The middle of some repetitions, and the lowest and highest."""

    middle: float
    low: float
    high: float

    def text(self, decimals: int | None = None) -> str:
        """All three, with three digits or with `decimals`; one alone where they are the same."""
        middle, low, high = (
            common.number(value) if decimals is None else f"{value:.{decimals}f}"
            for value in (self.middle, self.low, self.high)
        )
        return middle if low == high else f"{middle} ({low}-{high})"


@dataclass(frozen=True)
class Depth:
    """One depth of drafting; 0 is plain decoding."""

    n: int
    rate: Spread
    ratio: Spread | None
    tokens_per_pass: float | None
    draft_ms: Spread
    verify_ms: Spread
    expected: float | None


def view(document: Node) -> dict[str, Any]:
    """What templates/bench.html shows. Raises FormatError naming the field that is wrong."""
    depths = [_depth(node) for node in document.children("depths")[: common.MAX_DEPTH + 1]]
    plain = next((depth for depth in depths if depth.n == 0), None)
    if plain is None:
        raise FormatError(f"{document.where}.depths: none is 0, plain decoding")
    settings = document.child("settings")
    tasks = [
        (
            common.drafts(node.child("acceptance"), node.text("task")),
            node.integer("prompts"),
        )
        for node in document.children("tasks")[:MAX_TASKS]
    ]
    everything = common.drafts(document.child("acceptance"), "all")
    advice = document.maybe_child("advice")
    drawn = [task for task, _ in tasks[:DRAWN_TASKS]] if 1 < len(tasks) <= DRAWN_TASKS else None
    n_prompts = sum(prompts for _, prompts in tasks)
    if len(tasks) > 1:
        tasks.append((everything, n_prompts))
    return {
        "kind": "bench",
        "name": ", ".join(f["name"] for f in common.files(document)[:1]),
        "headline": "how fast with drafts" if advice is None else f"MTP {advice.text('verdict')}",
        "advice": None if advice is None else _advice(advice),
        "device": settings.text("device"),
        "n_prompts": n_prompts,
        "repetitions": document.integer("repetitions"),
        "n_predict": settings.integer("n_predict"),
        "plain": plain,
        "depths": depths,
        "fastest": max(depths, key=lambda depth: depth.rate.middle),
        "rate_chart": _rate_chart(depths, plain),
        "cost_chart": _cost_chart(depths),
        "tasks": tasks,
        "n_first": range(1, max((len(task.first) for task, _ in tasks), default=0) + 1),
        "acceptance_chart": common.acceptance_chart(drawn or [everything]),
        "confidence_chart": None if advice is None else _confidence_chart(advice),
        "files": common.files(document),
        "settings": common.settings(document),
        "command": common.command(document),
    }


def _depth(node: Node) -> Depth:
    ratios = node.maybe_numbers("ratios")
    return Depth(
        n=node.integer("n"),
        rate=_spread(node, "rates"),
        ratio=None if not ratios else Spread(median(ratios), min(ratios), max(ratios)),
        tokens_per_pass=node.maybe_number("tokens_per_pass"),
        draft_ms=_spread(node, "draft_ms"),
        verify_ms=_spread(node, "verify_ms"),
        expected=node.maybe_number("expected_rate"),
    )


def _spread(node: Node, key: str) -> Spread:
    values = node.numbers(key)
    if not values:
        raise FormatError(f"{node.where}.{key}: empty, expected a number for each repetition")
    return Spread(median(values), min(values), max(values))


def _advice(node: Node) -> dict[str, Any]:
    return {
        "verdict": node.text("verdict"),
        "n_max": node.integer("n_max"),
        "p_min": node.number("p_min"),
        "rate": node.number("rate"),
        "ratio": node.number("ratio"),
        "text": node.text("text"),
    }


def _rate_chart(depths: Sequence[Depth], plain: Depth) -> Markup:
    drafting = [depth for depth in depths if depth.n]
    series = [
        charts.Series(
            "measured",
            [charts.Point(d.n, d.rate.middle, d.rate.low, d.rate.high) for d in drafting],
            1,
        )
    ]
    expected = [charts.Point(d.n, d.expected) for d in drafting if d.expected is not None]
    if expected:
        series.append(charts.Series("expected from its parts", expected, 3, dashed=True))
    highest = max([d.rate.high for d in depths] + [point.y for point in expected])
    return charts.lines(
        "Tokens a second by drafting depth",
        charts.whole_numbers("drafted tokens a round", max((d.n for d in drafting), default=1)),
        charts.from_zero("tokens/s", highest),
        series,
        [charts.Level("without drafts", plain.rate.middle)],
    )


def _cost_chart(depths: Sequence[Depth]) -> Markup:
    def points(of: Sequence[tuple[float, Spread]]) -> list[charts.Point]:
        return [charts.Point(x, s.middle, s.low, s.high) for x, s in of]

    verifying = points([(d.n + 1, d.verify_ms) for d in depths])
    drafting = points([(d.n + 1, d.draft_ms) for d in depths if d.n])
    highest = max(point.high or 0.0 for point in verifying + drafting)
    return charts.lines(
        "Milliseconds of a round by how many tokens the model scores at once",
        charts.whole_numbers("tokens scored at once", max(d.n for d in depths) + 1),
        charts.from_zero("milliseconds", highest),
        [charts.Series("checking", verifying, 1), charts.Series("drafting", drafting, 2)],
    )


def _confidence_chart(advice: Node) -> Markup | None:
    """Expected speed by the drafter's confidence below which drafting stops, at the best depth."""
    n_max, best = advice.integer("n_max"), advice.number("p_min")
    points = [
        charts.Point(node.number("p_min"), node.number("rate"))
        for node in advice.maybe_children("settings")
        if node.integer("n_max") == n_max
    ]
    if len(points) < 2:
        return None
    ticks = [(i / 5, f"{i / 5:.1f}") for i in range(6)]
    at = [point for point in points if point.x == best]
    series = [charts.Series(f"{n_max} drafted at most", points, 1, dashed=True)]
    if at:
        series.append(charts.Series("advised", at, 2))
    return charts.lines(
        "Expected tokens a second by the confidence below which drafting stops",
        charts.Axis("stop where the drafter is less sure than", 0.0, 1.0, ticks),
        charts.from_zero("tokens/s, expected", max(point.y for point in points)),
        series,
    )
