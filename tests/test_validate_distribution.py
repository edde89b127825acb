"""L4 without a library: right rules pass as often as they should, broken ones are found."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import cast

import numpy as np
import pytest

from _validate_helpers import VOCAB, FakeContext, fake_context, logits_after
from gguf_mtp.errors import RuntimeUnavailable
from gguf_mtp.runtime.bindings import Context, Row
from gguf_mtp.runtime.coupled import Draw, best
from gguf_mtp.runtime.sampling import (
    RULES,
    CoupledRule,
    MatchRule,
    RowOfTarget,
    Rule,
    SamplingLoop,
    draw_from,
    softmax,
)
from gguf_mtp.runtime.speculative import decode_plainly
from gguf_mtp.validate.acceptance import Proportion
from gguf_mtp.validate.distribution import (
    ALPHA,
    CoupledSamplesAgain,
    Distribution,
    MatchSamplesAgain,
    RuleFit,
    Spot,
    choose_spots,
    measure_rule,
    seeds_of,
)
from gguf_mtp.validate.statistics import Fit, add, chi2_tail, combine, fit

TEMPERATURE = 0.8


class NoisyDrafter:
    """Knows the target, but for noise that follows from the text."""

    def __init__(self, context: FakeContext) -> None:
        self.context = context

    def draft(
        self, last: int, hidden: Row, position: int, n: int, choose: Callable[[Row, int], int]
    ) -> list[int]:
        text, drafts = (*self.context.cache, last), list[int]()
        for i in range(n):
            drafts.append(choose(logits_after(text) + 0.7 * noise(text), i))
            text = (*text, drafts[-1])
        return drafts


@cache
def noise(text: tuple[int, ...]) -> Row:
    seed = int.from_bytes(hashlib.sha256(repr(text).encode()).digest()[8:16], "little")
    return np.random.default_rng(seed).standard_normal(VOCAB).astype(np.float32)


def loop(rule: Rule, n_max: int = 2) -> SamplingLoop:
    context = FakeContext()
    return SamplingLoop(cast(Context, context), NoisyDrafter(context), n_max, rule, TEMPERATURE)


def alone() -> Context:
    return fake_context()


SPOTS = [Spot("p", 0, (3, 1, 4)), Spot("q", 2, (2, 7, 1, 8, 2))]


def measured(rule: Rule, seed: int, draws: int, spots: Sequence[Spot] = SPOTS) -> RuleFit:
    return measure_rule(loop(rule), alone(), spots, draws, seed)


# --- the statistics ------------------------------------------------------------------------


@pytest.mark.parametrize("x", [0.1, 1.0, 3.84, 10.0, 60.0])
def test_the_tail_is_that_of_the_closed_forms(x: float) -> None:
    assert chi2_tail(x, 1) == pytest.approx(math.erfc(math.sqrt(x / 2)), rel=1e-12)
    for dof in (2, 8, 60, 400):
        logs = (i * math.log(x / 2) - math.lgamma(i + 1) for i in range(dof // 2))
        terms = [math.exp(log - x / 2) for log in logs]
        assert chi2_tail(x, dof) == pytest.approx(math.fsum(terms), rel=1e-11, abs=1e-300)


def test_the_tail_gives_published_values() -> None:
    """Abramowitz and Stegun, table 26.8: upper 5 % and 0.1 % points."""
    points = {(3.84146, 1): 0.05, (11.0705, 5): 0.05, (29.588, 10): 0.001, (149.449, 100): 0.001}
    for (x, dof), p_value in points.items():
        assert chi2_tail(x, dof) == pytest.approx(p_value, rel=1e-3)


def test_a_die_is_judged_as_in_a_textbook() -> None:
    counts = dict(enumerate((5, 8, 9, 8, 10, 20)))
    found = fit(counts, np.full(6, 1 / 6))
    assert (found.draws, found.cells, found.dof) == (60, 6, 5)
    assert found.chi2 == pytest.approx(13.4)
    assert found.p_value == pytest.approx(0.0199, abs=1e-4)
    assert found.w == pytest.approx(math.sqrt(13.4 / 60))
    shares = np.array(list(counts.values())) / 60
    assert found.kl == pytest.approx(float((shares * np.log(shares * 6)).sum()))


def test_rare_tokens_share_a_cell() -> None:
    p = np.array([0.5, 0.3, 0.1, 0.04, 0.03, 0.03])
    assert fit({0: 50, 1: 30, 2: 20}, p).cells == 4  # 0.04 + 0.03 + 0.03 of 100 are expected 10
    # Of 40, the last four are 8 together; the rest of .5 and .49 takes the rarer one with it.
    assert fit({0: 20, 1: 12, 2: 8}, p).cells == 3
    assert fit({0: 5, 1: 5}, np.array([0.5, 0.49, 0.01])).dof == 1


def test_one_cell_tells_nothing() -> None:
    found = fit({0: 50}, np.array([0.999, 0.001]))
    assert (found.dof, found.p_value) == (0, 1.0)
    assert fit({}, np.array([1.0])).draws == 0


def test_a_token_that_cannot_come_is_a_finding() -> None:
    p = np.array([0.6, 0.4, 0.0])
    assert fit({0: 60, 1: 39, 2: 1}, p).p_value == 0.0
    assert add([fit({0: 60, 1: 39, 2: 1}, p), fit({0: 60, 1: 40}, p)]).p_value == 0.0


def test_combined_p_values() -> None:
    assert combine([0.3]) == pytest.approx(0.3)
    assert combine([0.01, 0.02, 0.03]) < 0.001
    assert combine([0.4, 0.5, 0.6]) == pytest.approx(0.649, abs=0.01)
    assert combine([0.5, 0.0]) == 0.0
    assert combine([]) == 1.0


def test_softmax_and_draws() -> None:
    row = np.array([0.0, -np.inf, 1.0, 1.0], np.float32)
    p = softmax(row, 0.5)
    assert p == pytest.approx([math.exp(-2) / (2 + math.exp(-2)), 0, *[1 / (2 + math.exp(-2))] * 2])
    assert list(softmax(row, 0)) == [0, 0, 1, 0]
    random = np.random.default_rng(1)
    drawn = Counter(draw_from(p, random) for _ in range(2000))
    assert set(drawn) == {0, 2, 3}
    assert fit(drawn, p).p_value > ALPHA
    with pytest.raises(RuntimeUnavailable, match="not numbers"):
        softmax(np.array([np.nan, 1.0], np.float32), 1.0)


# --- the rules -----------------------------------------------------------------------------


def kolmogorov(values: Sequence[float]) -> float:
    """P-value of the Kolmogorov-Smirnov test that values are uniform on 0..1 (Stephens 1970)."""
    ordered, n = np.sort(values), len(values)
    distance = max((np.arange(1, n + 1) / n - ordered).max(), (ordered - np.arange(n) / n).max())
    x = distance * (math.sqrt(n) + 0.12 + 0.11 / math.sqrt(n))
    terms = (math.exp(-2 * (j * x) ** 2) * (1 if j % 2 else -1) for j in range(1, 101))
    return 2 * math.fsum(terms)


@pytest.mark.parametrize("name", RULES)
def test_a_right_rule_gives_uniform_p_values(name: str) -> None:
    p_values = [measured(RULES[name](), seed, 60, SPOTS[:1]).p_value for seed in range(200)]
    assert kolmogorov(p_values) > 0.01
    assert 0 < sum(p < 0.1 for p in p_values) < 40  # 20 expected; more than 40 by chance in 10^5


@pytest.mark.parametrize("broken", [CoupledSamplesAgain, MatchSamplesAgain])
def test_a_broken_rule_does_not(broken: Callable[[], Rule]) -> None:
    p_values = [measured(broken(), seed, 120, SPOTS[:1]).p_value for seed in range(30)]
    assert kolmogorov(p_values) < 1e-4
    assert measured(broken(), 0, 1000).p_value < 1e-6


class AcceptsEverything(CoupledRule):
    def judge(self, row: RowOfTarget, drafts: Sequence[int], draw: Draw) -> tuple[int, int]:
        return len(drafts), self.sample(row(len(drafts)), draw.after(len(drafts)))


class AcceptsByArgmax(MatchRule):
    """Greedy acceptance while sampling: a draft is accepted where it is the target's best token."""

    def judge(self, row: RowOfTarget, drafts: Sequence[int], draw: Draw) -> tuple[int, int]:
        for i, draft in enumerate(drafts):
            if best(row(i)) != draft:
                return i, self.sample(row(i), draw.after(i))
        return len(drafts), self.sample(row(len(drafts)), draw.after(len(drafts)))


