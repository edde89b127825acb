"""sampled-identical without a library: equal texts, near ties, and loops that are wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import pytest

from _validate_helpers import VOCAB, FakeContext, fake_context, logits_after
from gguf_mtp.runtime.bindings import Context, Model
from gguf_mtp.runtime.coupled import N_BUCKETS, Draw, perturbed, sample
from gguf_mtp.runtime.sampling import RULES, CoupledRule, SamplingLoop
from gguf_mtp.runtime.speculative import Run
from gguf_mtp.validate.acceptance import Proportion
from gguf_mtp.validate.options import Options
from gguf_mtp.validate.prompts import Prompt
from gguf_mtp.validate.sampled import (
    Sampled,
    compare_sampled,
    first_difference,
    sampled_margin,
    with_drafts,
)
from gguf_mtp.validate.tiers import SAMPLED, Divergence, Invariance
from gguf_mtp.validate.verdicts import Measured, verdicts_of
from test_validate_distribution import NoisyDrafter

TEMPERATURE = 0.8
PROMPTS = [("a", (3, 1, 4)), ("b", (1, 5, 9, 2))]
OPTIONS = Options(n_predict=40, seed=7)


def a_loop(
    n_max: int = 3, kind: type[SamplingLoop] = SamplingLoop, shift: float = 0.0, rule: str = ""
) -> SamplingLoop:
    context = FakeContext(wide_shift=shift)
    target, drafter = cast(Context, context), NoisyDrafter(context)
    return kind(target, drafter, n_max, RULES[rule or CoupledRule.name](), TEMPERATURE)


def compared(loop: SamplingLoop, options: Options = OPTIONS, noise: float = 0.0) -> Sampled:
    return compare_sampled(loop, fake_context(), PROMPTS, options, frozenset(), noise)


@pytest.mark.parametrize("rule", RULES)
def test_a_text_is_the_same_for_any_number_of_drafts(rule: str) -> None:
    texts = {
        with_drafts(a_loop(n_max, rule=rule), (3, 1, 4), 50, 11, frozenset()) for n_max in range(6)
    }
    assert len(texts) == 1
    assert texts != {with_drafts(a_loop(3, rule=rule), (3, 1, 4), 50, 12, frozenset())}


def test_equal_texts_are_counted() -> None:
    found = compared(a_loop())
    assert found == Sampled(seed=7, exact=False, tokens=2 * 40, differing=())


def test_a_text_ends_where_its_baseline_does() -> None:
    text = with_drafts(a_loop(), (3, 1, 4), 40, 7, frozenset())
    stop = frozenset({text[5]})
    assert with_drafts(a_loop(), (3, 1, 4), 40, 7, stop) == text[: text.index(text[5]) + 1]
    assert not compare_sampled(a_loop(), fake_context(), PROMPTS, OPTIONS, stop).differing


class CountsRounds(SamplingLoop):
    """Its noise depends on how much was drafted."""

    rounds = 0

    def _draw(self, position: int, seed: int) -> Draw:
        self.rounds += 1
        return super()._draw(self.rounds, seed)


class ForgetsRollback(SamplingLoop):
    def _roll_back(self, position: int, accepted: int, width: int) -> int:
        return position + width


@pytest.mark.parametrize("kind", [CountsRounds, ForgetsRollback])
def test_a_wrong_loop_breaks_it(kind: type[SamplingLoop]) -> None:
    found = compared(a_loop(kind=kind), noise=0.001)
    assert [d.prompt for d in found.breaking] == ["a", "b"]
    for d in found.breaking:
        assert d.expected != d.found
        assert d.margin is not None
        assert d.noise is not None
        assert d.margin > d.noise


def test_what_batches_move_is_a_near_tie_but_not_in_exact_mode() -> None:
    """Wide batches move one logit of each row by 1: the texts differ by no more than that."""
    loop = a_loop(shift=1.0)
    found = compared(loop)
    assert found.differing
    assert not found.breaking
    for d in found.differing:
        assert d.noise is not None
        assert d.margin is not None
        assert d.noise == pytest.approx(1.0, abs=1e-5)
        assert 0 <= d.margin <= d.noise
    exact = compared(loop, Options(n_predict=40, seed=7, exact=True))
    assert exact.breaking == list(exact.differing) == list(found.differing)


@pytest.mark.parametrize(
    ("margin", "noise", "breaks"),
    [(0.1, 0.2, False), (0.2, 0.2, False), (0.3, 0.2, True), (0.0, 0.0, True), (None, 0.2, True)],
)
def test_only_what_is_closer_than_the_noise_is_a_near_tie(
    margin: float | None, noise: float, breaks: bool
) -> None:
    d = Divergence("a", 3, 1, 2, margin, "token differs", noise)
    assert bool(Sampled(0, False, 9, (d,)).breaking) is breaks


def test_the_margin_is_what_makes_the_other_token_win() -> None:
    draw = Draw(5, 9, TEMPERATURE)
    row = logits_after((1, 2, 3))
    expected = sample(row, draw)
    found = int(np.argsort(perturbed(row, draw))[-2])
    margin = sampled_margin(row, draw, expected, found)
    for change, token in ((0.999, expected), (1.001, found)):
        moved = row.copy()
        moved[found] += np.float32(change * margin)
        assert sample(moved, draw) == token
    assert len(row) == VOCAB < N_BUCKETS


def test_a_bucket_that_changes_its_first_token_is_a_near_tie() -> None:
    """The bucket's noise goes from one token to the other, whatever noise that had."""
    row = np.full(2 * N_BUCKETS, -1000.0, np.float32)
    row[[4, 4 + N_BUCKETS, 8]] = [2.0, 1.99, 1.0]
    other = 4 + N_BUCKETS
    for seed in range(1000):
        draw = Draw(seed, 9, 1.0)
        moved = row.copy()
        moved[other] += np.float32(0.02)
        values = perturbed(row, draw)
        if (
            sample(row, draw) == 4
            and sample(moved, draw) == other
            and values[4] > values[other] + 1
        ):
            assert sampled_margin(row, draw, 4, other) == pytest.approx(0.01, abs=1e-4)
            return
    pytest.fail("no seed changes the token")


