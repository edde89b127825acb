"""Whether drawn tokens have a given distribution: Pearson's chi-squared, KL, combined p-values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from gguf_mtp.runtime.sampling import Probabilities

MIN_EXPECTED = 5.0  # Cochran's rule: no cell is expected to hold fewer draws
IMPOSSIBLE = 1e-12  # expected draws of a token, below which one draw is a finding by itself


@dataclass(frozen=True)
class Fit:
    """How well draws fit a distribution.

    `cells` are tokens expected at least five times, and one cell of all others. `chi2` is
    Pearson's statistic with `dof` degrees of freedom, `p_value` its upper tail. `w` is Cohen's
    effect size, sqrt(chi2 / draws); `kl` the Kullback-Leibler divergence of the observed shares
    from the expected ones over the cells, in nats. Both are above 0 by chance alone: about
    sqrt(dof / draws) and dof / (2 draws). A draw of a token that is as good as `impossible` makes
    the p-value 0: in a cell shared with others it would not show.
    """

    draws: int
    cells: int
    chi2: float
    dof: int
    p_value: float
    w: float
    kl: float
    impossible: int


def fit(counts: Mapping[int, int], p: Probabilities) -> Fit:
    """Test draws, counted by token, against the distribution `p` [n_vocab].

    Tokens expected fewer than five times share a cell, with the rarest of the others where they
    are not expected five times together. One cell alone tells nothing: p-value 1, no freedom.
    """
    draws = sum(counts.values())
    if draws == 0:
        return Fit(0, 0, 0.0, 0, 1.0, 0.0, 0.0, 0)
    seen = np.zeros(p.size)
    for token, count in counts.items():
        seen[token] = count
    observed, expected = _cells(seen, p * draws)
    chi2 = float(((observed - expected) ** 2 / expected).sum())
    drawn = observed > 0
    kl = float((observed[drawn] * np.log(observed[drawn] / expected[drawn])).sum()) / draws
    dof = observed.size - 1
    impossible = int(seen[p * draws < IMPOSSIBLE].sum())
    p_value = 0.0 if impossible else chi2_tail(chi2, dof)
    w = math.sqrt(chi2 / draws)
    return Fit(draws, observed.size, chi2, dof, p_value, w, max(0.0, kl), impossible)


def _cells(seen: np.ndarray, expected: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return observed and expected counts by cell, the shared one last."""
    own = expected >= MIN_EXPECTED
    rest = expected[~own].sum()
    if rest < MIN_EXPECTED and own.sum() > 1:
        own[np.argmin(np.where(own, expected, np.inf))] = False
        rest = expected[~own].sum()
    if not own.any() or rest < MIN_EXPECTED:  # nothing, or next to nothing, beside one token
        return np.array([seen.sum()]), np.array([expected.sum()])
    return np.append(seen[own], seen[~own].sum()), np.append(expected[own], rest)


def add(fits: Iterable[Fit]) -> Fit:
    """Return independent fits as one: statistics and degrees of freedom add up.

    So the conditional distributions of a second token, one for each first token, are one test.
    """
    parts = list(fits)
    draws = sum(part.draws for part in parts)
    chi2 = sum(part.chi2 for part in parts)
    dof = sum(part.dof for part in parts)
    impossible = sum(part.impossible for part in parts)
    return Fit(
        draws=draws,
        cells=sum(part.cells for part in parts),
        chi2=chi2,
        dof=dof,
        p_value=0.0 if impossible else chi2_tail(chi2, dof),
        w=math.sqrt(chi2 / draws) if draws else 0.0,
        kl=sum(part.kl * part.draws for part in parts) / draws if draws else 0.0,
        impossible=impossible,
    )


def combine(p_values: Iterable[float]) -> float:
    """Return the p-value of several independent tests as one (Fisher 1925, section 21.1)."""
    values = list(p_values)
    if any(value <= 0.0 for value in values):
        return 0.0
    return chi2_tail(-2.0 * sum(map(math.log, values)), 2 * len(values))


def chi2_tail(x: float, dof: int) -> float:
    """Return P(chi-squared with `dof` degrees of freedom >= x); 1 without any freedom."""
    return 1.0 if dof <= 0 or x <= 0 else _upper_gamma(dof / 2, x / 2)


def _upper_gamma(a: float, x: float) -> float:
    """Return the regularized upper incomplete gamma function Q(a, x), a > 0 and x > 0.

    Abramowitz and Stegun 6.5.29 (series) below a + 1, 6.5.31 (continued fraction, by Lentz's
    method) above it, where each converges fast. Written out because it is all of scipy that
    would be needed.
    """
    scale = math.exp(a * math.log(x) - x - math.lgamma(a))
    if x < a + 1:
        term = total = 1 / a
        n = a
        while term > total * 1e-16:
            n += 1
            term *= x / n
            total += term
        return max(0.0, 1 - scale * total)
    tiny = 1e-300
    b = x + 1 - a
    c, d = 1 / tiny, 1 / b
    fraction = d
    for i in range(1, 100_000):
        weight = -i * (i - a)
        b += 2
        d = 1 / (weight * d + b or tiny)
        c = b + weight / c or tiny
        fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return min(1.0, scale * fraction)
