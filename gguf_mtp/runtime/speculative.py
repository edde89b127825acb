"""Greedy decoding, plain and with MTP drafts, and a record of what each round did.

The loop is greedy speculative decoding (Leviathan et al. 2023, arXiv:2211.17192, at
temperature 0): draft k tokens, let the target score all of them in one batch of k + 1, accept
the longest prefix that the target would have chosen itself, and emit one more token of the
target's own. Facts about Gemma 4's drafter follow llama.cpp's ``common/speculative.cpp``
(``common_speculative_impl_draft_mtp``) and ``src/models/gemma4-assistant.cpp``.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from gguf_mtp.errors import RuntimeUnavailable
from gguf_mtp.runtime.bindings import MAX_OUTPUTS, Context, Row


@dataclass(frozen=True)
class Round:
    """One draft and its verification.

    `position` is where `token`, the newest emitted and not yet decoded token, goes in the
    cache; `drafted` follow it. The verify batch is 1 + len(drafted) wide. `emitted` are the
    tokens this round added to the output: `accepted` drafts and one of the target's own,
    fewer where the output ended. Times are seconds.
    """

    position: int
    token: int
    drafted: tuple[int, ...]
    accepted: int
    emitted: tuple[int, ...]
    draft_seconds: float
    verify_seconds: float


@dataclass(frozen=True)
class Run:
    """What decoding one prompt gave.

    `tokens` is the output; `prints` holds one fingerprint of the logits row each token was
    chosen from, `margins` the distance between that row's two highest logits. `rounds` is
    empty for plain decoding. Seconds count decoding and choosing, not bookkeeping.
    """

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    prints: tuple[bytes, ...]
    margins: tuple[float, ...]
    rounds: tuple[Round, ...]
    prefill_seconds: float
    decode_seconds: float
    ended: bool

    @property
    def decoded_tokens(self) -> int:
        """Tokens that came after the prefill's own."""
        return max(0, len(self.tokens) - 1)


@dataclass(frozen=True)
class Verified:
    """The target's view of a verify batch of w rows.

    `choices`, `prints` and `margins` have one entry a row; `hidden` is [w, n_embd].
    """

    choices: tuple[int, ...]
    prints: tuple[bytes, ...]
    margins: tuple[float, ...]
    hidden: Row
    seconds: float


class Drafter(Protocol):
    """Proposes tokens that may follow `last`."""

    def draft(self, last: int, hidden: Row, position: int, n: int) -> list[int]:
        """Return up to `n` tokens; `hidden` [n_embd] is the row that `last` was chosen from."""
        ...


class MtpDrafter:
    """Gemma 4's assistant in a context of its own that reads the target's KV cache.

    The first step takes the newest token and the target's hidden row it was chosen from, each
    later one its own last token and hidden row. The position stays the same through a draft
    (upstream's ``pos0``: the newest token's, one past the last in the cache), because the
    drafter writes no keys of its own: each step asks the same cache another question.
    """

    def __init__(self, context: Context) -> None:
        self.context = context

    def draft(self, last: int, hidden: Row, position: int, n: int) -> list[int]:
        """Return `n` greedily drafted tokens. Raises RuntimeUnavailable if decoding fails."""
        drafted: list[int] = []
        token = last
        while len(drafted) < n:
            self.context.decode_with_hidden(token, hidden, position)
            token = self.context.best(0)
            hidden = self.context.hidden(0)
            drafted.append(token)
        return drafted


