"""Text from a model with MTP heads, piece by piece: the small API for programs.

::

    with MtpModel("e2b-mtp.gguf") as model:
        answer = model.stream("Why is the sky blue?")
        for piece in answer:
            print(piece.text, end="", flush=True)
        print(answer.statistics.tokens_per_second)

The loop is the one that ``gguf-mtp validate`` tests: `SamplingLoop` with `CoupledRule`. The text
does not depend on how many tokens are drafted, at a temperature neither.
"""

from __future__ import annotations

import codecs
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gguf_mtp.closing import Closing
from gguf_mtp.errors import RuntimeUnavailable
from gguf_mtp.runtime.bindings import (
    MAX_OUTPUTS,
    Context,
    ContextOptions,
    ModelOptions,
    half_the_cpus,
)
from gguf_mtp.runtime.coupled import SEEDS
from gguf_mtp.runtime.library import Library, load_library
from gguf_mtp.runtime.pair import open_pair
from gguf_mtp.runtime.sampling import CoupledRule, MtpSamplingDrafter, Place, SamplingLoop
from gguf_mtp.runtime.speculative import Round

DEFAULT_CONTEXT = 4096
DEFAULT_DRAFTS = 3
PLAIN_TOKENS = 32  # decoded without drafts to compare with
END, LENGTH, CONTEXT_FULL, STOPPED = "end", "length", "context", "stopped"


@dataclass(frozen=True)
class Piece:
    """One token of the output.

    `text` is what it adds: nothing while its bytes do not end a character yet, or where it is a
    control token. `drafted` says whether the drafter guessed it. `token` is None for bytes left
    over at the end.
    """

    text: str
    token: int | None
    drafted: bool


@dataclass
class Statistics:
    """What a generation did. Seconds are those of decoding; the caller's own are left out.

    `ended` is "end" (the model's own end), "length", "context" (full), "stopped", or "" while
    it goes on. The first token comes from the prompt's own pass and is in `prompt_seconds`.
    """

    prompt_tokens: int = 0
    reused_tokens: int = 0
    prompt_seconds: float = 0.0
    tokens: int = 0
    passes: int = 0
    drafted: int = 0
    accepted: int = 0
    seconds: float = 0.0
    ended: str = ""

    @property
    def tokens_per_second(self) -> float | None:
        """Decoded tokens a second, the first one left out; None where there were none."""
        decoded = self.tokens - 1
        return decoded / self.seconds if decoded > 0 and self.seconds > 0 else None

    @property
    def tokens_per_pass(self) -> float | None:
        """Tokens that a pass of the target gave, of 1 without drafts; None before the first."""
        return (self.accepted + self.passes) / self.passes if self.passes else None

    @property
    def acceptance(self) -> float | None:
        """The share of drafted tokens that stood; None where nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else None


class Generation:
    """An answer while it is made: iterate over its pieces, once."""

    def __init__(self, sequence: _Sequence, prompt: tuple[int, ...], n_predict: int, reuse: bool):
        self.prompt = prompt
        self.tokens: list[int] = []
        self.statistics = Statistics(prompt_tokens=len(prompt))
        self._sequence = sequence
        self._n_predict = n_predict
        self._reuse = reuse
        self._stop = False
        self._pieces = self._make()

    def __iter__(self) -> Iterator[Piece]:
        return self._pieces

    def stop(self) -> None:
        """End at the next opportunity: behind this round, or between two parts of the prompt."""
        self._stop = True

    def text(self) -> str:
        """Generate what is left and return its text."""
        return "".join(piece.text for piece in self)

    def _make(self) -> Iterator[Piece]:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        piece = self._sequence.target.model.piece
        for token, drafted in self._decode():
            self.tokens.append(token)
            self.statistics.tokens += 1
            yield Piece(decoder.decode(piece(token, control=False)), token, drafted)
        if rest := decoder.decode(b"", final=True):
            yield Piece(rest, None, False)

    def _decode(self) -> Iterator[tuple[int, bool]]:
        """Tokens as they are accepted, each with whether it was drafted."""
        sequence, done = self._sequence, self.statistics
        started = time.perf_counter()
        done.reused_tokens = sequence.reusable(self.prompt) if self._reuse else 0
        for _ in sequence.feed(self.prompt, done.reused_tokens):
            if self._stop:
                done.ended = STOPPED
                return
        place = sequence.place()
        done.prompt_seconds = time.perf_counter() - started
        yield place.token, False
        while True:
            done.ended = self._ending()
            if done.ended:
                return
            left = self._n_predict - len(self.tokens)
            drafted, place = sequence.round(place, left - 1)
            done.passes += 1
            done.seconds += drafted.draft_seconds + drafted.verify_seconds
            done.drafted += len(drafted.drafted)
            done.accepted += drafted.accepted
            for i, token in enumerate(drafted.emitted):
                yield token, i < drafted.accepted
                if token in sequence.ends:
                    break

    def _ending(self) -> str:
        """Why it ends here, or ''."""
        if self.tokens[-1] in self._sequence.ends:
            return END
        if len(self.tokens) >= self._n_predict:
            return LENGTH
        if self._stop:
            return STOPPED
        return CONTEXT_FULL if self._sequence.room() < 1 else ""


class Chat:
    """A conversation in Gemma 4's turn markup; the cache is kept from turn to turn."""

    def __init__(self, model: MtpModel) -> None:
        self._model = model
        self._last: Generation | None = None

    def say(
        self,
        text: str,
        n_predict: int = 1024,
        *,
        temperature: float = 0.0,
        seed: int | None = None,
        n_max: int = DEFAULT_DRAFTS,
    ) -> Generation:
        """Return the answer to the next message, made as `MtpModel.stream` makes it.

        What was generated of the last answer is what counts as said. Raises RuntimeUnavailable
        where the conversation no longer fits the context.
        """
        before: tuple[int, ...] = ()
        target = self._model.target.model
        if self._last is not None:
            said, end = self._last, target.tokenize_turn_end()
            if said.tokens and said.tokens[-1] == end[0]:
                end = end[1:]
            before = (*said.prompt, *said.tokens, *end)
        tokens = before + target.tokenize_turn(text, first=self._last is None)
        self._last = self._model.generate(
            tokens, n_predict, temperature=temperature, seed=seed, n_max=n_max, reuse=True
        )
        return self._last