class TakesTheRowBefore(CoupledRule):
    """The token after a whole draft comes from the last draft's row."""

    def judge(self, row: RowOfTarget, drafts: Sequence[int], draw: Draw) -> tuple[int, int]:
        return super().judge(lambda i: row(min(i, len(drafts) - 1)), drafts, draw)


class ReusesTheNoise(CoupledRule):
    """The second token of a round has the noise of the first."""

    def judge(self, row: RowOfTarget, drafts: Sequence[int], draw: Draw) -> tuple[int, int]:
        accepted, token = super().judge(row, drafts, draw)
        return accepted, self.sample(row(accepted), draw) if accepted else token


class HalvesTheNoise(CoupledRule):
    """Noise of another scale: another temperature."""

    def sample(self, row: Row, draw: Draw) -> int:
        return super().sample(row, replace(draw, temperature=draw.temperature / 2))


BROKEN = [
    AcceptsEverything,
    AcceptsByArgmax,
    TakesTheRowBefore,
    ReusesTheNoise,
    HalvesTheNoise,
    CoupledSamplesAgain,
    MatchSamplesAgain,
]


@pytest.mark.parametrize("broken", BROKEN)
def test_broken_rules_are_found(broken: Callable[[], Rule]) -> None:
    """n_max 1: so that the bonus token is the second one, which the test looks at."""
    found = measure_rule(loop(broken(), n_max=1), alone(), SPOTS, 1000, 0)
    assert found.p_value < ALPHA
    assert found.breaking()


