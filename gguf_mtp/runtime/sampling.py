"""Decoding at a temperature with drafts, so that the text keeps the target's own distribution.

The target samples every token for itself, and a draft is accepted where the sample is the same
token. No rule of acceptance can therefore change the distribution. Two ways to sample and to draft:

coupled  Target and drafter draw with the same noise, so that they often draw the same token
         (`coupled.py`).
match    The drafter drafts its best tokens, and the target draws from its distribution by the
         inverse of the cumulated probabilities (as llama.cpp's
         ``common_sampler_sample_and_accept_n`` does with its ``dist`` sampler).

Every sample is a function of the logits, the seed and the position in the sequence. How many tokens
were drafted does not change it: one seed gives one text, with and without drafts, as far as the
logits are the same. At temperature 0 both rules are greedy decoding.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from gguf_mtp.errors import RuntimeUnavailable
from gguf_mtp.runtime import coupled
from gguf_mtp.runtime.bindings import MAX_OUTPUTS, Context, Row
from gguf_mtp.runtime.coupled import Draw, best
from gguf_mtp.runtime.speculative import Round

Probabilities = npt.NDArray[np.float64]  # [n_vocab], sums to 1
RowOfTarget = Callable[[int], Row]


@dataclass(frozen=True)
class Place:
    """Where a round begins: the cache ends before `position`, where `token` is to go.

    `hidden` [n_embd] is the target's row that `token` was chosen from.
    """

    token: int
    position: int
    hidden: Row


class Rule(ABC):
    """How the target samples and how the drafter drafts."""

    name: str

    @abstractmethod
    def sample(self, row: Row, draw: Draw) -> int:
        """Draw the target's token from logits [n_vocab]."""

    @abstractmethod
    def draft(self, row: Row, draw: Draw) -> int:
        """Choose the drafter's token from its logits [n_vocab]."""

    def judge(self, row: RowOfTarget, drafts: Sequence[int], draw: Draw) -> tuple[int, int]:
        """Return how many drafts are accepted, and the token that follows them.

        `row(i)` is the target's logits after the first i drafts, i = 0..len(drafts); `draw` is
        the first draft's.
        """
        for i, draft in enumerate(drafts):
            token = self.sample(row(i), draw.after(i))
            if token != draft:
                return i, token
        return len(drafts), self.sample(row(len(drafts)), draw.after(len(drafts)))


class CoupledRule(Rule):
    """Target and drafter draw with the same noise."""

    name = "coupled"

    def sample(self, row: Row, draw: Draw) -> int:
        return coupled.sample(row, draw)

    def draft(self, row: Row, draw: Draw) -> int:
        return coupled.draft(row, draw)


class MatchRule(Rule):
    """The drafter drafts its best tokens; the target draws with a random number of its own."""

    name = "match"

    def sample(self, row: Row, draw: Draw) -> int:
        random = np.random.default_rng((draw.seed, draw.position))
        return draw_from(softmax(row, draw.temperature), random)

    def draft(self, row: Row, draw: Draw) -> int:
        return best(row)


RULES: dict[str, Callable[[], Rule]] = {"coupled": CoupledRule, "match": MatchRule}


class SamplingDrafter(Protocol):
    """Proposes tokens that may follow `last`."""

    def draft(
        self, last: int, hidden: Row, position: int, n: int, choose: Callable[[Row, int], int]
    ) -> list[int]:
        """Return up to `n` drafts; `choose` makes draft i of a row [n_vocab] of logits and i."""
        ...


