"""sampled-identical: at a temperature, the text with drafts is the text without, seed for seed.

With coupled sampling (`runtime/coupled.py`) a token follows from the logits, the seed and the
position alone. Where logits depend on the batch shape, a near tie may fall the other way, as in
greedy decoding. How near it was is measured for each text that differs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from gguf_mtp.runtime.bindings import Context, Row
from gguf_mtp.runtime.coupled import N_BUCKETS, Draw, perturbed, sample
from gguf_mtp.runtime.sampling import SamplingLoop
from gguf_mtp.runtime.speculative import Run, decode_plainly
from gguf_mtp.validate.options import Options
from gguf_mtp.validate.tiers import Divergence, measure_invariance


@dataclass(frozen=True)
class Sampled:
    """What was decoded, `tokens` with drafts, and the first place where each prompt differs.

    A divergence's `margin` and `noise` are of logits, as at L3.
    """

    seed: int
    exact: bool
    tokens: int
    differing: tuple[Divergence, ...]

    @property
    def breaking(self) -> list[Divergence]:
        """Return the divergences that are not near ties.

        In exact mode, and where the logits were measured not to move, there are no near ties.
        """
        return [d for d in self.differing if self.exact or not is_near_tie(d)]


def is_near_tie(d: Divergence) -> bool:
    """Whether the batch shape moves logits of this text by at least the margin."""
    return d.margin is not None and bool(d.noise) and d.margin <= (d.noise or 0.0)


def compare_sampled(
    loop: SamplingLoop,
    alone: Context,
    prompts: Sequence[tuple[str, tuple[int, ...]]],
    options: Options,
    stop: frozenset[int],
    noise: float = 0.0,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Sampled:
    """Decode every prompt, given with its name, with drafts and without; compare the tokens.

    `loop` samples by `CoupledRule`; `alone` is a target context without a drafter. `noise` is what
    the batch shape was measured to move logits by in other texts. Raises RuntimeUnavailable if
    llama.cpp refuses a batch.
    """
    n_predict, seed = options.n_predict, options.seed
    differing, tokens = [], 0
    for done, (name, prompt) in enumerate(prompts):
        progress(done, len(prompts))
        expected = without_drafts(alone, prompt, n_predict, loop.temperature, seed, stop)
        found = with_drafts(loop, prompt, n_predict, seed, stop)
        tokens += len(found)
        index = first_difference(expected.tokens, found)
        if index is not None:
            first = _divergence(name, expected, found, index)
            with_margin = _with_margin(first, expected, loop, alone, seed)
            differing.append(replace(with_margin, noise=max(noise, with_margin.noise or 0.0)))
    return Sampled(seed, options.exact, tokens, tuple(differing))


def without_drafts(
    context: Context,
    prompt: tuple[int, ...],
    n_predict: int,
    temperature: float,
    seed: int,
    stop: frozenset[int],
) -> Run:
    """Sample one token at a time; nothing of the loop under test is used."""

    def choose(i: int, position: int) -> int:
        return sample(context.logits(i), Draw(seed, position, temperature))

    return decode_plainly(context, prompt, n_predict, stop, choose)


def with_drafts(
    loop: SamplingLoop, prompt: tuple[int, ...], n_predict: int, seed: int, stop: frozenset[int]
) -> tuple[int, ...]:
    """Return the tokens that the loop samples: `n_predict`, fewer where the output ends."""
    place = loop.start(prompt, seed)
    tokens = [place.token]
    while len(tokens) < n_predict and stop.isdisjoint(tokens):
        done, place = loop.round(place, seed)
        tokens += done.emitted
    ends = [i for i, token in enumerate(tokens) if token in stop]
    return tuple(tokens[: ends[0] + 1] if ends else tokens)[:n_predict]


def first_difference(a: Sequence[int], b: Sequence[int]) -> int | None:
    """Return the first index at which two sequences differ or only one goes on, or None."""
    shared = min(len(a), len(b))
    different = (i for i in range(shared) if a[i] != b[i])
    return next(different, None if len(a) == len(b) else shared)


def _divergence(name: str, expected: Run, found: tuple[int, ...], index: int) -> Divergence:
    a, b = (tokens[index] if index < len(tokens) else None for tokens in (expected.tokens, found))
    return Divergence(name, index, a, b, None, "token differs")


def _with_margin(
    d: Divergence, expected: Run, loop: SamplingLoop, alone: Context, seed: int
) -> Divergence:
    """Add the margin, and how far the batch shape moves logits of the expected text."""
    if d.expected is None or d.found is None:
        return d
    moved = measure_invariance(alone, loop.target, [expected], loop.n_max + 1)
    draw = Draw(seed, len(expected.prompt) + d.index, loop.temperature)
    margin = sampled_margin(_row_of(alone, expected, d.index), draw, d.expected, d.found)
    return replace(d, margin=margin, noise=moved.noise)


def _row_of(context: Context, run: Run, index: int) -> Row:
    """Return the logits that a run's token `index` was chosen from, one token wide."""
    context.prefill(run.prompt)
    row = (len(run.prompt) - 1) % context.n_batch
    for i, token in enumerate(run.tokens[:index]):
        context.decode([token], len(run.prompt) + i)
        row = 0
    return context.logits(row)


def sampled_margin(row: Row, draw: Draw, expected: int, found: int) -> float:
    """Return how far two logits of a row must move against each other for `found` to be drawn.

    Either `found` overtakes `expected`, or one of the two gains or loses its bucket's noise
    because another token of the bucket becomes the most probable one.
    """
    values = perturbed(row, draw)
    overtaking = (values[expected] - values[found]) * draw.temperature
    return float(min(overtaking, *(_bucket_margin(row, token) for token in (expected, found))))


def _bucket_margin(row: Row, token: int) -> float:
    """Return the distance of a token's logit from the best other one of its bucket."""
    bucket = row[token % N_BUCKETS :: N_BUCKETS].copy()
    bucket[token // N_BUCKETS] = -np.inf
    return abs(float(row[token]) - float(bucket.max()))
