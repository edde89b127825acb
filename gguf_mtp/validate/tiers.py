"""The tiers of output equivalence as checks over runs and fresh, target-only contexts.

====================  ================================================================
L0 control            plain decoding repeats itself, and decoding that drafts and then
                      rejects everything equals it: token ids and logits rows, bit for bit
L1 verify-exact       every emitted token is the target's argmax in the same batch shape
L2 token-identical    the output with drafts equals plain one-token-at-a-time decoding
L3 near-tie-bounded   where L2 breaks, the two tokens were closer than the batch shape moves
L4 distributional     at a temperature, drawn tokens have the target's distribution
                      (`distribution.py`)
sampled-identical     at a temperature, the output with drafts equals the output without drafts
                      for the same seed, but for near ties as at L3 (`sampled.py`)
drafts-exact          every draft is what the heads give for the text before it: a slip that
                      costs acceptance, such as a wrong hidden row, changes no emitted token
base-identical        the merged file's base gives the base file's logits, bit for bit
reference             logits of base and heads are those that another program recorded
                      (`reference.py`)
====================  ================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gguf_mtp.runtime.bindings import MAX_OUTPUTS, Context
from gguf_mtp.runtime.speculative import Drafter, Run, fingerprint, margin
from gguf_mtp.validate.acceptance import Proportion

L0, L1, L2, L3, L4 = "L0", "L1", "L2", "L3", "L4"
SAMPLED = "sampled-identical"
DRAFTS, BASE, REFERENCE = "drafts-exact", "base-identical", "reference"
TIERS = (L0, L1, L2, L3, L4, SAMPLED, DRAFTS, BASE, REFERENCE)


@dataclass(frozen=True)
class Divergence:
    """The first place where one prompt breaks a tier.

    `index` counts output tokens (for base-identical: prompt and output positions). `expected`
    and `found` are token ids, None past an output's end. `margin` is the distance between the
    two highest logits of the row that `expected` was chosen from, `noise` how far the batch shape
    moved two logits of this prompt against each other. The texts are those of the tokens.
    """

    prompt: str
    index: int
    expected: int | None
    found: int | None
    margin: float | None
    what: str = ""
    noise: float | None = None
    expected_text: str | None = None
    found_text: str | None = None


@dataclass(frozen=True)
class Verdict:
    """What one tier came to; `holds` is None where it was not run."""

    tier: str
    claimed: bool
    holds: bool | None
    matching: Proportion
    tokens: int
    divergences: tuple[Divergence, ...]
    note: str = ""


@dataclass(frozen=True)
class Invariance:
    """How far logits rows depend on the batch shape: width 1 against `width`.

    `equal` counts rows whose bits are the same. `noise` is the largest change, over the rows
    that differ, of the distance between any two logits of a row: a tie closer than that can
    flip. `by_prompt` is the same for each prompt.
    """

    width: int
    equal: Proportion
    noise: float
    by_prompt: tuple[float, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether every row measured was the same bits in both shapes."""
        return self.equal.total > 0 and self.equal.hits == self.equal.total


def compare_runs(
    prompt: str, expected: Run, found: Run, bits: bool, what: str = ""
) -> Divergence | None:
    """Return the first output token that differs, or None.

    With `bits`, rows of logits that differ count too, not only token ids.
    """
    for index in range(max(len(expected.tokens), len(found.tokens))):
        a = expected.tokens[index] if index < len(expected.tokens) else None
        b = found.tokens[index] if index < len(found.tokens) else None
        if a == b and not (bits and expected.prints[index] != found.prints[index]):
            continue
        gap = expected.margins[index] if a is not None else None
        detail = "logits differ" if a == b else "token differs"
        return Divergence(prompt, index, a, b, gap, f"{what}: {detail}" if what else detail)
    return None


def replay(context: Context, prompt: str, run: Run) -> Divergence | None:
    """Recompute a run's every token on a target-only context, in the same batch shapes (L1).

    Only these are taken from the run: its prompt, what each round drafted, and how its output
    falls into rounds. Positions and cuts of the cache follow from the text alone, and what may
    be accepted from the target's choices here, so a loop that places, accepts or cuts wrongly
    shows as a token it should not have emitted. Accepting fewer drafts than it could is slow,
    not wrong. Raises RuntimeUnavailable if llama.cpp refuses a batch.
    """
    context.prefill(run.prompt)
    row = (len(run.prompt) - 1) % context.n_batch
    first = context.best(row)
    if first != run.tokens[0]:
        gap = margin(context.logits(row))
        return Divergence(prompt, 0, first, run.tokens[0], gap, "token differs")
    written = 1
    for r in run.rounds:
        position = len(run.prompt) + written - 1
        context.decode([run.tokens[written - 1], *r.drafted], position)
        rows = range(len(r.drafted) + 1)
        choices = [context.best(i) for i in rows]
        accepted = 0
        while accepted < len(r.drafted) and r.drafted[accepted] == choices[accepted]:
            accepted += 1
        for i, found in enumerate(r.emitted):
            if i > accepted:
                return Divergence(prompt, written + i, None, found, None, "accepted too many")
            if found != choices[i]:
                gap = margin(context.logits(i))
                return Divergence(prompt, written + i, choices[i], found, gap, "token differs")
        context.keep(position + len(r.emitted))
        written += len(r.emitted)
    return None