class MtpSamplingDrafter:
    """Gemma 4's assistant as `MtpDrafter` runs it, with the choice of each token left open."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def draft(
        self, last: int, hidden: Row, position: int, n: int, choose: Callable[[Row, int], int]
    ) -> list[int]:
        drafts: list[int] = []
        token = last
        for i in range(n):
            self.context.decode_with_hidden(token, hidden, position)
            token = choose(self.context.logits(0), i)
            hidden = self.context.hidden(0)
            drafts.append(token)
        return drafts


class SamplingLoop:
    """Decoding of one sequence with drafts at a temperature, over a target context and a drafter.

    The target must keep hidden rows of every token (``Pair.contexts`` sees to it). A round is a
    step of its own, so that a caller can stream, or repeat a round from the same place. With
    `n_max` 0 it decodes without drafts.
    """

    def __init__(
        self,
        target: Context,
        drafter: SamplingDrafter,
        n_max: int,
        rule: Rule,
        temperature: float,
    ) -> None:
        if not 0 <= n_max < MAX_OUTPUTS:
            raise ValueError(f"n_max must be within 0..{MAX_OUTPUTS - 1}, not {n_max}")
        if not 0 <= temperature < float("inf"):
            raise ValueError(f"temperature must be a number from 0 on, not {temperature}")
        self.target = target
        self.drafter = drafter
        self.n_max = n_max
        self.rule = rule
        self.temperature = temperature

    def start(self, prompt: Sequence[int], seed: int) -> Place:
        """Decode a prompt and draw the token that follows it; the place's `token` is that one."""
        self.target.prefill(prompt)
        return self.place((len(prompt) - 1) % self.target.n_batch, len(prompt), seed)

    def place(self, i: int, position: int, seed: int) -> Place:
        """Draw the token after batch row `i`, the last of `position` decoded tokens."""
        token = self.rule.sample(self._row(i), self._draw(position, seed))
        return Place(token, position, self.target.hidden(i))

    def enter(self, text: Sequence[int]) -> Place:
        """Decode all of a text of two or more tokens but the last, where the next round begins."""
        if len(text) < 2:
            raise RuntimeUnavailable(f"a place needs two tokens before it, not {len(text)}")
        self.target.prefill(text[:-1])
        last = (len(text) - 2) % self.target.n_batch
        return Place(text[-1], len(text) - 1, self.target.hidden(last))

    def round(self, place: Place, seed: int) -> tuple[Round, Place]:
        """Draft, verify and emit one token or more; also return the place that follows.

        Raises RuntimeUnavailable where llama.cpp refuses a batch, as for want of room.
        """
        draw = self._draw(place.position + 1, seed)
        started = time.perf_counter()
        drafts = self._draft(place, draw)
        drafted_at = time.perf_counter()
        self.target.decode([place.token, *drafts], place.position)
        accepted, token = self._judge(drafts, draw)
        seconds = time.perf_counter() - drafted_at
        hidden = self._next_hidden(accepted)
        end = self._roll_back(place.position, accepted, len(drafts) + 1)
        done = Round(
            position=place.position,
            token=place.token,
            drafted=tuple(drafts),
            accepted=accepted,
            emitted=(*drafts[:accepted], token),
            draft_seconds=drafted_at - started,
            verify_seconds=seconds,
        )
        return done, Place(token, end, hidden)

    def _draw(self, position: int, seed: int) -> Draw:
        """Return the draw of the sequence's token number `position`, counted from 0."""
        return Draw(seed, position, self.temperature)

    def _draft(self, place: Place, draw: Draw) -> list[int]:
        def choose(row: Row, i: int) -> int:
            return self.rule.draft(row, draw.after(i))

        return self.drafter.draft(place.token, place.hidden, place.position, self.n_max, choose)

    def _judge(self, drafts: Sequence[int], draw: Draw) -> tuple[int, int]:
        return self.rule.judge(self._row, drafts, draw)

    def _row(self, i: int) -> Row:
        """Return the target's logits [n_vocab] after batch row `i`."""
        return self.target.logits(i)

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
    highest = best(row)
    if temperature == 0:
        certain = np.zeros(row.size)
        certain[highest] = 1.0
        return certain
    weights = np.exp((row.astype(np.float64) - row[highest]) / temperature)
    probabilities: Probabilities = weights / weights.sum()
    return probabilities


def draw_from(probabilities: Probabilities, random: np.random.Generator) -> int:
    """Draw one index; never one whose probability is 0."""
    ladder = np.cumsum(probabilities)
    ladder /= ladder[-1]  # ends at 1 exactly, which no draw reaches
    return int(np.searchsorted(ladder, random.random(), side="right"))