class SpeculativeLoop:
    """Greedy decoding of one sequence with drafts, over a target context and a drafter.

    The target must keep hidden rows of every token (``Pair.contexts`` sees to it).
    The steps are methods so that a variant replaces exactly one of them.
    """

    def __init__(
        self,
        target: Context,
        drafter: Drafter,
        n_max: int,
        stop: frozenset[int] = frozenset(),
    ) -> None:
        if not 1 <= n_max < MAX_OUTPUTS:
            raise ValueError(f"n_max must be within 1..{MAX_OUTPUTS - 1}, not {n_max}")
        self.target = target
        self.drafter = drafter
        self.n_max = n_max
        self.stop = stop

    def run(self, prompt: Sequence[int], n_predict: int) -> Run:
        """Decode up to `n_predict` tokens after `prompt`.

        Raises RuntimeUnavailable when the prompt and the output do not fit the context or
        llama.cpp refuses a batch.
        """
        prompt = tuple(prompt)
        require_room(self.target, len(prompt), n_predict, self.n_max)
        first = self._prefill(prompt)
        tokens, prints, margins = list(first.choices), list(first.prints), list(first.margins)
        hidden, position = first.hidden[0], len(prompt)
        rounds: list[Round] = []
        ended = tokens[-1] in self.stop
        while len(tokens) < n_predict and not ended:
            token = tokens[-1]
            started = time.perf_counter()
            drafted = self._draft(token, hidden, position)
            draft_seconds = time.perf_counter() - started
            verified = self._verify(token, drafted, position)
            accepted = self._accept(drafted, verified)
            hidden = self._next_hidden(verified, accepted)
            start = position
            position = self._roll_back(start, accepted, len(drafted) + 1)
            emitted, ended = _until_end(
                self._emit(drafted, verified, accepted),
                n_predict - len(tokens),
                self.stop,
            )
            tokens += emitted
            prints += verified.prints[: len(emitted)]
            margins += verified.margins[: len(emitted)]
            rounds.append(
                Round(
                    position=start,
                    token=token,
                    drafted=tuple(drafted),
                    accepted=accepted,
                    emitted=tuple(emitted),
                    draft_seconds=draft_seconds,
                    verify_seconds=verified.seconds,
                )
            )
        return Run(
            prompt=prompt,
            tokens=tuple(tokens),
            prints=tuple(prints),
            margins=tuple(margins),
            rounds=tuple(rounds),
            prefill_seconds=first.seconds,
            decode_seconds=sum(r.draft_seconds + r.verify_seconds for r in rounds),
            ended=ended,
        )

    def _prefill(self, prompt: tuple[int, ...]) -> Verified:
        """Decode the prompt; one row: its last."""
        started = time.perf_counter()
        self.target.prefill(prompt)
        last = (len(prompt) - 1) % self.target.n_batch
        choice = self._choose(last)
        seconds = time.perf_counter() - started
        return Verified(
            choices=(choice,),
            prints=(fingerprint(self.target.logits(last)),),
            margins=(margin(self.target.logits(last)),),
            hidden=self.target.hidden(last)[np.newaxis],
            seconds=seconds,
        )

    def _choose(self, i: int) -> int:
        """Return the target's own choice after batch row `i`."""
        return self.target.best(i)

    def _draft(self, token: int, hidden: Row, position: int) -> list[int]:
        return self.drafter.draft(token, hidden, position, self.n_max)

    def _verify(self, token: int, drafted: Sequence[int], position: int) -> Verified:
        """Score the newest token and all drafts in one batch."""
        width = len(drafted) + 1
        started = time.perf_counter()
        self.target.decode([token, *drafted], position)
        choices = tuple(self._choose(i) for i in range(width))
        hidden = np.stack([self.target.hidden(i) for i in range(width)])
        seconds = time.perf_counter() - started
        return Verified(
            choices=choices,
            prints=tuple(fingerprint(self.target.logits(i)) for i in range(width)),
            margins=tuple(margin(self.target.logits(i)) for i in range(width)),
            hidden=hidden,
            seconds=seconds,
        )

    def _accept(self, drafted: Sequence[int], verified: Verified) -> int:
        """Return how many drafts the target would have chosen itself, from the first on."""
        accepted = 0
        while accepted < len(drafted) and drafted[accepted] == verified.choices[accepted]:
            accepted += 1
        return accepted

    def _emit(self, drafted: Sequence[int], verified: Verified, accepted: int) -> list[int]:
        """Return what a round adds: the accepted drafts and one token of the target's own."""
        return [*drafted[:accepted], verified.choices[accepted]]

    def _next_hidden(self, verified: Verified, accepted: int) -> Row:
        """Return the row the newest emitted token was chosen from: row `accepted`."""
        row: Row = verified.hidden[accepted]
        return row

    def _roll_back(self, position: int, accepted: int, width: int) -> int:
        """Cut rejected drafts from the cache; return the position of the next token.

        Only the target's cache is cut: the drafter's context looks into the same cells.
        """
        end = position + 1 + accepted
        if accepted + 1 < width:
            self.target.keep(end)
        return end