@pytest.mark.parametrize(
    ("a", "b", "index"),
    [((1, 2), (1, 2), None), ((1, 2), (1, 3), 1), ((1, 2), (1,), 1), ((), (4,), 0)],
)
def test_where_texts_differ(a: Sequence[int], b: Sequence[int], index: int | None) -> None:
    assert first_difference(a, b) == index


class Spells:
    def text(self, tokens: Sequence[int]) -> str:
        return f"<{tokens[0]}>"


def test_the_verdict_says_what_differs_by_its_own_noise() -> None:
    """Not by that of the greedy text of the same prompt."""
    tie = Divergence("b", 3, 1, 2, 0.1, "token differs", 0.2)
    wrong = Divergence("a", 8, 5, 6, 0.4, "token differs", 0.2)
    run = Run((1,), (1,), (b"",), (1.0,), (), 0.0, 0.0, False)
    prompts = [Prompt(name, "text", "") for name, _ in PROMPTS]
    measured = Measured(prompts, [(1,), (1,)], [run, run], [run, run])
    measured.invariance = Invariance(4, Proportion(1, 2), 0.05, (0.05, 0.01))
    measured.sampled = Sampled(7, False, 80, (tie, wrong))
    verdicts = verdicts_of(measured, frozenset({SAMPLED}), cast(Model, Spells()))
    verdict = next(v for v in verdicts if v.tier == SAMPLED)
    assert (verdict.holds, verdict.claimed, verdict.tokens) == (False, True, 80)
    assert (verdict.matching.hits, verdict.matching.total) == (1, 2)
    assert verdict.note == "seed 7, near ties: 1"
    (shown,) = verdict.divergences
    assert (shown.prompt, shown.index, shown.noise) == ("a", 8, 0.2)
    assert (shown.expected_text, shown.found_text) == ("<5>", "<6>")