def redraft(target: Context, drafter: Drafter, prompt: str, run: Run) -> Divergence | None:
    """Draft every round of a run again from its text, in the same batch shapes.

    The hidden row that a round starts from is the one its newest token was chosen from, found
    here from the text. A draft that differs came from another row, position or cache. `target`
    must keep hidden rows. Raises RuntimeUnavailable if llama.cpp refuses a batch.
    """
    target.prefill(run.prompt)
    hidden = target.hidden((len(run.prompt) - 1) % target.n_batch)
    written = 1
    for r in run.rounds:
        token, position = run.tokens[written - 1], len(run.prompt) + written - 1
        again = drafter.draft(token, hidden, position, len(r.drafted))
        for i, (expected, found) in enumerate(zip(again, r.drafted, strict=True)):
            if expected != found:
                return Divergence(prompt, written + i, expected, found, None, "draft differs")
        room = len(r.drafted) + 1
        if len(r.emitted) > room:
            extra = r.emitted[room]
            return Divergence(prompt, written + room, None, extra, None, "more than was verified")
        target.decode([token, *r.drafted], position)
        hidden = target.hidden(len(r.emitted) - 1)
        target.keep(position + len(r.emitted))
        written += len(r.emitted)
    return None


def measure_invariance(
    narrow: Context, wide: Context, runs: Sequence[Run], width: int
) -> Invariance:
    """Decode each plain run's output again in batches of `width` and compare the rows.

    The fingerprints of the plain runs say which rows differ; only a prompt with such rows is
    decoded once more one token at a time, to see by how much. The two contexts are separate
    because differences in the cache are part of what is measured.
    """
    equal = total = 0
    by_prompt: list[float] = []
    for run in runs:
        wide.prefill(run.prompt)
        differing: list[tuple[int, np.ndarray]] = []
        inputs = run.tokens[:-1]
        for start in range(0, len(inputs), width):
            chunk = inputs[start : start + width]
            wide.decode(chunk, len(run.prompt) + start)
            for i in range(len(chunk)):
                row = wide.logits(i)
                total += 1
                if fingerprint(row) == run.prints[start + i + 1]:
                    equal += 1
                else:
                    differing.append((start + i, row.copy()))
        by_prompt.append(_noise(narrow, run, differing) if differing else 0.0)
    noise = max(by_prompt, default=0.0)
    return Invariance(width, Proportion(equal, total), noise, tuple(by_prompt))


def _noise(narrow: Context, run: Run, differing: Sequence[tuple[int, np.ndarray]]) -> float:
    narrow.prefill(run.prompt)
    worst, rows = 0.0, dict(differing)
    for i in range(max(rows) + 1):
        narrow.decode([run.tokens[i]], len(run.prompt) + i)
        if i in rows:
            change = rows.pop(i) - narrow.logits(0)
            worst = max(worst, float(change.max() - change.min()))
    return worst


def near_ties(divergences: Sequence[Divergence], noise: float) -> list[Divergence]:
    """Return those divergences whose margin exceeds the measured noise (they break L3)."""
    return [d for d in divergences if d.margin is None or d.margin > noise]


def logits_prints(context: Context, prompt: Sequence[int], n_decode: int) -> list[bytes]:
    """Fingerprint the logits of every prompt position, then of `n_decode` decoded ones."""
    context.clear()
    prints: list[bytes] = []
    token = 0
    for start in range(0, len(prompt), MAX_OUTPUTS):
        chunk = prompt[start : start + MAX_OUTPUTS]
        context.decode(chunk, start)
        prints += [fingerprint(context.logits(i)) for i in range(len(chunk))]
        token = context.best(len(chunk) - 1)
    for i in range(n_decode):
        context.decode([token], len(prompt) + i)
        prints.append(fingerprint(context.logits(0)))
        token = context.best(0)
    return prints


def compare_prints(
    prompt: str, expected: Sequence[bytes], found: Sequence[bytes]
) -> Divergence | None:
    """Return the first position whose logits differ between two files, or None."""
    for index, (a, b) in enumerate(zip(expected, found, strict=True)):
        if a != b:
            return Divergence(prompt, index, None, None, None, "logits differ")
    return None
