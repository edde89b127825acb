"""The page of a validation: what its template is given, made from the saved JSON."""

from __future__ import annotations

import math
from typing import Any

from markupsafe import Markup

from gguf_mtp.report import charts, common
from gguf_mtp.report.node import Node
from gguf_mtp.report.words import words

SCHEMA = "gguf-mtp.validate/1"
MAX_DIVERGENCES = 100
MAX_PROMPTS = 2000
LOWEST, HIGHEST = -12, 12  # powers of ten that a margin is drawn between


def view(document: Node) -> dict[str, Any]:
    """What templates/validate.html shows. Raises FormatError naming the field that is wrong."""
    tiers = [_tier(t) for t in document.children("tiers")]
    everything = common.drafts(document.child("acceptance"), "all rounds")
    novel = common.drafts(document.child("acceptance_novel"), "where the text is new")
    prompts = document.children("prompts")
    speed = document.child("speed")
    settings = document.child("settings")
    floor = document.maybe_child("acceptance_floor")
    invariance = document.maybe_child("batch_invariance")
    holds = document.flag("holds")
    return {
        "kind": "validate",
        "name": ", ".join(f["name"] for f in common.files(document)[:1]),
        "holds": holds,
        "headline": _headline(holds, tiers),
        "n_prompts": len(prompts),
        "n_tokens": sum(p.integer("output_tokens") for p in prompts),
        "device": settings.text("device"),
        "backend": document.maybe_text("backend"),
        "not_tested": _not_tested(document.maybe_child("not_tested")),
        "cross": _cross(document.maybe_child("cross_backend")),
        "n_max": settings.integer("n_max"),
        "quantization": settings.text("quantization"),
        "tiers": tiers,
        "divergences": [d for t in tiers for d in t["divergences"]][:MAX_DIVERGENCES],
        "n_divergences": sum(len(t["divergences"]) for t in tiers),
        "drafts": [everything, novel],
        "floor": None if floor is None else floor.maybe_number("asked"),
        "floor_holds": None if floor is None else floor.maybe_flag("holds"),
        "acceptance_chart": common.acceptance_chart([everything, novel]),
        "invariance": None if invariance is None else _invariance(invariance),
        "margin_chart": _margin_chart(document, tiers, invariance),
        "plain_rate": _rate(speed.child("plain")),
        "mtp_rate": _rate(speed.child("mtp")),
        "ratio": speed.maybe_number("ratio"),
        "depth_chart": _depth_chart(everything),
        "sampling": _sampling(document.maybe_child("distribution")),
        "reference": _reference(document.maybe_child("reference")),
        "prompts": [_prompt(p) for p in prompts[:MAX_PROMPTS]],
        "files": common.files(document),
        "settings": common.settings(document),
        "command": common.command(document),
    }


def _headline(holds: bool, tiers: list[dict[str, Any]]) -> str:
    claimed = [t["name"] for t in tiers if t["claimed"]]
    broken = [t["name"] for t in tiers if t["claimed"] and not t["holds"]]
    if broken:
        return f"Claimed, and does not hold: {', '.join(broken)}"
    if not holds:
        return "Drafts were accepted less often than asked"
    return f"Everything claimed holds: {', '.join(claimed)}" if claimed else "Nothing was claimed"


def _not_tested(node: Node | None) -> list[tuple[str, str]]:
    """Backends that were left out, and why."""
    return [] if node is None else node.scalars()


def _tier(node: Node) -> dict[str, Any]:
    name, holds = node.text("tier"), node.maybe_flag("holds")
    prompts = common.share(node.child("prompts"))
    return {
        "name": name,
        "title": words(name).title,
        "text": words(name).text,
        "claimed": node.flag("claimed"),
        "holds": holds,
        "verdict": "not tested" if holds is None else "holds" if holds else "breaks",
        "prompts": prompts,
        "units": words(name).units,
        "tokens": node.integer("tokens"),
        "note": node.text("note"),
        "divergences": [_divergence(name, d) for d in node.children("divergences")],
    }


def _divergence(tier: str, node: Node) -> dict[str, Any]:
    margin, noise = node.maybe_number("margin"), node.maybe_number("noise")
    return {
        "tier": tier,
        "prompt": node.text("prompt"),
        "index": node.integer("index"),
        "what": node.text("what"),
        "expected": _token(node, "expected"),
        "found": _token(node, "found"),
        "margin": margin,
        "noise": noise,
        "tie": None if margin is None or noise is None else margin <= noise,
    }


def _token(node: Node, key: str) -> str:
    token, text = node.maybe_integer(key), node.maybe_text(f"{key}_text")
    if token is None:
        return "(end)" if key in node and node.maybe_text("what") == "token differs" else ""
    return str(token) if text is None else f"{token} {common.visible(text)}"


def _invariance(node: Node) -> dict[str, Any]:
    return {
        "width": node.integer("width"),
        "rows": common.share(node.child("rows")),
        "holds": node.flag("holds"),
        "noise": node.number("noise"),
    }


