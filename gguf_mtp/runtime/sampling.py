"""Decoding at a temperature with drafts, so that the text keeps the target's own distribution.

Two rules of acceptance, both exact:

rejection  Drafts are sampled from the drafter's distribution q; a draft x stands with probability
           min(1, p(x) / q(x)), else a token is drawn from what p has over q (Leviathan et al. 2023,
           arXiv:2211.17192, theorem 1; Chen et al. 2023, arXiv:2302.01318, algorithm 2).
match      Drafts are the drafter's best tokens; the target samples for itself, and a draft stands
           where the sample is the same token (llama.cpp's ``common_sampler_sample_and_accept_n``).

p and q are softmaxes at one temperature. At temperature 0 both rules are greedy decoding.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from gguf_mtp.errors import RuntimeUnavailable
from gguf_mtp.runtime.bindings import MAX_OUTPUTS, Context, Row
from gguf_mtp.runtime.speculative import Round

Probabilities = npt.NDArray[np.float64]  # [n_vocab], sums to 1
RowOfTarget = Callable[[int], Probabilities]


@dataclass(frozen=True)
class Draft:
    """A drafted token, and the distribution [n_vocab] it was sampled from."""

    token: int
    q: Probabilities


@dataclass(frozen=True)
class Place:
    """Where a round begins: the cache ends before `position`, where `token` is to go.

    `hidden` [n_embd] is the target's row that `token` was chosen from.
    """

    token: int
    position: int
    hidden: Row


class Rule(Protocol):
    """Decides what of a draft stands, and what follows it."""

    name: str
    samples_drafts: bool  # else the drafter's best tokens are drafted

    def judge(
        self, p: RowOfTarget, drafts: Sequence[Draft], random: np.random.Generator
    ) -> tuple[int, int]:
        """Return how many drafts stand, and the token that follows them.

        `p(i)` is the target's distribution behind the first i drafts, i = 0..len(drafts).
        """
        ...


class RejectionRule:
    """A draft stands with probability min(1, p/q), else the rest of p over q is drawn from."""

    name = "rejection"
    samples_drafts = True

    def judge(
        self, p: RowOfTarget, drafts: Sequence[Draft], random: np.random.Generator
    ) -> tuple[int, int]:
        for i, draft in enumerate(drafts):
            own = p(i)
            # u < p/q, without a division; u is below 1, so that p >= q always stands.
            if random.random() * draft.q[draft.token] < own[draft.token]:
                continue
            return i, draw(self.remainder(own, draft.q), random)
        return len(drafts), draw(p(len(drafts)), random)

    def remainder(self, p: Probabilities, q: Probabilities) -> Probabilities:
        """Return max(0, p - q), normalized: what a rejected draft is replaced from."""
        rest = np.maximum(p - q, 0.0)
        total = rest.sum()
        # Nothing is left only where p equals q, and there nothing is rejected but by rounding.
        return rest / total if total > 0 else p


class MatchRule:
    """The target samples for itself; a draft stands where it is the same token."""

    name = "match"
    samples_drafts = False

    def judge(
        self, p: RowOfTarget, drafts: Sequence[Draft], random: np.random.Generator
    ) -> tuple[int, int]:
        for i, draft in enumerate(drafts):
            token = draw(p(i), random)
            if token != draft.token:
                return i, token
        return len(drafts), draw(p(len(drafts)), random)


RULES: dict[str, Callable[[], Rule]] = {"rejection": RejectionRule, "match": MatchRule}


class SamplingDrafter(Protocol):
    """Proposes tokens that may follow `last`, each with the distribution it came from."""

    def draft(
        self, last: int, hidden: Row, position: int, n: int, choose: Callable[[Row], Draft]
    ) -> list[Draft]:
        """Return up to `n` drafts; `choose` makes one of a row [n_vocab] of logits."""
        ...


class MtpSamplingDrafter:
    """Gemma 4's assistant as `MtpDrafter` runs it, with the choice of each token left open."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def draft(
        self, last: int, hidden: Row, position: int, n: int, choose: Callable[[Row], Draft]
    ) -> list[Draft]:
        drafts: list[Draft] = []
        token = last
        while len(drafts) < n:
            self.context.decode_with_hidden(token, hidden, position)
            drafts.append(choose(self.context.logits(0)))
            token = drafts[-1].token
            hidden = self.context.hidden(0)
        return drafts