class RejectAllLoop(SpeculativeLoop):
    """The control: drafts for real, scores drafts for real, and accepts none of them.

    Every target decode is one token wide, as in plain decoding, so that nothing but the
    drafting and the rollback can make the output differ from the plain one.
    """

    def _verify(self, token: int, drafted: Sequence[int], position: int) -> Verified:
        own = super()._verify(token, (), position)
        started = time.perf_counter()
        for offset, draft in enumerate(drafted, start=1):
            self.target.decode([draft], position + offset)
        seconds = own.seconds + time.perf_counter() - started
        return Verified(own.choices, own.prints, own.margins, own.hidden, seconds)

    def _accept(self, drafted: Sequence[int], verified: Verified) -> int:
        return 0


def decode_plainly(
    context: Context,
    prompt: Sequence[int],
    n_predict: int,
    stop: frozenset[int] = frozenset(),
    choose: Callable[[int, int], int] | None = None,
) -> Run:
    """Decode greedily, one token at a time, without drafts.

    `choose` takes tokens otherwise: of a batch row and the token's position in the sequence.
    Raises RuntimeUnavailable when it does not fit the context or llama.cpp refuses a batch.
    """
    prompt = tuple(prompt)
    choose = choose or (lambda i, _position: context.best(i))
    require_room(context, len(prompt), n_predict, 0)
    tokens: list[int] = []
    prints: list[bytes] = []
    margins: list[float] = []
    started = time.perf_counter()
    context.prefill(prompt)
    row = (len(prompt) - 1) % context.n_batch
    token = choose(row, len(prompt))
    prefill_seconds, decode_seconds = time.perf_counter() - started, 0.0
    while True:
        tokens.append(token)
        prints.append(fingerprint(context.logits(row)))
        margins.append(margin(context.logits(row)))
        if len(tokens) >= n_predict or token in stop:
            break
        started = time.perf_counter()
        context.decode([token], len(prompt) + len(tokens) - 1)
        row, token = 0, choose(0, len(prompt) + len(tokens))
        decode_seconds += time.perf_counter() - started
    return Run(
        prompt=prompt,
        tokens=tuple(tokens),
        prints=tuple(prints),
        margins=tuple(margins),
        rounds=(),
        prefill_seconds=prefill_seconds,
        decode_seconds=decode_seconds,
        ended=tokens[-1] in stop,
    )


def require_room(context: Context, n_prompt: int, n_predict: int, n_max: int) -> None:
    """Raise RuntimeUnavailable where a prompt, its output and a last draft exceed the context."""
    needed = n_prompt + n_predict + n_max
    if n_prompt < 1 or n_predict < 1:
        raise RuntimeUnavailable(f"nothing to decode: {n_prompt} prompt, {n_predict} new tokens")
    if needed > context.options.n_ctx:
        raise RuntimeUnavailable(
            f"{n_prompt} prompt + {n_predict} new + {n_max} drafted tokens exceed the context "
            f"of {context.options.n_ctx}"
        )


def fingerprint(row: Row) -> bytes:
    """Return 16 bytes that stand for a logits row: equal exactly when its bits are equal."""
    return hashlib.blake2b(np.ascontiguousarray(row).data, digest_size=16).digest()


def margin(row: Row) -> float:
    """Return the distance between the two highest logits of a row."""
    second, first = np.partition(row, row.size - 2)[-2:]
    return float(first - second)


def _until_end(tokens: list[int], room: int, stop: frozenset[int]) -> tuple[list[int], bool]:
    """Cut `tokens` after a stop token and to `room`; also tell whether it stopped."""
    for i, token in enumerate(tokens[:room]):
        if token in stop:
            return tokens[: i + 1], True
    return tokens[:room], False
