"""What both kinds of page are made of: shares, files, settings, acceptance by depth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from gguf_mtp.report import charts
from gguf_mtp.report.node import Node

MAX_DEPTH = 64  # drafts a round that are drawn; no library takes as many
SETTINGS = {
    "quantization": "base's number type",
    "heads_quantization": "heads' number type",
    "device": "device",
    "n_max": "tokens drafted a round",
    "n_predict": "tokens decoded a prompt",
    "n_ctx": "context",
    "n_threads": "threads",
    "kv_type": "KV cache",
    "flash_attn": "flash attention asked",
    "flash_attn_used": "flash attention used",
    "exact": "batch-invariant kernels",
    "chat": "chat markup",
    "temperature": "temperature",
    "repack": "repacked weights",
    "seed": "seed",
    "draws": "draws",
    "library_version": "llama.cpp",
    "library_commit": "llama.cpp commit",
    "library_patches": "patches (SHA-256)",
    "library_backend": "backend",
    "library_features": "library features",
    "bindings_version": "llama-cpp-python",
}
MADE = {
    "gguf_mtp": "gguf-mtp",
    "python": "Python",
    "platform": "system",
    "cpus": "CPUs",
    "when": "when (UTC)",
}


@dataclass(frozen=True)
class Share:
    """Hits of a total, with an interval."""

    hits: int
    total: int
    rate: float | None
    low: float
    high: float

    @property
    def text(self) -> str:
        return f"{self.hits} of {self.total}"

    @property
    def percent(self) -> str:
        return "-" if self.rate is None else f"{100 * self.rate:.1f} %"

    @property
    def interval(self) -> str:
        return f"{100 * self.low:.0f}-{100 * self.high:.0f} %" if self.total else "-"


@dataclass(frozen=True)
class Drafts:
    """What became of drafts: `first[k - 1]` is the share of rounds whose first k all stood."""

    name: str
    rounds: int
    tokens_per_pass: float | None
    first: Sequence[Share]


def share(node: Node) -> Share:
    interval = node.numbers("interval")
    low, high = (interval[0], interval[-1]) if len(interval) == 2 else (0.0, 1.0)
    return Share(node.integer("hits"), node.integer("total"), node.maybe_number("rate"), low, high)


def drafts(node: Node, name: str) -> Drafts:
    return Drafts(
        name=name,
        rounds=node.integer("rounds"),
        tokens_per_pass=node.maybe_number("tokens_per_pass"),
        first=[share(item) for item in node.children("first_accepted")[:MAX_DEPTH]],
    )


def acceptance_chart(series: Sequence[Drafts]) -> Markup | None:
    """How many drafts stand, by depth; None where nothing was drafted."""
    drawn = [
        charts.Series(
            one.name,
            [
                charts.Point(k, s.rate, s.low, s.high)
                for k, s in enumerate(one.first, start=1)
                if s.rate is not None
            ],
            style=1 + i % 3,
        )
        for i, one in enumerate(series)
    ]
    drawn = [one for one in drawn if one.points]
    if not drawn:
        return None
    deepest = max(len(one.first) for one in series)
    return charts.lines(
        "Share of rounds in which the first k drafted tokens were all accepted, by k",
        charts.whole_numbers("drafted tokens k", deepest),
        charts.shares("first k all accepted"),
        drawn,
    )


def files(document: Node) -> list[dict[str, str]]:
    return [
        {
            "role": f.text("role"),
            "name": f.text("name"),
            "size": f"{f.integer('size'):,}",
            "sha256": f.text("sha256"),
        }
        for f in document.children("files")
    ]


def settings(document: Node) -> list[tuple[str, str]]:
    """Every setting under its name in words; one that has none keeps its own."""
    made = document.maybe_child("made")
    rows = [] if made is None else [(MADE[k], v) for k, v in made.scalars() if k in MADE]
    found = dict(document.child("settings").scalars())
    known = [(name, found.pop(key)) for key, name in SETTINGS.items() if key in found]
    return rows + [(k, v) for k, v in known + list(found.items()) if v not in ("", "-")]


def command(document: Node) -> str | None:
    made = document.maybe_child("made")
    return None if made is None else made.maybe_text("command")


def number(value: float | None, digits: int = 3) -> str:
    if value is None or math.isnan(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"


def counted(n: int, noun: str) -> str:
    """``1 prompt``, ``2 prompts``."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}×"  # noqa: RUF001


def visible(text: str | None) -> str:
    """A token's text with white space and control characters made visible."""
    if text is None:
        return ""
    shown = text.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥")
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in shown[:60])
