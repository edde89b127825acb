"""L4: many seeded draws from the loop under test at fixed places, against the target alone.

At each place the loop decodes two tokens again and again, each time with another seed, from one
prefill: after a draw the cache is cut back. The first token's distribution, and the second's for
each common first one, are compared with softmaxes of a context that has no drafter. The same test,
on the same rounds, must find a rule that is broken on purpose; where it does not, there were too
few draws to tell.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from gguf_mtp.runtime.bindings import Context, Row
from gguf_mtp.runtime.coupled import Draw
from gguf_mtp.runtime.sampling import (
    CoupledRule,
    MatchRule,
    Place,
    RowOfTarget,
    Rule,
    SamplingLoop,
    softmax,
)
from gguf_mtp.runtime.speculative import Run
from gguf_mtp.validate.acceptance import Proportion
from gguf_mtp.validate.statistics import Fit, add, combine, fit

ALPHA = 1e-3  # a right rule is called wrong once in a thousand validations
PLACES = 8
MIN_FOLLOWED = 20  # draws of a first token, from which on its second ones are counted


@dataclass(frozen=True)
class PlaceFit:
    """What was drawn behind `prompt` and `index` tokens of its plain output."""

    prompt: str
    index: int
    first: Fit
    second: Fit

    @property
    def p_value(self) -> float:
        """Both tokens as one test; they are independent, the second being judged by the first."""
        return combine(part.p_value for part in (self.first, self.second) if part.dof)


@dataclass(frozen=True)
class RuleFit:
    """What one rule of acceptance came to.

    `accepted` counts first drafts. `control` is the p-value of the first tokens that a broken
    rule made of the same rounds.
    """

    rule: str
    places: tuple[PlaceFit, ...]
    accepted: Proportion
    control: float

    @property
    def p_value(self) -> float:
        """All places as one test (Fisher)."""
        return combine(
            part.p_value
            for place in self.places
            for part in (place.first, place.second)
            if part.dof
        )

    @property
    def can_tell(self) -> bool:
        """Whether the broken rule was found out."""
        return self.control < ALPHA

    def breaking(self) -> list[PlaceFit]:
        """Return the places that break the rule by themselves (Bonferroni)."""
        return [place for place in self.places if place.p_value < ALPHA / len(self.places)]


@dataclass(frozen=True)
class Distribution:
    """The evidence for L4: each rule at `draws` draws a place."""

    temperature: float
    seed: int
    draws: int
    rules: tuple[RuleFit, ...]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-ready data."""
        return {
            "temperature": self.temperature,
            "seed": self.seed,
            "draws": self.draws,
            "alpha": ALPHA,
            "combined_by": "Fisher",
            "rules": [
                {
                    "rule": part.rule,
                    "p_value": part.p_value,
                    "broken_rule_p_value": part.control,
                    "first_draft_accepted": asdict(part.accepted),
                    "places": [
                        {**asdict(place), "p_value": place.p_value} for place in part.places
                    ],
                }
                for part in self.rules
            ],
        }


class SamplesAgain(Rule):
    """Broken on purpose: where draft and sample differ, the target samples once more."""

    def judge(self, row: RowOfTarget, drafts: Sequence[int], draw: Draw) -> tuple[int, int]:
        accepted, token = super().judge(row, drafts, draw)
        if accepted == len(drafts):
            return accepted, token
        another = replace(draw.after(accepted), seed=draw.seed ^ 1)
        return accepted, self.sample(row(accepted), another)


class CoupledSamplesAgain(SamplesAgain, CoupledRule):
    """`SamplesAgain` with the drafts of `CoupledRule`."""


class MatchSamplesAgain(SamplesAgain, MatchRule):
    """`SamplesAgain` with the drafts of `MatchRule`."""


BROKEN: dict[str, Callable[[], Rule]] = {
    "coupled": CoupledSamplesAgain,
    "match": MatchSamplesAgain,
}


@dataclass(frozen=True)
class Spot:
    """A text to draw behind: a prompt and the beginning of its plain output."""

    prompt: str
    index: int
    text: tuple[int, ...]


def choose_spots(
    prompts: Sequence[str], runs: Sequence[Run], count: int, longest: int
) -> list[Spot]:
    """Choose where the target hesitates most: the smallest margins of each prompt in turn.

    Only texts of 2 to `longest` tokens.
    """
    ranked = []
    for prompt, run in zip(prompts, runs, strict=True):
        order = sorted(range(len(run.margins)), key=lambda i: run.margins[i])
        spots = [Spot(prompt, i, run.prompt + run.tokens[:i]) for i in order]
        ranked.append([spot for spot in spots if 2 <= len(spot.text) <= longest])
    turns = max(map(len, ranked), default=0)
    return [spots[turn] for turn in range(turns) for spots in ranked if turn < len(spots)][:count]


