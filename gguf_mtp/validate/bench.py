"""Speed with and without drafts, depth by depth, and what it is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy as np

from gguf_mtp.errors import RuntimeUnavailable
from gguf_mtp.runtime.bindings import Context, Row
from gguf_mtp.runtime.pair import Pair, PairContexts
from gguf_mtp.runtime.speculative import MtpDrafter, Run, SpeculativeLoop, decode_plainly
from gguf_mtp.validate.acceptance import Acceptance, acceptance, counted_rounds
from gguf_mtp.validate.advice import Advice, Costs, JudgedDraft, advise
from gguf_mtp.validate.facts import files_of, settings_of
from gguf_mtp.validate.options import Options
from gguf_mtp.validate.prompts import Prompt, encode
from gguf_mtp.validate.report import FileFacts, Settings
from gguf_mtp.validate.suite import context_options_for

CANDIDATES = 10  # whose probabilities llama.cpp compares with --spec-draft-p-min
PLAIN = 0  # the depth that stands for decoding without drafts

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Sample:
    """Runs of one depth over all prompts in one repetition, summed up."""

    tokens: int
    seconds: float
    passes: int
    draft_seconds: float
    verify_seconds: float

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds

    @property
    def draft_ms(self) -> float:
        """Mean milliseconds of drafting a round."""
        return 1e3 * self.draft_seconds / self.passes

    @property
    def verify_ms(self) -> float:
        """Mean milliseconds of one pass of the target."""
        return 1e3 * self.verify_seconds / self.passes


@dataclass(frozen=True)
class Bench:
    """What was measured. `samples[depth]` has one entry a repetition; depth 0 is plain decoding.

    `acceptance` and `tasks` (by prompt set) are of the deepest drafting, each text counted once.
    """

    files: tuple[FileFacts, ...]
    settings: Settings
    samples: dict[int, tuple[Sample, ...]]
    tokens_per_pass: dict[int, float]
    acceptance: Acceptance
    tasks: dict[str, tuple[int, Acceptance]]
    costs: Costs
    advice: Advice | None

    def ratios(self, depth: int) -> tuple[float, ...]:
        """Speed against plain decoding in the same repetition."""
        return _ratios(self.samples, depth)


@dataclass
class _Gathered:
    samples: dict[int, list[Sample]] = field(default_factory=dict)
    runs: dict[int, list[Run]] = field(default_factory=dict)  # of the first repetition
    judged: list[JudgedDraft] = field(default_factory=list)


def bench(
    pair: Pair,
    prompts: Sequence[Prompt],
    options: Options,
    repetitions: int,
    progress: Progress = lambda _what, _done, _total: None,
) -> Bench:
    """Time plain decoding and every depth up to `options.n_max`, `repetitions` times in turns.

    Raises RuntimeUnavailable where the library cannot run the models, or no prompt is continued.
    """
    if not prompts:
        raise RuntimeUnavailable("no prompts to measure on")
    tokens = [encode(prompt, pair.base, options.chat) for prompt in prompts]
    context_options = context_options_for(pair.base, max(map(len, tokens)), options)
    room = context_options.n_ctx - options.n_predict - options.n_max
    tokens = [t[:room] for t in tokens]
    gathered = _Gathered()
    with (
        Context(pair.base, context_options) as plain,
        pair.contexts(context_options) as contexts,
    ):
        flash_attn = contexts.target.flash_attn
        cells = _Cells(pair, plain, contexts, options)
        _measure(cells, tokens, repetitions, gathered, progress)
    depths = range(1, options.n_max + 1)
    counted = {n: [counted_rounds(run) for run in gathered.runs[n]] for n in depths}
    samples = {n: tuple(found) for n, found in gathered.samples.items()}
    costs = _costs(samples)
    return Bench(
        files=files_of(pair, None, None, progress),
        settings=settings_of(pair, options, context_options, flash_attn),
        samples=samples,
        tokens_per_pass={
            n: acceptance([r for rounds in counted[n] for r in rounds], n).tokens_per_pass
            for n in depths
        },
        acceptance=acceptance(
            [r for rounds in counted[options.n_max] for r in rounds], options.n_max
        ),
        tasks={
            task: (
                len(members),
                acceptance([r for i in members for r in counted[options.n_max][i]], options.n_max),
            )
            for task, members in _by_task(prompts).items()
        },
        costs=costs,
        advice=advise(gathered.judged, costs, max(_half_spread(samples, n) for n in depths)),
    )


class _Cells:
    """The loops that are compared, over one pair of contexts and one for plain decoding."""

    def __init__(
        self, pair: Pair, plain: Context, contexts: PairContexts, options: Options
    ) -> None:
        self.n_max = options.n_max
        self._n_predict = options.n_predict
        self._stop = frozenset[int]() if options.ignore_end else pair.base.end_tokens()
        self._plain = plain
        self._contexts = contexts

    def run(self, depth: int, prompt: Sequence[int]) -> Run:
        if depth == PLAIN:
            return decode_plainly(self._plain, prompt, self._n_predict, self._stop)
        return self._contexts.loop(depth, self._stop).run(prompt, self._n_predict)

    def judge(self, prompt: Sequence[int]) -> list[JudgedDraft]:
        """The rounds of the deepest drafting, with the drafter's confidence in each token."""
        drafter = _ConfidentDrafter(self._contexts.drafter)
        loop = SpeculativeLoop(self._contexts.target, drafter, self.n_max, self._stop)
        rounds = counted_rounds(loop.run(prompt, self._n_predict))
        confidence = drafter.confidence[: len(rounds)]
        return [JudgedDraft(sure, r.accepted) for sure, r in zip(confidence, rounds, strict=True)]


