"""Reports: what holds, the JSON layout, and the text a person reads."""

import io
import json
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from gguf_mtp.report.words import words
from gguf_mtp.validate.acceptance import Acceptance, Proportion, wilson
from gguf_mtp.validate.margins import Bin
from gguf_mtp.validate.report import FileFacts, PromptFacts, Report, Settings, Speed
from gguf_mtp.validate.tiers import TIERS, Divergence, Invariance, Verdict

SETTINGS = Settings(
    n_max=2,
    n_predict=8,
    n_ctx=256,
    n_threads=1,
    kv_type="f16",
    flash_attn="auto",
    flash_attn_used="on",
    exact=False,
    chat=False,
    quantization="Q8_0",
    heads_quantization="Q8_0",
    device="CPU (a processor)",
    library_version="1.2",
    library_commit="abcdef",
    library_patches="0123",
    library_backend="cpu",
    library_features="CPU : AVX2 = 1",
    bindings_version="0.3",
)
ACCEPTANCE = Acceptance(10, (Proportion(8, 10), Proportion(5, 10)), 23, 0.01, 0.05)
DIVERGENCE = Divergence("p1", 4, 7, 9, 0.001, "token differs")


def verdict(tier: str, claimed: bool, holds: bool | None) -> Verdict:
    divergences = (DIVERGENCE,) if holds is False else ()
    hits = 0 if holds is None else 2 - len(divergences)
    return Verdict(
        tier, claimed, holds, Proportion(hits, 0 if holds is None else 2), 16, divergences, "how"
    )


def report(*verdicts: Verdict, **changes: Any) -> Report:
    whole = Report(
        files=(FileFacts("merged", "m.gguf", 1234, "ab" * 32),),
        settings=SETTINGS,
        verdicts=verdicts,
        invariance=Invariance(3, Proportion(13, 14), 0.02, (0.02, 0.0)),
        acceptance=ACCEPTANCE,
        novel=Acceptance(0, (Proportion(0, 0), Proportion(0, 0)), 0, 0.0, 0.0),
        min_acceptance=None,
        speed=Speed(14, 0.7, 14, 0.35),
        margins=(Bin(0.1, 1.0, 16),),
        prompts=(PromptFacts("p1", "s", 3, 8, 5), PromptFacts("p2", "s", 4, 8, 5)),
    )
    return replace(whole, **changes)


def test_only_claimed_tiers_decide() -> None:
    assert report(verdict("L0", True, True), verdict("L2", False, False)).holds
    assert report(verdict("L0", True, True), verdict("base-identical", False, None)).holds
    assert not report(verdict("L0", True, True), verdict("L2", True, False)).holds


def test_a_claimed_tier_that_was_not_run_does_not_hold() -> None:
    assert not report(verdict("base-identical", True, None)).holds


@pytest.mark.parametrize(("floor", "holds"), [(None, True), (0.8, True), (0.81, False)])
def test_acceptance_floor(floor: float | None, holds: bool) -> None:
    assert report(verdict("L0", True, True), min_acceptance=floor).holds is holds


def test_json_layout() -> None:
    data = report(verdict("L1", True, True), verdict("L2", False, False)).to_json()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert data == {
        "schema": "gguf-mtp.validate/1",
        "holds": True,
        "files": [{"role": "merged", "name": "m.gguf", "size": 1234, "sha256": "ab" * 32}],
        "settings": {name: getattr(SETTINGS, name) for name in Settings.__dataclass_fields__},
        "tiers": [
            {
                "tier": "L1",
                "claimed": True,
                "holds": True,
                "prompts": share(2, 2),
                "tokens": 16,
                "divergences": [],
                "note": "how",
            },
            {
                "tier": "L2",
                "claimed": False,
                "holds": False,
                "prompts": share(1, 2),
                "tokens": 16,
                "divergences": [
                    {
                        "prompt": "p1",
                        "index": 4,
                        "expected": 7,
                        "found": 9,
                        "margin": 0.001,
                        "what": "token differs",
                        "noise": None,
                        "expected_text": None,
                        "found_text": None,
                    }
                ],
                "note": "how",
            },
        ],
        "batch_invariance": {
            "width": 3,
            "rows": share(13, 14),
            "holds": False,
            "noise": 0.02,
            "noise_by_prompt": [0.02, 0.0],
        },
        "acceptance": {
            "rounds": 10,
            "tokens": 23,
            "tokens_per_pass": 2.3,
            "first_accepted": [
                share(8, 10),
                share(5, 10),
            ],
            "draft_seconds": 0.01,
            "verify_seconds": 0.05,
        },
        "acceptance_novel": {
            "rounds": 0,
            "tokens": 0,
            "tokens_per_pass": None,
            "first_accepted": [share(0, 0)] * 2,
            "draft_seconds": 0.0,
            "verify_seconds": 0.0,
        },
        "acceptance_floor": {"asked": None, "holds": None},
        "speed": {
            "plain": {"tokens": 14, "seconds": 0.7, "tokens_per_second": pytest.approx(20.0)},
            "mtp": {"tokens": 14, "seconds": 0.35, "tokens_per_second": pytest.approx(40.0)},
            "ratio": pytest.approx(2.0),
        },
        "prompts": [
            {"id": "p1", "source": "s", "prompt_set": "", **sizes(3)},
            {"id": "p2", "source": "s", "prompt_set": "", **sizes(4)},
        ],
        "distribution": None,
        "reference": None,
        "margins": {"bins": [{"low": 0.1, "high": 1.0, "count": 16}]},
    }


def sizes(prompt: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "output_tokens": 8, "rounds": 5}


def share(hits: int, total: int) -> dict[str, Any]:
    return {
        "hits": hits,
        "total": total,
        "rate": hits / total if total else None,
        "interval": list(wilson(hits, total)),
    }


def test_a_run_too_short_to_time_has_no_ratio() -> None:
    data = report(verdict("L1", True, True), speed=Speed(0, 0.0, 0, 0.0)).to_json()
    assert data["speed"]["ratio"] is None
    json.dumps(data, allow_nan=False)


def shown(whole: Report, width: int = 200) -> str:
    out = io.StringIO()
    whole.print(Console(file=out, width=width))
    return out.getvalue()


@pytest.mark.parametrize("tier", TIERS)
def test_a_tier_keeps_its_name_on_a_narrow_terminal_and_on_the_page(tier: str) -> None:
    text = shown(report(replace(verdict(tier, True, True), note="what was compared " * 5)), 80)
    assert any(line.startswith(f"{tier} ") for line in text.splitlines())
    assert words(tier).text


def test_text_gives_a_line_per_tier_and_the_outcome() -> None:
    text = shown(
        report(
            verdict("L0", True, True),
            verdict("L2", True, False),
            verdict("base-identical", False, None),
        )
    )
    lines = text.splitlines()
    assert any(line.startswith("L0") and "holds" in line and "2/2" in line for line in lines)
    assert any(line.startswith("L2") and "BREAKS" in line and "1/2" in line for line in lines)
    assert any(line.startswith("base-identical") and "not run" in line for line in lines)
    assert "L2: p1 at 4: token differs expected 7, got 9 (top-2 margin 0.001)" in text
    assert "13/14, largest shift between two 0.02" in text
    assert "0.800" in text
    assert "2.00x" in text
    assert lines[-1] == "does not hold"


def test_text_shows_a_few_divergences_and_counts_the_rest() -> None:
    many = replace(verdict("L2", False, False), divergences=(DIVERGENCE,) * 9)
    text = shown(report(many))
    assert text.count("top-2 margin") == 5
    assert "and 4 more" in text
