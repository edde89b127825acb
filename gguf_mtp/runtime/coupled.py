"""Coupled sampling: the target and its drafter draw with the same noise.

A token is argmax(logit / temperature + noise), and the noise (Gumbel) is a function of seed,
position and token alone. So every token is a sample of the target's own distribution, the text of
one seed is the same with drafts of any length and without drafts, and drafter and target often
draw the same token although neither knows the other's logits.

The noise of the candidates must be independent, or the sample does not have the target's
distribution. llama.cpp's drafter does not have a value for every token: the noise of a position
comes in buckets of token ids with the same remainder. The most probable token of a bucket takes the
bucket's value, and the others take values of their own. Which one that is follows from the logits,
not from the noise, so the values stay independent. The drafter uses the bucket's value for each of
its tokens.

Source: Daliri, Musco and Suresh 2024, arXiv:2408.07978. The numbers are those of
``common/coupled-sampling.cpp`` in the patch series: SplitMix64 and 53-bit uniforms.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from gguf_mtp.errors import RuntimeUnavailable
from gguf_mtp.runtime.bindings import Row

Values = npt.NDArray[np.float64]  # [n_vocab], logits at a temperature and noise
Ids = npt.NDArray[np.intp]  # of tokens or buckets
Integers = npt.NDArray[np.uint64]

SEEDS = 1 << 32  # a seed is a 32-bit number in llama.cpp
N_BUCKETS = 2048  # LLAMA_MTP_DRAFT_BUCKETS
# Noise is between -3.7 and 37.5, as its uniforms have 53 bits: below this a token cannot win.
REACH = 42.0

_PART = 1 << 14  # values at a time
_WORD = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15
_FACTORS = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_OF_BUCKETS, _OF_TOKENS = 0, 1  # which of a position's two sets of numbers


@dataclass(frozen=True)
class Draw:
    """What a sample depends on besides the logits; `position` counts the tokens before it."""

    seed: int
    position: int
    temperature: float

    def after(self, n: int) -> Draw:
        """Return the draw that comes `n` tokens later."""
        return replace(self, position=self.position + n)


def best(row: Row) -> int:
    """Return the token of the highest logit; ties go to the lowest id.

    Raises RuntimeUnavailable on NaN and infinity, which have no distribution.
    """
    token = int(np.argmax(row))
    if not np.isfinite(row[token]):
        raise RuntimeUnavailable("logits are not numbers")
    return token


def sample(row: Row, draw: Draw) -> int:
    """Draw the target's token from logits [n_vocab]; the best one at temperature 0."""
    highest = best(row)
    return highest if draw.temperature == 0 else int(np.argmax(perturbed(row, draw)))


def draft(row: Row, draw: Draw) -> int:
    """Draw the drafter's token, with the bucket's value for every token."""
    highest = best(row)
    if draw.temperature == 0:
        return highest
    buckets = np.arange(min(row.size, N_BUCKETS))
    noise = np.resize(bucket_noise(draw.seed, draw.position, buckets), row.size)
    return int(np.argmax(_scaled(row, draw.temperature) + noise))


def perturbed(row: Row, draw: Draw) -> Values:
    """Return logit / temperature + noise of every token, -inf of those that cannot be drawn."""
    scaled = _scaled(row, draw.temperature)
    values: Values = scaled + token_noise(draw.seed, draw.position, np.arange(row.size))
    firsts = first_of_buckets(scaled)
    own_bucket = firsts % N_BUCKETS
    values[firsts] = scaled[firsts] + bucket_noise(draw.seed, draw.position, own_bucket)
    values[scaled < scaled.max() - np.float32(REACH)] = -np.inf
    return values


def first_of_buckets(logits: Row) -> Ids:
    """Return the most probable token of each bucket [min(n_vocab, N_BUCKETS)]; ties: lowest id."""
    rows = -(-logits.size // N_BUCKETS)
    table = np.full(rows * N_BUCKETS, -np.inf, np.float32)
    table[: logits.size] = logits
    buckets = np.arange(min(logits.size, N_BUCKETS))
    chosen: Ids = table.reshape(rows, N_BUCKETS).argmax(axis=0)[buckets]
    return chosen * N_BUCKETS + buckets


def bucket_noise(seed: int, position: int, buckets: Ids) -> Values:
    """Return the noise of `buckets` at a position."""
    return _gumbel(_stream(seed, position, _OF_BUCKETS), buckets)


def token_noise(seed: int, position: int, tokens: Ids) -> Values:
    """Return the noise that `tokens` have where they are not the first of their bucket."""
    return _gumbel(_stream(seed, position, _OF_TOKENS), tokens)


def _scaled(row: Row, temperature: float) -> Row:
    """Divide as llama.cpp's sampler does, in F32."""
    scaled: Row = row / np.float32(temperature)
    return scaled


def _stream(seed: int, position: int, number: int) -> int:
    """Return where one set of numbers begins."""
    state = 0
    for part in (seed, position, number):
        state = _mix(state + part + _STEP)
    return state


def _mix(x: int) -> int:
    """SplitMix64's output function, modulo 2^64."""
    x &= _WORD
    x = (x ^ (x >> 30)) * _FACTORS[0] & _WORD
    x = (x ^ (x >> 27)) * _FACTORS[1] & _WORD
    return x ^ (x >> 31)


def _mix_in_place(x: Integers) -> None:
    """`_mix` of an array, whose arithmetic is modulo 2^64 already."""
    x ^= x >> np.uint64(30)
    x *= np.uint64(_FACTORS[0])
    x ^= x >> np.uint64(27)
    x *= np.uint64(_FACTORS[1])
    x ^= x >> np.uint64(31)


def _gumbel(stream: int, indices: Ids) -> Values:
    """Return -log(-log(u)) of one uniform number in (0, 1) for each index."""
    noise = np.empty(indices.size)
    # In parts that stay in a CPU's cache: of a large vocabulary that takes a third of the time.
    for start in range(0, indices.size, _PART):
        x = (indices[start : start + _PART].astype(np.uint64) + np.uint64(1)) * np.uint64(_STEP)
        x += np.uint64(stream)
        _mix_in_place(x)
        # The largest of 2^53 uniforms rounds to 1, whose noise is infinite: the token is drawn.
        with np.errstate(divide="ignore"):
            uniform = ((x >> np.uint64(11)) + 0.5) * 2.0**-53
            noise[start : start + _PART] = -np.log(-np.log(uniform))
    return noise
