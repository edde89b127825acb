"""L4: many seeded draws from the loop under test at fixed places, against the target alone.

At each place the loop decodes two tokens again and again, from one prefill: behind a draw the
cache is cut back. The first token's distribution, and the second's for each common first one, are
compared with softmaxes of a context that has no drafter. The same test, on the same rounds, must
find a rule that is broken on purpose; where it does not, there were too few draws to tell.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gguf_mtp.runtime.bindings import Context
from gguf_mtp.runtime.sampling import (
    Draft,
    MatchRule,
    Place,
    RejectionRule,
    RowOfTarget,
    Rule,
    SamplingLoop,
    draw,
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


class DrawsAgain(RejectionRule):
    """Broken on purpose: a rejected draft is replaced from all of p, not from its remainder."""

    def remainder(self, p: np.ndarray, q: np.ndarray) -> np.ndarray:
        return p


class SamplesAgain(MatchRule):
    """Broken on purpose: where draft and sample differ, the target samples once more."""

    def judge(
        self, p: RowOfTarget, drafts: Sequence[Draft], random: np.random.Generator
    ) -> tuple[int, int]:
        accepted, token = super().judge(p, drafts, random)
        return accepted, draw(p(accepted), random) if accepted < len(drafts) else token


BROKEN: dict[str, Callable[[], Rule]] = {"rejection": DrawsAgain, "match": SamplesAgain}


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

    Draw number n of spot s takes its numbers from a generator seeded with (seed, s, n), so that
    it can be repeated by itself. `alone` is a target context without a drafter. Raises
    RuntimeUnavailable if llama.cpp refuses a batch.
    """
    spy = _Spy(loop.rule)
    loop.rule = spy
    places, controls, accepted = [], [], 0
    try:
        for number, spot in enumerate(spots):
            spy.first_tokens.clear()
            pairs: Counter[tuple[int, int]] = Counter()
            place = loop.enter(spot.text)
            for n in range(draws):
                progress(f"drawing, {spy.name}", number * draws + n, draws * len(spots))
                random = np.random.default_rng((seed, number, n))
                spy.control_random = np.random.default_rng((seed, number, n, 1))
                first_round, pair = _draw_two(loop, place, spy, random)
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


class _Spy:
    """The rule under test; shows every spot's first rounds to its broken sibling as well."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.name = rule.name
        self.samples_drafts = rule.samples_drafts
        self.broken = BROKEN[rule.name]()
        self.watching = False
        self.control_random = np.random.default_rng(0)
        self.first_tokens: Counter[int] = Counter()

    def judge(
        self, p: RowOfTarget, drafts: Sequence[Draft], random: np.random.Generator
    ) -> tuple[int, int]:
        if self.watching:
            accepted, token = self.broken.judge(p, drafts[:1], self.control_random)
            self.first_tokens[drafts[0].token if accepted else token] += 1
        return self.rule.judge(p, drafts, random)


def _draw_two(
    loop: SamplingLoop, place: Place, spy: _Spy, random: np.random.Generator
) -> tuple[int, tuple[int, int]]:
    """Decode two tokens at `place` and cut the cache back; also tell what the first round took."""
    spy.watching = True
    done, after = loop.round(place, random)
    spy.watching = False
    emitted = done.emitted
    if len(emitted) < 2:
        more, _ = loop.round(after, random)
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
