"""How close the two best tokens were, over whole texts: a histogram in powers of ten."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

BINS_PER_DECADE = 4
LOWEST, HIGHEST = -6, 3  # powers of ten; what lies outside counts at the end, ties among them


@dataclass(frozen=True)
class Bin:
    """`count` tokens whose margin is from `low` to below `high`."""

    low: float
    high: float
    count: int


def histogram(margins: Iterable[float]) -> tuple[Bin, ...]:
    """Return the bins from the lowest to the highest that holds a margin, empty ones between."""
    counts = Counter(map(_bin, margins))
    if not counts:
        return ()
    return tuple(
        Bin(10 ** (i / BINS_PER_DECADE), 10 ** ((i + 1) / BINS_PER_DECADE), counts[i])
        for i in range(min(counts), max(counts) + 1)
    )


def _bin(margin: float) -> int:
    lowest, highest = LOWEST * BINS_PER_DECADE, HIGHEST * BINS_PER_DECADE - 1
    if margin <= 0:
        return lowest
    return min(highest, max(lowest, math.floor(BINS_PER_DECADE * math.log10(margin))))
