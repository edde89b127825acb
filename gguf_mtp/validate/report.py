"""What a validation found: as data, as JSON, and as tables for a terminal."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from gguf_mtp.validate.acceptance import Acceptance, Proportion
from gguf_mtp.validate.distribution import Distribution
from gguf_mtp.validate.margins import Bin
from gguf_mtp.validate.reference import Reference
from gguf_mtp.validate.tiers import Divergence, Invariance, Verdict

SCHEMA = "gguf-mtp.validate/1"
SHOWN_DIVERGENCES = 5


@dataclass(frozen=True)
class FileFacts:
    """One input file: what it served as, its name, size in bytes, and SHA-256."""

    role: str
    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Settings:
    """Everything that the figures depend on beside the files."""

    n_max: int
    n_predict: int
    n_ctx: int
    n_threads: int
    kv_type: str
    flash_attn: str  # as asked: auto, on or off
    flash_attn_used: str
    exact: bool
    chat: bool
    quantization: str
    heads_quantization: str
    device: str
    library_version: str
    library_commit: str
    library_patches: str
    library_backend: str
    library_features: str
    bindings_version: str
    repack: bool = True
    temperature: float | None = None
    draws: int = 0  # a place and rule, for L4
    seed: int = 0


@dataclass(frozen=True)
class Speed:
    """Tokens and seconds of decoding (prefill left out), plain and with drafts."""

    plain_tokens: int
    plain_seconds: float
    mtp_tokens: int
    mtp_seconds: float

    @property
    def plain_rate(self) -> float:
        """Tokens a second without drafts; NaN where nothing was decoded."""
        return _rate(self.plain_tokens, self.plain_seconds)

    @property
    def mtp_rate(self) -> float:
        """Tokens a second with drafts; NaN where nothing was decoded."""
        return _rate(self.mtp_tokens, self.mtp_seconds)

    @property
    def ratio(self) -> float:
        """How many times faster decoding is with drafts."""
        return self.mtp_rate / self.plain_rate if self.plain_rate else math.nan


@dataclass(frozen=True)
class PromptFacts:
    """One prompt: sizes in tokens, and how many rounds its output took."""

    id: str
    source: str
    prompt_tokens: int
    output_tokens: int
    rounds: int
    prompt_set: str = ""


@dataclass(frozen=True)
class Report:
    """The outcome of one validation."""

    files: tuple[FileFacts, ...]
    settings: Settings
    verdicts: tuple[Verdict, ...]
    invariance: Invariance | None
    acceptance: Acceptance
    novel: Acceptance
    min_acceptance: float | None
    speed: Speed
    prompts: tuple[PromptFacts, ...]
    distribution: Distribution | None = None
    reference: Reference | None = None
    margins: tuple[Bin, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether every claimed tier holds, and acceptance reaches the floor if one was set."""
        return all(v.holds for v in self.verdicts if v.claimed) and self.accepts_enough is not False

    @property
    def accepts_enough(self) -> bool | None:
        """Whether the first draft is accepted as often as asked; None where nothing was asked."""
        if self.min_acceptance is None:
            return None
        return self.acceptance.first_accepted[0].rate >= self.min_acceptance

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON-ready data; the layout is named by its "schema" key.

        A share that has nothing to be a share of is null.
        """
        return {
            "schema": SCHEMA,
            "holds": self.holds,
            "files": [asdict(facts) for facts in self.files],
            "settings": asdict(self.settings),
            "tiers": [_verdict_json(verdict) for verdict in self.verdicts],
            "batch_invariance": _invariance_json(self.invariance),
            "acceptance": acceptance_json(self.acceptance),
            "acceptance_novel": acceptance_json(self.novel),
            "acceptance_floor": {"asked": self.min_acceptance, "holds": self.accepts_enough},
            "speed": {
                "plain": _speed_json(self.speed.plain_tokens, self.speed.plain_seconds),
                "mtp": _speed_json(self.speed.mtp_tokens, self.speed.mtp_seconds),
                "ratio": _number(self.speed.ratio),
            },
            "prompts": [asdict(facts) for facts in self.prompts],
            "distribution": self.distribution.to_json() if self.distribution else None,
            "reference": self.reference.to_json() if self.reference else None,
            "margins": {"bins": [asdict(found) for found in self.margins]},
        }

    def print(self, console: Console) -> None:
        """Write the report for a person."""
        s = self.settings
        for facts in self.files:
            console.print(
                f"{facts.role:8} {facts.name}  {facts.size:,} bytes  sha256 {facts.sha256[:16]}…",
                highlight=False,
            )
        commit = f" @ {s.library_commit}" if s.library_commit else ""
        console.print(
            f"llama.cpp {s.library_version}{commit}{' (exact kernels)' if s.exact else ''} on "
            f"{s.device}; {s.quantization}, heads {s.heads_quantization}; KV {s.kv_type}, "
            f"flash attention {s.flash_attn_used}, {s.n_threads} thread(s), n_max {s.n_max}",
            highlight=False,
        )
        console.print(_tier_table(self.verdicts))
        self._print_divergences(console)
        if self.invariance is not None:
            console.print(_invariance_line(self.invariance), highlight=False)
        console.print(_acceptance_table(self.acceptance, self.novel))
        a, speed = self.acceptance, self.speed
        if a.rounds:
            console.print(
                f"drafting {1e3 * a.draft_seconds / a.rounds:.2f} ms, verifying "
                f"{1e3 * a.verify_seconds / a.rounds:.2f} ms a round; "
                f"plain {speed.plain_rate:.1f}, with MTP {speed.mtp_rate:.1f} tokens/s: "
                f"{speed.ratio:.2f}x",
                highlight=False,
            )
        if self.accepts_enough is not None:
            word = "reached" if self.accepts_enough else "NOT reached"
            console.print(f"acceptance floor {self.min_acceptance:g} {word}", highlight=False)
        console.print("[bold green]holds[/]" if self.holds else "[bold red]does not hold[/]")

    def _print_divergences(self, console: Console) -> None:
        for verdict in self.verdicts:
            for d in verdict.divergences[:SHOWN_DIVERGENCES]:
                tokens = "" if d.expected == d.found else f" {_tokens(d)}"
                gap = "" if d.margin is None else f" ({_gap(d.margin, d.noise)})"
                console.print(
                    f"  {verdict.tier}: {d.prompt} at {d.index}: {d.what}{tokens}{gap}",
                    highlight=False,
                    markup=False,
                )
            hidden = len(verdict.divergences) - SHOWN_DIVERGENCES
            if hidden > 0:
                console.print(f"  {verdict.tier}: and {hidden} more (--json has all)")


def _tokens(d: Divergence) -> str:
    expected, found = (
        f"{token}" if text is None else f"{token} {text!r}"
        for token, text in ((d.expected, d.expected_text), (d.found, d.found_text))
    )
    return f"expected {expected}, got {found}"


def _gap(margin: float, noise: float | None) -> str:
    text = f"top-2 margin {margin:.3g}"
    return text if noise is None else f"{text}, noise {noise:.3g}"


def _tier_table(verdicts: tuple[Verdict, ...]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("tier", no_wrap=True)
    for heading in ("verdict", "", "prompts", "95 %", "tokens", "compared"):
        table.add_column(heading)
    for v in verdicts:
        if v.holds is None:
            word, share, interval = "not run", "", ""
        else:
            word = "holds" if v.holds else "BREAKS"
            share = f"{v.matching.hits}/{v.matching.total}"
            interval = "{:.2f}-{:.2f}".format(*v.matching.interval)
        colour = {"holds": "green", "BREAKS": "red" if v.claimed else "yellow"}.get(word, "dim")
        table.add_row(
            v.tier,
            f"[{colour}]{word}[/]",
            "claimed" if v.claimed else "reported",
            share,
            interval,
            str(v.tokens) if v.holds is not None else "",
            v.note,
        )
    return table


def _acceptance_table(everything: Acceptance, novel: Acceptance) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("first k accepted")
    for k in range(1, len(everything.first_accepted) + 1):
        table.add_column(f"k={k}")
    table.add_column("tokens/pass")
    table.add_column("rounds")
    for name, a in (("all rounds", everything), ("novel 4-grams", novel)):
        shares = [_share(p) for p in a.first_accepted]
        table.add_row(name, *shares, _fixed(a.tokens_per_pass), str(a.rounds))
    return table


def _invariance_line(invariance: Invariance) -> str:
    equal = invariance.equal
    text = f"logits rows that are the same at width 1 and {invariance.width}: "
    text += f"{equal.hits}/{equal.total}"
    return text if invariance.holds else f"{text}, largest shift between two {invariance.noise:.3g}"


def _share(p: Proportion) -> str:
    if not p.total:
        return "-"
    return f"{p.rate:.3f}"


def _fixed(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def _rate(tokens: int, seconds: float) -> float:
    return tokens / seconds if seconds > 0 else math.nan


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _proportion_json(p: Proportion) -> dict[str, Any]:
    return {
        "hits": p.hits,
        "total": p.total,
        "rate": _number(p.rate),
        "interval": list(p.interval),
    }


def _verdict_json(v: Verdict) -> dict[str, Any]:
    return {
        "tier": v.tier,
        "claimed": v.claimed,
        "holds": v.holds,
        "prompts": _proportion_json(v.matching),
        "tokens": v.tokens,
        "divergences": [asdict(d) for d in v.divergences],
        "note": v.note,
    }


def _invariance_json(invariance: Invariance | None) -> dict[str, Any] | None:
    if invariance is None:
        return None
    return {
        "width": invariance.width,
        "rows": _proportion_json(invariance.equal),
        "holds": invariance.holds,
        "noise": invariance.noise,
        "noise_by_prompt": list(invariance.by_prompt),
    }


def acceptance_json(a: Acceptance) -> dict[str, Any]:
    return {
        "rounds": a.rounds,
        "tokens": a.tokens,
        "tokens_per_pass": _number(a.tokens_per_pass),
        "first_accepted": [_proportion_json(p) for p in a.first_accepted],
        "draft_seconds": a.draft_seconds,
        "verify_seconds": a.verify_seconds,
    }


def _speed_json(tokens: int, seconds: float) -> dict[str, Any]:
    return {
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": _number(_rate(tokens, seconds)),
    }