class SamplingLoop:
    """Decoding of one sequence with drafts at a temperature, over a target context and a drafter.

    The target must keep hidden rows of every token (``Pair.contexts`` sees to it). A round is a
    step of its own, so that a caller can stream, or repeat a round from the same place.
    """

    def __init__(
        self,
        target: Context,
        drafter: SamplingDrafter,
        n_max: int,
        rule: Rule,
        temperature: float,
    ) -> None:
        if not 1 <= n_max < MAX_OUTPUTS:
            raise ValueError(f"n_max must be within 1..{MAX_OUTPUTS - 1}, not {n_max}")
        if not 0 <= temperature < float("inf"):
            raise ValueError(f"temperature must be a number from 0 on, not {temperature}")
        self.target = target
        self.drafter = drafter
        self.n_max = n_max
        self.rule = rule
        self.temperature = temperature

    def start(self, prompt: Sequence[int], random: np.random.Generator) -> Place:
        """Decode a prompt and draw the token that follows it; the place's `token` is that one."""
        self.target.prefill(prompt)
        last = (len(prompt) - 1) % self.target.n_batch
        token = draw(self._distribution(last), random)
        return Place(token, len(prompt), self.target.hidden(last))

    def enter(self, text: Sequence[int]) -> Place:
        """Decode all of a text of two or more tokens but the last, where the next round begins."""
        if len(text) < 2:
            raise RuntimeUnavailable(f"a place needs two tokens before it, not {len(text)}")
        self.target.prefill(text[:-1])
        last = (len(text) - 2) % self.target.n_batch
        return Place(text[-1], len(text) - 1, self.target.hidden(last))

    def round(self, place: Place, random: np.random.Generator) -> tuple[Round, Place]:
        """Draft, verify and emit one token or more; also return the place that follows.

        Raises RuntimeUnavailable where llama.cpp refuses a batch, as for want of room.
        """
        started = time.perf_counter()
        drafts = self._draft(place, random)
        drafted_at = time.perf_counter()
        tokens = tuple(draft.token for draft in drafts)
        self.target.decode([place.token, *tokens], place.position)
        accepted, token = self._judge(drafts, random)
        seconds = time.perf_counter() - drafted_at
        hidden = self._next_hidden(accepted)
        end = self._roll_back(place.position, accepted, len(drafts) + 1)
        done = Round(
            position=place.position,
            token=place.token,
            drafted=tokens,
            accepted=accepted,
            emitted=(*tokens[:accepted], token),
            draft_seconds=drafted_at - started,
            verify_seconds=seconds,
        )
        return done, Place(token, end, hidden)

    def _draft(self, place: Place, random: np.random.Generator) -> list[Draft]:
        def choose(row: Row) -> Draft:
            q = softmax(row, self.temperature)
            return Draft(draw(q, random) if self.rule.samples_drafts else int(np.argmax(row)), q)

        return self.drafter.draft(place.token, place.hidden, place.position, self.n_max, choose)

    def _judge(self, drafts: Sequence[Draft], random: np.random.Generator) -> tuple[int, int]:
        return self.rule.judge(functools.cache(self._distribution), drafts, random)

    def _distribution(self, i: int) -> Probabilities:
        """Return the target's distribution of the token after batch row `i`."""
        return softmax(self.target.logits(i), self.temperature)

    def _next_hidden(self, accepted: int) -> Row:
        """Return the row that the newest emitted token was chosen from."""
        return self.target.hidden(accepted)

    def _roll_back(self, position: int, accepted: int, width: int) -> int:
        """Cut rejected drafts from the target's cache; return the position of the next token."""
        end = position + 1 + accepted
        if accepted + 1 < width:
            self.target.keep(end)
        return end


def softmax(row: Row, temperature: float) -> Probabilities:
    """Return the distribution that logits [n_vocab] give; all of it on the best at temperature 0.

    Raises RuntimeUnavailable on NaN, which has no distribution.
    """
    best = int(np.argmax(row))
    if not np.isfinite(row[best]):
        raise RuntimeUnavailable("logits are not numbers")
    if temperature == 0:
        certain = np.zeros(row.size)
        certain[best] = 1.0
        return certain
    weights = np.exp((row.astype(np.float64) - row[best]) / temperature)
    probabilities: Probabilities = weights / weights.sum()
    return probabilities


def draw(probabilities: Probabilities, random: np.random.Generator) -> int:
    """Draw one index; never one whose probability is 0."""
    ladder = np.cumsum(probabilities)
    ladder /= ladder[-1]  # ends at 1 exactly, which no draw reaches
    return int(np.searchsorted(ladder, random.random(), side="right"))
