"""The table of `tier_table.py` as Markdown: a row for all depths of one combination."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

Kept = tuple[dict[str, Any], dict[str, Any]]  # what a cell is of, and its report

TIERS = ("L0", "L1", "L2", "L3", "drafts-exact", "base-identical", "cross-backend")
HEADINGS = ("backend", "type", "FA", "KV", "text", *TIERS, "worst KL", "1st draft accepted")


def page_text(cells: Sequence[Kept]) -> str:
    """The table, what ran where, and every place where a tier broke."""
    text = f"{table(cells)}\n{where(cells)}"
    found = [f"- {line}\n" for line in breaks(cells)]
    return "".join((text, "\n", *found)) if found else text


def where(cells: Sequence[Kept]) -> str:
    """The devices that the cells ran on, and the llama.cpp."""
    devices = {
        f"{of['backend']} is {report['settings']['device']}, on prompts of up to "
        f"{of['characters']} characters": None
        for of, report in cells
        if not _why_not(report)
    }
    builds = {
        f"llama.cpp `{of['pin']}` with series `{of['patches'][:12]}`": None
        for of, _ in cells
        if "pin" in of
    }
    return f"Here {'; '.join([*devices, *builds])}.\n"


def breaks(cells: Sequence[Kept]) -> Iterator[str]:
    """Say of each tier that does not hold where it first breaks, and how close the tie was; and
    why cells were refused."""
    refused = Counter(report["refused"] for _, report in cells if "refused" in report)
    yield from (f"{count} cells are refused: {reason}" for reason, count in refused.items())
    for of, report in cells:
        name = (
            f"{of['backend']}, {of['outtype']}, FA {of['flash_attn']}, KV {of['kv_type']}, "
            f"n_max {of['n_max']}"
        )
        if "died" in report:
            yield f"{name}: the process died ({report['died']})"
        for tier in report.get("tiers", ()):
            if tier["holds"] is False:
                yield f"{name}: {tier['tier']}{_first(tier['divergences'])}"


def _first(divergences: Sequence[dict[str, Any]]) -> str:
    if not divergences:
        return " does not hold"
    d = divergences[0]
    text = f" parts at token {d['index']} of {d['prompt']}: {d['what']}"
    if d["margin"] is not None:
        text += f"; margin {d['margin']:.2g}"
        text += "" if d["noise"] is None else f", noise {d['noise']:.2g}"
    return text


def table(cells: Sequence[Kept]) -> str:
    """Lines of Markdown; each cell is what it is of, and its report."""
    rows: dict[tuple[str, ...], dict[int, dict[str, Any]]] = {}
    for of, report in cells:
        text = f"{of['prompts']} x {of['tokens']}"
        key = (of["backend"], of["outtype"], of["flash_attn"], of["kv_type"], text)
        rows.setdefault(key, {})[of["n_max"]] = report
    lines = [f"| {' | '.join(HEADINGS)} |", "|" + "---|" * len(HEADINGS)]
    lines += [f"| {' | '.join((*key, *_row(by_depth)))} |" for key, by_depth in rows.items()]
    return "\n".join(lines) + "\n"


def _row(by_depth: dict[int, dict[str, Any]]) -> list[str]:
    reasons = {_why_not(report) for report in by_depth.values()}
    if len(reasons) == 1 and (reason := reasons.pop()):
        return [reason, *[""] * (len(TIERS) + 1)]
    run = {depth: report for depth, report in by_depth.items() if not _why_not(report)}
    died = [depth for depth in by_depth if depth not in run]
    held = [_held(tier, run, died) for tier in TIERS]
    crosses = [r["cross_backend"]["worst"] for r in run.values() if r.get("cross_backend")]
    worst = f"{max(crosses):.1e}" if crosses else ""
    firsts = [r["acceptance"]["first_accepted"][0] for r in run.values()]
    return [*held, worst, _range([f["hits"] / f["total"] for f in firsts])]


def _why_not(report: dict[str, Any]) -> str:
    if "refused" in report:
        return "refused"
    return "died" if "died" in report else ""


def _held(tier: str, run: dict[int, dict[str, Any]], died: Sequence[int]) -> str:
    """Depths at which a tier holds; in bold those at which it does not."""
    words = {depth: _verdict(tier, report) for depth, report in run.items()}
    words |= dict.fromkeys(died, False)
    parts = []
    if holding := [d for d, holds in words.items() if holds]:
        parts.append(_span(holding))
    if breaking := [d for d, holds in words.items() if holds is False]:
        parts.append(f"**not {_span(breaking)}**")
    return ", ".join(parts) or "-"


def _verdict(tier: str, report: dict[str, Any]) -> bool | None:
    """Whether a tier holds; None where it was not run."""
    return next((t["holds"] for t in report["tiers"] if t["tier"] == tier), None)


def _span(numbers: Sequence[int]) -> str:
    """``1-3, 5`` for 1, 2, 3, 5."""
    spans: list[list[int]] = []
    for n in sorted(numbers):
        if spans and spans[-1][-1] == n - 1:
            spans[-1].append(n)
        else:
            spans.append([n])
    return ", ".join(str(s[0]) if len(s) == 1 else f"{s[0]}-{s[-1]}" for s in spans)


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low}-{high}"