class _ConfidentDrafter(MtpDrafter):
    """Also notes how probable each drafted token was among the best ten, as llama.cpp counts it."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.confidence: list[tuple[float, ...]] = []

    def draft(self, last: int, hidden: Row, position: int, n: int) -> list[int]:
        drafted: list[int] = []
        sure: list[float] = []
        token = last
        while len(drafted) < n:
            self.context.decode_with_hidden(token, hidden, position)
            token = self.context.best(0)
            sure.append(confidence(self.context.logits(0)))
            hidden = self.context.hidden(0)
            drafted.append(token)
        self.confidence.append(tuple(sure))
        return drafted


def confidence(row: Row) -> float:
    """The best token's probability among the `CANDIDATES` best of a row [n_vocab] of logits."""
    best = np.partition(row, row.size - CANDIDATES)[-CANDIDATES:] if row.size > CANDIDATES else row
    return float(1 / np.exp(best.astype(np.float64) - float(best.max())).sum())


def _measure(
    cells: _Cells,
    prompts: Sequence[tuple[int, ...]],
    repetitions: int,
    gathered: _Gathered,
    progress: Progress,
) -> None:
    depths = [PLAIN, *range(1, cells.n_max + 1)]
    progress("warming up", 0, 1)
    for depth in (PLAIN, cells.n_max):
        cells.run(depth, prompts[0])
    total = repetitions * len(depths) * len(prompts)
    done = 0
    for repetition in range(repetitions):
        runs: dict[int, list[Run]] = {depth: [] for depth in depths}
        for number, prompt in enumerate(prompts):
            # Each depth comes first once in a while: what slows a machine down hits all alike.
            turn = (repetition + number) % len(depths)
            for depth in depths[turn:] + depths[:turn]:
                progress("measuring", done, total)
                runs[depth].append(cells.run(depth, prompt))
                done += 1
        for depth in depths:
            sample = _sample(runs[depth])
            if not sample.passes or not sample.seconds:
                raise RuntimeUnavailable("the prompts are not continued: nothing to measure")
            gathered.samples.setdefault(depth, []).append(sample)
        if repetition == 0:
            gathered.runs = runs
    for number, prompt in enumerate(prompts):
        progress("judging drafts", number, len(prompts))
        gathered.judged += cells.judge(prompt)


def _sample(runs: Sequence[Run]) -> Sample:
    rounds = [r for run in runs for r in run.rounds]
    tokens = sum(run.decoded_tokens for run in runs)
    seconds = sum(run.decode_seconds for run in runs)
    if not rounds:  # plain decoding: a pass a token
        return Sample(tokens, seconds, tokens, 0.0, seconds)
    return Sample(
        tokens,
        seconds,
        len(rounds),
        sum(r.draft_seconds for r in rounds),
        sum(r.verify_seconds for r in rounds),
    )


def _ratios(samples: dict[int, tuple[Sample, ...]], depth: int) -> tuple[float, ...]:
    pairs = zip(samples[depth], samples[PLAIN], strict=True)
    return tuple(sample.rate / plain.rate for sample, plain in pairs)


def _half_spread(samples: dict[int, tuple[Sample, ...]], depth: int) -> float:
    ratios = _ratios(samples, depth)
    return (max(ratios) - min(ratios)) / 2


def _costs(samples: dict[int, tuple[Sample, ...]]) -> Costs:
    """The middle one of the repetitions' means: one that was disturbed does not count."""
    drafting = {n: median(s.draft_ms for s in found) for n, found in samples.items() if n}
    verifying = {n + 1: median(s.verify_ms for s in found) for n, found in samples.items()}
    return Costs(drafting, verifying)


def _by_task(prompts: Sequence[Prompt]) -> dict[str, list[int]]:
    """Indices of prompts by the set they come from."""
    tasks: dict[str, list[int]] = {}
    for i, prompt in enumerate(prompts):
        tasks.setdefault(prompt.prompt_set, []).append(i)
    return tasks