def measure_rule(
    loop: SamplingLoop,
    alone: Context,
    spots: Sequence[Spot],
    draws: int,
    seed: int,
    progress: Callable[[str, int, int], None] = lambda _what, _done, _total: None,
) -> RuleFit:
    """Draw `draws` times at every spot and compare with the target alone.

    Each draw of each spot has a seed of its own, which follows from `seed`. `alone` is a target
    context without a drafter. Raises RuntimeUnavailable if llama.cpp refuses a batch.
    """
    spy = _Spy(loop.rule)
    loop.rule = spy
    places, controls, accepted = [], [], 0
    try:
        for number, spot in enumerate(spots):
            spy.first_tokens.clear()
            pairs: Counter[tuple[int, int]] = Counter()
            place = loop.enter(spot.text)
            for n, own_seed in enumerate(seeds_of(seed, number, draws)):
                progress(f"drawing, {spy.name}", number * draws + n, draws * len(spots))
                first_round, pair = _draw_two(loop, place, spy, own_seed)
                pairs[pair] += 1
                accepted += first_round >= 1
            expect = _Expected(alone, spot.text, loop.temperature)
            places.append(_fit_place(spot, pairs, expect))
            controls.append(fit(spy.first_tokens, expect.after()))
    finally:
        loop.rule = spy.rule
    return RuleFit(
        rule=spy.rule.name,
        places=tuple(places),
        accepted=Proportion(accepted, draws * len(spots)),
        control=combine(control.p_value for control in controls if control.dof),
    )


def seeds_of(seed: int, number: int, count: int) -> list[int]:
    """Return `count` 32-bit seeds of spot `number`; those of other spots and seeds are unrelated.

    Seeds that follow each other would do for one run, but runs from neighbouring seeds would
    then share most of their draws.
    """
    return [int(own) for own in np.random.SeedSequence((seed, number)).generate_state(count)]


class _Spy(Rule):
    """The rule under test; shows every spot's first rounds to its broken sibling as well."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.name = rule.name
        self.broken = BROKEN[rule.name]()
        self.watching = False
        self.first_tokens: Counter[int] = Counter()

    def sample(self, row: Row, draw: Draw) -> int:
        return self.rule.sample(row, draw)

    def draft(self, row: Row, draw: Draw) -> int:
        return self.rule.draft(row, draw)

    def judge(self, row: RowOfTarget, drafts: Sequence[int], draw: Draw) -> tuple[int, int]:
        if self.watching:
            accepted, token = self.broken.judge(row, drafts[:1], draw)
            self.first_tokens[drafts[0] if accepted else token] += 1
        return self.rule.judge(row, drafts, draw)


def _draw_two(
    loop: SamplingLoop, place: Place, spy: _Spy, seed: int
) -> tuple[int, tuple[int, int]]:
    """Decode two tokens at `place` and cut the cache back; also tell what the first round took."""
    spy.watching = True
    done, after = loop.round(place, seed)
    spy.watching = False
    emitted = done.emitted
    if len(emitted) < 2:
        more, _ = loop.round(after, seed)
        emitted += more.emitted
    loop.target.keep(place.position)
    return done.accepted, (emitted[0], emitted[1])


class _Expected:
    """The target's own distributions behind a text, one token wide, without a drafter."""

    def __init__(self, alone: Context, text: tuple[int, ...], temperature: float) -> None:
        self.alone = alone
        self.position = len(text)
        self.temperature = temperature
        alone.prefill(text)
        last = (len(text) - 1) % alone.n_batch
        self._first = softmax(alone.logits(last), temperature)

    def after(self, token: int | None = None) -> np.ndarray:
        """Return the distribution behind the text, or behind the text and one token."""
        if token is None:
            return self._first
        self.alone.decode([token], self.position)
        following = softmax(self.alone.logits(0), self.temperature)
        self.alone.keep(self.position)
        return following


def _fit_place(spot: Spot, pairs: Counter[tuple[int, int]], expect: _Expected) -> PlaceFit:
    firsts: Counter[int] = Counter()
    for (first, _), count in pairs.items():
        firsts[first] += count
    seconds = [
        fit({b: n for (a, b), n in pairs.items() if a == token}, expect.after(token))
        for token, count in sorted(firsts.items())
        if count >= MIN_FOLLOWED
    ]
    return PlaceFit(spot.prompt, spot.index, fit(firsts, expect.after()), add(seconds))