def _margin_chart(
    document: Node, tiers: list[dict[str, Any]], invariance: Node | None
) -> Markup | None:
    """How close the two best tokens were, against how far the batch shape moves them."""
    margins = document.maybe_child("margins")
    bins = [] if margins is None else margins.children("bins")
    counted = [
        (_exponent(b.number("low")), _exponent(b.number("high")), b.integer("count")) for b in bins
    ]
    parted = sorted(
        {
            (d["prompt"], d["index"], d["margin"])
            for t in tiers
            for d in t["divergences"]
            if d["margin"] is not None
        }
    )
    if not counted and not parted:
        return None
    noise = 0.0 if invariance is None else invariance.number("noise")
    at = [_exponent(margin) for _, _, margin in parted]
    places = [low for low, _, _ in counted] + [high for _, high, _ in counted] + at
    if noise > 0:
        places.append(_exponent(noise))
    first, last = math.floor(min(places)), math.ceil(max(places))
    y = charts.from_zero("tokens", max((count for _, _, count in counted), default=1))
    return charts.bars(
        "Distance between the two best tokens, against what the batch shape moves",
        charts.powers_of_ten("distance between the two best logits", first, max(last, first + 1)),
        y,
        [(low, high, float(count)) for low, high, count in counted],
        [charts.Level("moved by the batch shape", _exponent(noise))] if noise > 0 else [],
        charts.Series("texts part here", [charts.Point(x, y.high * 0.06) for x in at], 4)
        if at
        else None,
    )


def _exponent(value: float) -> float:
    return min(HIGHEST, max(LOWEST, math.log10(value))) if value > 0 else LOWEST


def _depth_chart(drafts: common.Drafts) -> Markup | None:
    """Tokens a pass of the model, were drafts cut at each depth: 1 + the shares up to there."""
    points, tokens = [], 1.0
    for k, share in enumerate(drafts.first, start=1):
        if share.rate is None:
            break
        tokens += share.rate
        points.append(charts.Point(k, tokens))
    if not points:
        return None
    return charts.lines(
        "Tokens a pass of the model by drafting depth",
        charts.whole_numbers("drafted tokens a round", len(points)),
        charts.from_zero("tokens a pass", tokens),
        [charts.Series("tokens a pass", points, 1)],
        [charts.Level("without drafts", 1.0)],
    )


def _sampling(node: Node | None) -> dict[str, Any] | None:
    if node is None:
        return None
    return {
        "temperature": node.number("temperature"),
        "draws": node.integer("draws"),
        "seed": node.integer("seed"),
        "alpha": node.number("alpha"),
        "rules": [
            {
                "rule": r.text("rule"),
                "p_value": r.number("p_value"),
                "broken": r.number("broken_rule_p_value"),
                "accepted": _hits(r.child("first_draft_accepted")),
                "places": len(r.children("places")),
            }
            for r in node.children("rules")
        ],
    }


def _reference(node: Node | None) -> dict[str, Any] | None:
    if node is None:
        return None
    compared = [(name, node.maybe_child(name)) for name in ("base", "heads")]
    return {
        "file": node.text("file"),
        "program": node.text("program"),
        "head": node.text("head"),
        "rows": [
            {
                "name": name,
                "rows": part.integer("rows"),
                "largest": part.number("largest"),
                "kl": part.number("kl"),
                "best": _hits(part.child("best")),
                "criterion": part.text("criterion"),
            }
            for name, part in compared
            if part is not None
        ],
    }


def _cross(node: Node | None) -> dict[str, Any] | None:
    """A device's logits beside the CPU's, and where its model lay."""
    if node is None:
        return None
    limit = node.child("tolerance")
    places = [
        (name, node.maybe_child(key))
        for key, name in (
            ("weights", "weights"),
            ("heads_weights", "heads"),
            ("kv_cache", "KV cache"),
            ("compute", "working memory"),
        )
    ]
    return {
        "rows": node.integer("rows"),
        "worst": node.number("worst"),
        "mean": node.number("mean"),
        "worst_allowed": limit.number("worst"),
        "mean_allowed": limit.number("mean"),
        "largest": node.number("largest_difference"),
        "best": _hits(node.child("same_best")),
        "drafts": _hits(node.child("same_drafts")),
        "places": [
            (name, ", ".join(f"{buffer} {mib} MiB" for buffer, mib in place.scalars()))
            for name, place in places
            if place is not None
        ],
    }


def _hits(node: Node) -> str:
    return f"{node.integer('hits')} of {node.integer('total')}"


def _prompt(node: Node) -> dict[str, Any]:
    return {
        "id": node.text("id"),
        "set": node.maybe_text("prompt_set") or "",
        "source": node.text("source"),
        "prompt_tokens": node.integer("prompt_tokens"),
        "output_tokens": node.integer("output_tokens"),
        "rounds": node.integer("rounds"),
    }


def _rate(node: Node) -> float | None:
    return node.maybe_number("tokens_per_second")
