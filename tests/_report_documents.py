"""Saved reports as tests need them, and reading pages back."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

HOSTILE = "<img src=x onerror=alert(1)>&\"'</style><script>alert(2)</script>{{7*7}}"


def share(hits: int, total: int) -> dict[str, Any]:
    rate = hits / total if total else None
    return {"hits": hits, "total": total, "rate": rate, "interval": [0.25, 0.75]}


def tier(name: str, holds: bool | None, claimed: bool = True, **more: Any) -> dict[str, Any]:
    return {
        "tier": name,
        "claimed": claimed,
        "holds": holds,
        "prompts": share(0, 0) if holds is None else share(2 if holds else 1, 2),
        "tokens": 16,
        "divergences": [],
        "note": "how it was compared",
    } | more


def drafts(*hits: int, rounds: int = 10) -> dict[str, Any]:
    return {
        "rounds": rounds,
        "tokens": 23,
        "tokens_per_pass": 2.3 if rounds else None,
        "first_accepted": [share(hit, rounds) for hit in hits],
        "draft_seconds": 0.01,
        "verify_seconds": 0.05,
    }


def settings(**more: Any) -> dict[str, Any]:
    return {
        "n_max": 2,
        "n_predict": 8,
        "kv_type": "f16",
        "exact": False,
        "quantization": "Q8_0",
        "device": "CPU (a processor)",
        "library_commit": "abcdef",
    } | more


def validation(**changes: Any) -> dict[str, Any]:
    """A saved validation of two prompts, in which L2 breaks without being claimed."""
    parted = {
        "prompt": "p1",
        "index": 4,
        "expected": 7,
        "found": 9,
        "margin": 0.001,
        "noise": 0.02,
        "what": "token differs",
        "expected_text": " return",
        "found_text": "\n",
    }
    return {
        "schema": "gguf-mtp.validate/1",
        "holds": True,
        "files": [{"role": "merged", "name": "m.gguf", "size": 1234, "sha256": "ab" * 32}],
        "settings": settings(),
        "tiers": [
            tier("L0", True),
            tier("L2", False, claimed=False, divergences=[parted]),
            tier("base-identical", None, claimed=False, note="needs --against"),
        ],
        "batch_invariance": {"width": 3, "rows": share(13, 14), "holds": False, "noise": 0.02},
        "acceptance": drafts(8, 5),
        "acceptance_novel": drafts(0, 0, rounds=0),
        "acceptance_floor": {"asked": None, "holds": None},
        "speed": {
            "plain": {"tokens": 14, "seconds": 0.7, "tokens_per_second": 20.0},
            "mtp": {"tokens": 14, "seconds": 0.35, "tokens_per_second": 40.0},
            "ratio": 2.0,
        },
        "prompts": [
            {"id": "p1", "source": "s", "prompt_tokens": 3, "output_tokens": 8, "rounds": 5},
            {"id": "p2", "source": "s", "prompt_tokens": 4, "output_tokens": 8, "rounds": 5},
        ],
    } | changes


def beside_the_cpu() -> dict[str, Any]:
    """What validating on a device adds: where it ran and how far it is from the CPU."""
    return {
        "backend": "vulkan",
        "devices": ["Vulkan0"],
        "cross_backend": {
            "rows": 48,
            "worst": 2e-6,
            "mean": 3e-7,
            "tolerance": {"worst": 1e-5, "mean": 1e-6},
            "largest_difference": 0.004,
            "same_best": {"hits": 47, "total": 48},
            "same_drafts": {"hits": 15, "total": 16},
            "weights": {"Vulkan0": 13.5},
            "heads_weights": {"Vulkan0": 3.25},
            "kv_cache": {"Vulkan0": 2.0},
            "compute": {"Vulkan0": 9.0, "CPU": 1.0},
            "holds": True,
        },
    }


def benchmark(**changes: Any) -> dict[str, Any]:
    """A saved benchmark of two depths, two repetitions and two tasks."""

    def depth(n: int, ratios: list[float] | None, **more: Any) -> dict[str, Any]:
        return {
            "n": n,
            "rates": [10.0 * r for r in ratios or [1.0, 1.0]],
            "ratios": ratios,
            "tokens_per_pass": None if ratios is None else 1.0 + n / 2,
            "draft_ms": [2.0 * n, 3.0 * n],
            "verify_ms": [100.0, 110.0],
            "expected_rate": 10.0,
        } | more

    settings_of_advice = [{"n_max": 2, "p_min": p, "rate": 15.0 - p} for p in (0.0, 0.5, 0.9)]
    return {
        "schema": "gguf-mtp.bench/1",
        "files": [{"role": "merged", "name": "m.gguf", "size": 1234, "sha256": "ab" * 32}],
        "settings": settings(),
        "repetitions": 2,
        "depths": [depth(0, None), depth(1, [1.25, 1.35]), depth(2, [1.5, 1.7])],
        "acceptance": drafts(8, 5),
        "tasks": [
            {"task": "code", "prompts": 3, "acceptance": drafts(9, 7)},
            {"task": "prose", "prompts": 1, "acceptance": drafts(6, 2)},
        ],
        "advice": {
            "verdict": "pays",
            "n_max": 2,
            "p_min": 0.5,
            "rate": 14.5,
            "ratio": 1.45,
            "text": "MTP pays here: take two",
            "settings": settings_of_advice,
        },
    } | changes


class _Page(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._hidden += tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag == "style"

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.text += f"{data} "


def parse(html: str) -> _Page:
    page = _Page()
    page.feed(html)
    page.text = " ".join(page.text.split())
    return page