class MtpModel(Closing):
    """A merged file (or a base and its heads) ready to generate; use as a context manager.

    Raises RuntimeUnavailable where the library or a file does not serve. One generation at a
    time: each begins by taking the cache over.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        heads: str | os.PathLike[str] | None = None,
        *,
        n_ctx: int | None = None,
        n_threads: int | None = None,
        kv_type: str = "f16",
        flash_attn: str = "auto",
        options: ModelOptions | None = None,
        exact: bool = False,
        library: Library | None = None,
    ) -> None:
        library = library or load_library(exact)
        files = (
            {"merged": Path(model)}
            if heads is None
            else {"base": Path(model), "heads": Path(heads)}
        )
        self.pair = open_pair(library=library, options=options, **files)
        try:
            self._contexts = self.pair.contexts(
                ContextOptions(
                    n_ctx=n_ctx or min(DEFAULT_CONTEXT, self.pair.base.n_ctx_train),
                    n_threads=n_threads or half_the_cpus(),
                    kv_type=kv_type,
                    flash_attn=flash_attn,
                )
            )
        except BaseException:
            self.pair.close()
            raise
        self._ends = self.pair.base.end_tokens()
        self._sequence: _Sequence | None = None

    @property
    def target(self) -> Context:
        """The target's context."""
        return self._contexts.target

    def stream(
        self,
        prompt: str,
        n_predict: int = 256,
        *,
        turn: bool = False,
        temperature: float = 0.0,
        seed: int | None = None,
        n_max: int = DEFAULT_DRAFTS,
    ) -> Generation:
        """Continue `prompt`, or answer it where it is a `turn` of a chat.

        Up to `n_predict` tokens; `n_max` are drafted per round, 0 decodes without drafts. Above
        temperature 0 every token is the target's own sample, a function of `seed` and the token's
        position. So one seed gives one text, whatever `n_max` is. Only a near tie can make texts
        differ, where logits depend on how many tokens are scored at once; on the exact build they
        do not. Without `seed` each call chooses one. Raises RuntimeUnavailable where the prompt
        does not fit, ValueError where `seed` is not a 32-bit number.
        """
        tokens = self.pair.base.tokenize_turn(prompt) if turn else self.pair.base.tokenize(prompt)
        return self.generate(tokens, n_predict, temperature=temperature, seed=seed, n_max=n_max)

    def chat(self) -> Chat:
        """Begin a conversation. Raises RuntimeUnavailable where the vocabulary has no turns."""
        self.pair.base.tokenize_turn("")
        return Chat(self)

    def generate(
        self,
        tokens: Sequence[int],
        n_predict: int,
        *,
        temperature: float = 0.0,
        seed: int | None = None,
        n_max: int = DEFAULT_DRAFTS,
        reuse: bool = False,
    ) -> Generation:
        """Continue token ids, as `stream` does text.

        With `reuse` what the cache holds of the same beginning is not decoded again. It may be
        from batches of other shapes than a fresh prompt makes, and a near-tie fall otherwise.
        """
        room = self.target.options.n_ctx
        if not tokens or n_predict < 1:
            raise RuntimeUnavailable(
                f"nothing to generate: {len(tokens)} prompt, {n_predict} new tokens"
            )
        if len(tokens) >= room:
            raise RuntimeUnavailable(f"{len(tokens)} prompt tokens fill the context of {room}")
        if not 0 <= n_max < MAX_OUTPUTS:
            raise ValueError(f"n_max must be within 0..{MAX_OUTPUTS - 1}, not {n_max}")
        if seed is None:
            seed = secrets.randbelow(SEEDS)
        if not 0 <= seed < SEEDS:
            raise ValueError(f"seed must be within 0..{SEEDS - 1}, not {seed}")
        cached: list[int] = []
        if self._sequence is not None:
            self._sequence.replaced, cached = True, self._sequence.cached
        drafter = MtpSamplingDrafter(self._contexts.drafter)
        loop = SamplingLoop(self.target, drafter, n_max, CoupledRule(), temperature)
        self._sequence = _Sequence(loop, n_max, self._ends, seed, cached)
        return Generation(self._sequence, tuple(tokens), n_predict, reuse)

    def plain_tokens_per_second(self, n: int = PLAIN_TOKENS) -> float | None:
        """Decode `n` more tokens behind the last generation without drafts, and time it.

        None where there is no generation, or no room behind it.
        """
        sequence = self._sequence
        if sequence is None or sequence.last is None:
            return None
        n = min(n, sequence.room())
        place, seconds = sequence.last, 0.0
        for _ in range(n):
            done, place = sequence.round(place, 0)
            seconds += done.draft_seconds + done.verify_seconds
        return n / seconds if seconds > 0 else None

    def close(self) -> None:
        """Free contexts and models."""
        self._contexts.close()
        self.pair.close()