class DraftsGreedily(CoupledRule):
    def draft(self, row: Row, draw: Draw) -> int:
        return best(row)


def test_another_exact_rule_is_not_called_broken() -> None:
    """What is drafted does not change what the target samples."""
    assert measured(DraftsGreedily(), 0, 1000).p_value > ALPHA


class ReadsTheNextRow(SamplingLoop):
    def _row(self, i: int) -> Row:
        return super()._row(min(i + 1, self.n_max))


class LeavesADraftInTheCache(SamplingLoop):
    def _roll_back(self, position: int, accepted: int, width: int) -> int:
        return super()._roll_back(position, min(accepted + 1, width - 1), width)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("kind", [ReadsTheNextRow, LeavesADraftInTheCache])
def test_a_broken_loop_is_found_whatever_the_rule(kind: type[SamplingLoop], name: str) -> None:
    context = FakeContext()
    target = cast(Context, context)
    broken = kind(target, NoisyDrafter(context), 3, RULES[name](), TEMPERATURE)
    assert measure_rule(broken, alone(), SPOTS, 800, 0).p_value < ALPHA


@pytest.mark.parametrize("name", RULES)
def test_draws_repeat_and_differ_by_seed(name: str) -> None:
    a, b, c = (measured(RULES[name](), seed, 50) for seed in (1, 1, 2))
    assert a == b != c


def test_seeds_of_spots_and_runs_are_unrelated() -> None:
    seeds = [seed for run in (0, 1) for spot in (0, 1) for seed in seeds_of(run, spot, 500)]
    assert len(set(seeds)) == len(seeds)
    assert 0 <= min(seeds) < max(seeds) < 1 << 32
    assert seeds_of(0, 1, 3) == seeds_of(0, 1, 500)[:3]


@pytest.mark.parametrize("name", RULES)
def test_few_draws_cannot_tell(name: str) -> None:
    assert not measured(RULES[name](), 0, 20).can_tell
    enough = measured(RULES[name](), 0, 1500)
    assert enough.can_tell
    assert 0 < enough.accepted.rate < 1


@pytest.mark.parametrize("name", RULES)
def test_at_temperature_0_the_text_is_the_greedy_one(name: str) -> None:
    context = FakeContext()
    sampling = SamplingLoop(cast(Context, context), NoisyDrafter(context), 3, RULES[name](), 0.0)
    place = sampling.start((3, 1, 4), 5)
    tokens = [place.token]
    accepted = 0
    while len(tokens) < 20:
        done, place = sampling.round(place, 5)
        tokens += done.emitted
        accepted += done.accepted
    assert tuple(tokens[:20]) == decode_plainly(alone(), (3, 1, 4), 20).tokens
    assert accepted > 0


def test_a_place_needs_a_row_before_it() -> None:
    with pytest.raises(RuntimeUnavailable, match="two tokens"):
        loop(CoupledRule()).enter((3,))
    with pytest.raises(ValueError, match="temperature"):
        SamplingLoop(alone(), NoisyDrafter(FakeContext()), 3, CoupledRule(), -1.0)


def test_spots_are_where_the_target_hesitates() -> None:
    runs = [decode_plainly(alone(), prompt, 12) for prompt in ((3, 1), (5, 9, 2))]
    spots = choose_spots(["a", "b"], runs, 4, 10)
    assert [spot.prompt for spot in spots] == ["a", "b", "a", "b"]
    for spot, run in zip(spots, runs, strict=False):
        assert spot.text == run.prompt + run.tokens[: spot.index]
        within = [m for i, m in enumerate(run.margins) if len(run.prompt) + i <= 10]
        assert run.margins[spot.index] == min(within)
    assert choose_spots(["a"], runs[:1], 4, 1) == []


def test_the_evidence_as_json() -> None:
    data = Distribution(0.8, 7, 50, (measured(CoupledRule(), 7, 50),)).to_json()
    rule = data["rules"][0]
    assert (data["temperature"], data["seed"], data["draws"]) == (0.8, 7, 50)
    assert [place["prompt"] for place in rule["places"]] == ["p", "q"]
    assert rule["places"][0]["first"]["draws"] == 50
    assert rule["first_draft_accepted"].keys() == {"hits", "total"}


def test_places_that_break_are_named() -> None:
    good, bad = (Fit(100, 5, 1.0, 4, p, 0.1, 0.0, 0) for p in (0.6, 1e-9))
    places = [*measured(CoupledRule(), 0, 50).places]
    found = RuleFit(
        "coupled",
        tuple(replace(p, first=f, second=good) for p, f in zip(places, (good, bad), strict=True)),
        Proportion(1, 2),
        0.0,
    )
    assert [place.prompt for place in found.breaking()] == ["q"]
