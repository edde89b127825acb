"""The cross-backend tier: the same tokens through a device and through the CPU, row by row.

Across backends nothing is equal bit for bit: other kernels add in another order, and the CPU's
quantized ones round activations to 8 bits, which no GPU's do. So the tier is a tolerance, stated
by number type, on the Kullback-Leibler divergence of the device's distribution from the CPU's.
The CPU's rows wait on disk, not in memory, and the two models are never loaded together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO

import numpy as np
import numpy.typing as npt

from gguf_mtp.runtime.bindings import MAX_OUTPUTS, ContextOptions, Row
from gguf_mtp.runtime.pair import Pair, PairContexts
from gguf_mtp.runtime.placement import Placement
from gguf_mtp.runtime.speculative import MtpDrafter
from gguf_mtp.validate.acceptance import Proportion
from gguf_mtp.validate.tiers import Divergence, Verdict

CROSS = "cross-backend"
# Rows compared for a prompt: its last ones, scored together, and tokens decoded one at a time.
SCORED = MAX_OUTPUTS
DECODED = 16


@dataclass(frozen=True)
class Tolerance:
    """What the worst row and the mean of all rows may come to, in nats (docs/backends.md)."""

    worst: float
    mean: float


F32 = Tolerance(worst=1e-5, mean=1e-6)
HALF = Tolerance(worst=1e-4, mean=1e-5)
BLOCKS = Tolerance(worst=3e-2, mean=3e-3)
WEIGHTS = {"all F32": F32, "F16": HALF, "BF16": HALF}
CACHES = {"f32": F32, "f16": HALF, "bf16": HALF}


def tolerance(ftype: str, kv_type: str) -> Tolerance:
    """Return the tolerance for what rounds most, weights (llama.cpp's name) or KV cache."""
    both = (WEIGHTS.get(ftype, BLOCKS), CACHES.get(kv_type, BLOCKS))
    return max(both, key=lambda each: each.worst)


@dataclass
class Passage:
    """One prompt's tokens, those the CPU decoded after it, and its heads' first drafts there."""

    prompt: str
    tokens: tuple[int, ...]
    decoded: list[int] = field(default_factory=list)
    drafts: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Comparison:
    """A device's logits beside the CPU's; `worst` and `mean` are divergences in nats.

    `largest_difference` is of two logits; `same_best` counts rows with the same highest one,
    `same_drafts` positions where the heads' first draft is the same token. The placements say
    how many MiB lie in which buffers.
    """

    rows: int
    worst: float
    mean: float
    tolerance: Tolerance
    largest_difference: float
    same_best: Proportion
    same_drafts: Proportion
    weights: Placement
    heads_weights: Placement
    kv_cache: Placement
    compute: Placement
    divergences: tuple[Divergence, ...]
    prompts: int

    @property
    def holds(self) -> bool:
        """Whether the worst row and the mean of all are within the tolerance."""
        # Written so that NaN does not hold.
        return self.worst <= self.tolerance.worst and self.mean <= self.tolerance.mean

    def verdict(self, claimed: bool) -> Verdict:
        """The tier's line in a report."""
        broken = len({d.prompt for d in self.divergences})
        return Verdict(
            tier=CROSS,
            claimed=claimed,
            holds=self.holds,
            matching=Proportion(self.prompts - broken, self.prompts),
            tokens=self.rows,
            divergences=self.divergences,
            note=(
                f"KL to the CPU: worst {self.worst:.2g} <= {self.tolerance.worst:g}, "
                f"mean {self.mean:.2g} <= {self.tolerance.mean:g} nats"
            ),
        )


class CpuLogits:
    """What the CPU gave for a set of passages; the rows are in `store`, a file open for both."""

    def __init__(self, passages: list[Passage], options: ContextOptions, store: IO[bytes]) -> None:
        self.passages = passages
        self.options = options
        self.store = store

    @classmethod
    def record(
        cls,
        pair: Pair,
        passages: list[Passage],
        options: ContextOptions,
        store: IO[bytes],
        progress: Callable[[int, int], None],
    ) -> CpuLogits:
        """Decode `passages` on `pair` and keep every row; they gain what is decoded."""
        with pair.contexts(options) as contexts:
            for done, passage in enumerate(passages):
                progress(done, len(passages))
                for row in _rows(contexts, passage, follow=False):
                    store.write(np.ascontiguousarray(row, dtype=np.float32).data)
        return cls(passages, options, store)

    def compare(
        self, pair: Pair, limit: Tolerance, progress: Callable[[int, int], None]
    ) -> Comparison:
        """Decode the same tokens on `pair` and compare every row with the CPU's."""
        self.store.seek(0)
        divergences: list[Divergence] = []
        kls: list[float] = []
        difference, best, drafts, positions = 0.0, 0, 0, 0
        with pair.contexts(self.options) as contexts:
            for done, expected in enumerate(self.passages):
                progress(done, len(self.passages))
                found = Passage(expected.prompt, expected.tokens, list(expected.decoded))
                worst: tuple[float, int, Row, Row] | None = None
                first = _first_scored(found)
                for index, row in enumerate(_rows(contexts, found, follow=True), first):
                    cpu = np.frombuffer(self.store.read(4 * row.size), np.float32)
                    kl = divergence(cpu, row)
                    kls.append(kl)
                    difference = max(difference, float(np.abs(cpu - row).max()))
                    best += int(cpu.argmax() == row.argmax())
                    if not kl <= limit.worst and (worst is None or kl > worst[0]):
                        worst = kl, index, cpu, row.copy()
                if worst is not None:
                    divergences.append(_named(expected.prompt, *worst))
                drafts += sum(a == b for a, b in zip(expected.drafts, found.drafts, strict=True))
                positions += len(expected.drafts)
            return Comparison(
                rows=len(kls),
                worst=float(np.max(kls)),
                mean=float(np.mean(kls)),
                tolerance=limit,
                largest_difference=difference,
                same_best=Proportion(best, len(kls)),
                same_drafts=Proportion(drafts, positions),
                weights=pair.base.placement,
                heads_weights=pair.heads.placement,
                kv_cache=contexts.target.cache_placement,
                compute=contexts.target.compute_placement,
                divergences=tuple(divergences),
                prompts=len(self.passages),
            )


def _named(prompt: str, kl: float, index: int, cpu: Row, row: Row) -> Divergence:
    second, first = np.partition(cpu, cpu.size - 2)[-2:]
    tokens = int(cpu.argmax()), int(row.argmax())
    return Divergence(prompt, index, *tokens, float(first - second), f"KL {kl:.3g} nats")


def _first_scored(passage: Passage) -> int:
    return max(0, len(passage.tokens) - SCORED)


def _rows(contexts: PairContexts, passage: Passage, follow: bool) -> Iterator[Row]:
    """Give logits rows [n_vocab] of a prompt's last tokens and of those decoded after it.

    With `follow` the decoded tokens are the passage's; else they are the target's own choice
    and are written into it. First drafts are written in both cases. A row is valid until the
    next one is asked for.
    """
    target, drafter = contexts.target, MtpDrafter(contexts.drafter)
    start = _first_scored(passage)
    target.clear()
    for at in range(0, start, target.n_batch):
        target.decode(passage.tokens[at : min(at + target.n_batch, start)], at, all_rows=False)
    scored = passage.tokens[start:]
    target.decode(scored, start)
    yield from (target.logits(i) for i in range(len(scored)))
    row, position = len(scored) - 1, len(passage.tokens)
    for step in range(DECODED):
        if not follow:
            passage.decoded.append(target.best(row))
        token = passage.decoded[step]
        passage.drafts += drafter.draft(token, target.hidden(row), position + step, 1)
        target.decode([token], position + step)
        row = 0
        yield target.logits(row)


def divergence(reference: Row, row: Row) -> float:
    """Kullback-Leibler divergence of softmax(`row`) from softmax(`reference`), in nats."""
    p, q = _log_softmax(reference), _log_softmax(row)
    kl = float(np.sum(np.exp(p) * (p - q)))
    return 0.0 if kl < 0 else kl  # rounding may take it below; NaN stays NaN


def _log_softmax(row: Row) -> npt.NDArray[np.float64]:
    shifted: npt.NDArray[np.float64] = row.astype(np.float64) - float(row.max())
    shifted -= np.log(np.sum(np.exp(shifted)))
    return shifted
