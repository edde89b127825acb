"""How many tokens to draft, from what drafts came to and what they and their checking cost.

A round of m drafts costs draft(steps) + verify(m + 1) and gives one token more than were accepted.
Rounds of the deepest drafting are cut, in thought, at each depth and at each confidence below which
llama.cpp would stop drafting (``--spec-draft-p-min``: the best candidate's probability among the
ten best); where a cut round ends, another would begin, which is taken to be like the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

THRESHOLDS = tuple(round(0.05 * i, 2) for i in range(20))
CLOSE = 0.01  # a setting is not advised for less than this share of speed
CLEARLY = 0.05  # gains and losses below this are "about even", whatever was measured
PAYS, EVEN, DOES_NOT = "pays", "about even", "does not pay"


@dataclass(frozen=True)
class JudgedDraft:
    """A round of the deepest drafting: how sure the drafter was of each token; how many stood."""

    confidence: tuple[float, ...]
    accepted: int


@dataclass(frozen=True)
class Costs:
    """Milliseconds: of drafting, by steps from 1 on, and of verifying, by width from 1 on."""

    draft: Mapping[int, float]
    verify: Mapping[int, float]

    @property
    def plain_rate(self) -> float:
        """Tokens a second without drafts."""
        return 1e3 / self.verify[1]


@dataclass(frozen=True)
class Setting:
    """A choice of depth and confidence, with the tokens a second that it is expected to give."""

    n_max: int
    p_min: float
    rate: float


@dataclass(frozen=True)
class Advice:
    """`best` of all settings; `ratio` to plain decoding; `verdict` one of the three above."""

    verdict: str
    best: Setting
    ratio: float
    settings: tuple[Setting, ...]


def expected_rate(rounds: Sequence[JudgedDraft], costs: Costs, n_max: int, p_min: float) -> float:
    """Tokens a second if drafts ended at `n_max` tokens and before one less sure than `p_min`."""
    tokens, milliseconds = 0, 0.0
    for judged in rounds:
        sure = judged.confidence[:n_max]
        kept = next((i for i, p in enumerate(sure) if p < p_min), len(sure))
        # The step that was not sure enough has been taken, too.
        steps = min(kept + 1, len(sure))
        tokens += min(judged.accepted, kept) + 1
        milliseconds += (costs.draft[steps] if steps else 0.0) + costs.verify[kept + 1]
    return 1e3 * tokens / milliseconds


def advise(rounds: Sequence[JudgedDraft], costs: Costs, uncertainty: float = 0.0) -> Advice | None:
    """Choose the depth and confidence with the best expected speed; None without rounds.

    A lower `p_min` and a smaller depth are preferred where they are as good within `CLOSE`.
    `uncertainty` is by how much measured ratios to plain decoding differ: a gain or loss
    within it is none.
    """
    deepest = max((len(judged.confidence) for judged in rounds), default=0)
    if deepest == 0:
        return None
    settings = [
        Setting(n, p, expected_rate(rounds, costs, n, p))
        for p in THRESHOLDS
        for n in range(1, deepest + 1)
    ]
    most = max(setting.rate for setting in settings)
    best = next(setting for setting in settings if setting.rate >= (1 - CLOSE) * most)
    ratio = best.rate / costs.plain_rate
    clearly = max(CLEARLY, uncertainty)
    verdict = PAYS if ratio > 1 + clearly else DOES_NOT if ratio < 1 - clearly else EVEN
    return Advice(verdict, best, ratio, tuple(settings))
