"""Statistics over rounds of speculative decoding: acceptance, tokens per pass, times."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gguf_mtp.runtime.speculative import Round, Run

Z_95 = 1.959963984540054


@dataclass(frozen=True)
class Proportion:
    """`hits` of `total`, with its 95 % Wilson interval."""

    hits: int
    total: int

    @property
    def rate(self) -> float:
        """The observed share; NaN where there is nothing to observe."""
        return self.hits / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson score interval."""
        return wilson(self.hits, self.total)


@dataclass(frozen=True)
class Acceptance:
    """What became of the drafts of some rounds.

    `first_accepted[k - 1]` counts the rounds whose first k drafts were all accepted, out of
    those that drafted at least k. A pass is one decode of the target; each emits its accepted
    drafts and one token more.
    """

    rounds: int
    first_accepted: tuple[Proportion, ...]
    tokens: int
    draft_seconds: float
    verify_seconds: float

    @property
    def tokens_per_pass(self) -> float:
        """Mean tokens emitted per target pass; NaN without rounds."""
        return self.tokens / self.rounds if self.rounds else math.nan


def wilson(hits: int, total: int, z: float = Z_95) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion (Wilson 1927), within 0..1.

    Nothing observed leaves everything possible: (0, 1).
    """
    if total == 0:
        return 0.0, 1.0
    rate = hits / total
    spread = z * math.sqrt(rate * (1 - rate) / total + z * z / (4 * total * total))
    centre = rate + z * z / (2 * total)
    scale = 1 + z * z / total
    low, high = (centre - spread) / scale, (centre + spread) / scale
    # At the ends the formula is exact but its arithmetic is not.
    return (0.0 if hits == 0 else low), (1.0 if hits == total else high)


def acceptance(rounds: Iterable[Round], n_max: int) -> Acceptance:
    """Summarize rounds; `n_max` is how many positions to report."""
    rounds = list(rounds)
    positions = []
    for k in range(1, n_max + 1):
        eligible = [r for r in rounds if len(r.drafted) >= k]
        positions.append(Proportion(sum(r.accepted >= k for r in eligible), len(eligible)))
    return Acceptance(
        rounds=len(rounds),
        first_accepted=tuple(positions),
        tokens=sum(r.accepted + 1 for r in rounds),
        draft_seconds=sum(r.draft_seconds for r in rounds),
        verify_seconds=sum(r.verify_seconds for r in rounds),
    )


def counted_rounds(run: Run) -> list[Round]:
    """Return the rounds that count: all but a last one that met the end of the text.

    Its later drafts follow an end token, where neither model was ever trained to go.
    """
    return list(run.rounds[:-1] if run.ended else run.rounds)


def novel_rounds(run: Run, n: int = 4) -> list[Round]:
    """Return the counted rounds whose first emitted token completes an n-gram not seen before.

    Text that repeats itself flatters any drafter; these rounds are where it has something to
    say. "Before" is the prompt and the output up to that token.
    """
    text = [*run.prompt, *run.tokens[: len(run.tokens) - _emitted(run.rounds)]]
    seen = _ngrams(text, n)
    novel = []
    counted = len(counted_rounds(run))
    for number, r in enumerate(run.rounds):
        for i, token in enumerate(r.emitted):
            text.append(token)
            gram = tuple(text[-n:])
            if i == 0 and number < counted and len(text) >= n and gram not in seen:
                novel.append(r)
            seen.add(gram)
    return novel


def _emitted(rounds: Sequence[Round]) -> int:
    return sum(len(r.emitted) for r in rounds)


def _ngrams(tokens: Sequence[int], n: int) -> set[tuple[int, ...]]:
    return {tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)}