class _Sequence:
    """One sequence in the target's cache. `cached` are tokens that it holds for certain.

    There may be more behind them: a round that was interrupted leaves its drafts.
    """

    def __init__(
        self,
        loop: SamplingLoop,
        n_max: int,
        ends: frozenset[int],
        seed: int,
        cached: list[int],
    ) -> None:
        self.loop = loop
        self.target = loop.target
        self.n_max = n_max
        self.ends = ends
        self.seed = seed
        self.cached = cached
        self.last: Place | None = None
        self.replaced = False
        self._row = 0

    def reusable(self, tokens: Sequence[int]) -> int:
        """How many of `tokens` need no decoding; the last one always does, for its row."""
        n = 0
        for token, cached in zip(tokens[:-1], self.cached, strict=False):
            if token != cached:
                break
            n += 1
        return n

    def feed(self, tokens: Sequence[int], reused: int) -> Iterator[None]:
        """Make the cache hold `tokens`, of which `reused` are there; a step is one batch."""
        self._require_current()
        del self.cached[reused:]
        if reused:
            self.target.keep(reused)
        else:
            self.target.clear()
        for start in range(reused, len(tokens), self.target.n_batch):
            yield
            part = tokens[start : start + self.target.n_batch]
            self.target.decode(part, start, all_rows=False)
            self.cached += part
            self._row = len(part) - 1

    def place(self) -> Place:
        """Choose the token behind what was fed."""
        self.last = self.loop.place(self._row, len(self.cached), self.seed)
        return self.last

    def room(self) -> int:
        """How many more tokens the cache can take."""
        return self.target.options.n_ctx - len(self.cached)

    def round(self, place: Place, useful: int) -> tuple[Round, Place]:
        """One round of at most `n_max` drafts, `useful` of which can be emitted."""
        self._require_current()
        self.loop.n_max = max(0, min(self.n_max, useful, self.room() - 1))
        done, self.last = self.loop.round(place, self.seed)
        self.cached += (place.token, *done.drafted[: done.accepted])
        return done, self.last

    def _require_current(self) -> None:
        if self.replaced:
            raise RuntimeUnavailable("another generation of this model has begun")
