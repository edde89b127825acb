"""The reference tier: logits of base and heads beside those that another program recorded.

The other tiers compare llama.cpp with itself; this one says that what it computes is right. A
recording is an .npz as tools/record_reference.py writes it with Hugging Face transformers, in F32:
for sequence n the arrays ``seq{n}_ids`` [t], ``seq{n}_rows`` [r] and ``seq{n}_base_logits``
[r, n_vocab]; for the heads ``seq{n}_draft_position``, ``seq{n}_draft_ordered_logits`` and
``seq{n}_draft_dense_logits`` [steps, n_vocab], with greedy drafts of the ordered head between them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gguf_mtp.errors import FormatError, GgufMtpError
from gguf_mtp.runtime.bindings import MAX_OUTPUTS, Context, Row
from gguf_mtp.runtime.pair import PairContexts
from gguf_mtp.validate.acceptance import Proportion
from gguf_mtp.validate.tiers import Divergence

# All-F32 files must meet the recording logit by logit. What remains is the order of sums, F16 in
# the cache and in attention, and llama.cpp's F16 table behind GELU.
MAX_DIFFERENCE = 0.02
# Others are other models, and are held to be near it: KL divergence, in nats a row, as llama.cpp's
# ``llama-perplexity --kl-divergence`` measures it. Q4_0 gives hundredths; a wrong graph gives ones.
MAX_KL = 0.1
# What a recording may unpack to, in its own size. Most of it are floats, which shrink by a tenth;
# rows of the ordered head are one value but for a few thousand.
MAX_RATIO = 256


@dataclass(frozen=True)
class Recorded:
    """One recorded sequence; `draft_logits` by head, greedy on the ordered one."""

    name: str
    ids: tuple[int, ...]
    rows: tuple[int, ...]
    base_logits: Row
    draft_position: int
    ordered_logits: Row
    dense_logits: Row


@dataclass(frozen=True)
class Comparison:
    """How far rows of logits are from recorded ones, over what both score.

    `largest` is the largest difference of two logits, `kl` the mean Kullback-Leibler divergence
    from the recorded distribution in nats, `best` counts rows with the same best token.
    `criterion` is what each row was held to.
    """

    criterion: str
    rows: int
    largest: float
    kl: float
    best: Proportion


@dataclass(frozen=True)
class Reference:
    """The evidence for the reference tier. `head` says which of the drafter's heads was used."""

    file: str
    program: str
    head: str
    sequences: int
    base: Comparison
    heads: Comparison
    divergences: tuple[Divergence, ...]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-ready data; divergences are the verdict's."""
        return {
            "file": self.file,
            "program": self.program,
            "head": self.head,
            "sequences": self.sequences,
            "base": asdict(self.base),
            "heads": asdict(self.heads),
        }


def read_recording(path: Path, n_vocab: int) -> tuple[str, list[Recorded]]:
    """Read a recording for a vocabulary; also return the program that made it.

    Raises FormatError where it is not one, or one of another model.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            unpacked = sum(info.file_size for info in arrays.zip.infolist())
            if unpacked > MAX_RATIO * os.path.getsize(path):
                raise FormatError(f"{path}: unpacks to {unpacked} bytes, {MAX_RATIO} times its own")
            count = sum(name.endswith("_base_logits") for name in arrays.files)
            if count == 0:
                raise FormatError(f"{path}: holds no seq0_base_logits")
            program = " ".join(
                f"{name} {arrays[name]}"
                for name in ("transformers", "torch", "dtype")
                if name in arrays.files
            )
            return program, [_sequence(path, arrays, n, n_vocab) for n in range(count)]
    except GgufMtpError:
        raise
    except KeyError as error:
        raise FormatError(f"{path}: not a recording of logits: {error.args[0]}") from None
    except Exception as error:
        # NumPy, zipfile and zlib raise many things for damaged files, and NumPy's reason for any
        # text is that it might be loaded "unsafely": only the system's are passed on.
        reason = getattr(error, "strerror", None) or "not a recording of logits (.npz)"
        raise FormatError(f"{path}: {reason}") from None


def _sequence(path: Path, arrays: Any, number: int, n_vocab: int) -> Recorded:
    def take(name: str, kind: str, *shape: int | None) -> Any:
        array = arrays[f"seq{number}_{name}"]
        fits = len(array.shape) == len(shape) and all(
            wanted in (None, found) for wanted, found in zip(shape, array.shape, strict=True)
        )
        if array.dtype.kind != kind or not fits:
            wanted = ", ".join("any" if n is None else str(n) for n in shape)
            raise FormatError(
                f"{path}: seq{number}_{name} is {array.dtype} {list(array.shape)}, "
                f"expected {'integers' if kind == 'i' else 'floats'} [{wanted}]"
            )
        return array

    ids = take("ids", "i", None)
    rows = take("rows", "i", None)
    position = int(take("draft_position", "i"))
    ordered = take("draft_ordered_logits", "f", None, n_vocab)
    recorded = Recorded(
        name=f"seq{number}",
        ids=tuple(map(int, ids)),
        rows=tuple(map(int, rows)),
        base_logits=take("base_logits", "f", len(rows), n_vocab),
        draft_position=position,
        ordered_logits=ordered,
        dense_logits=take("draft_dense_logits", "f", len(ordered), n_vocab),
    )
    for name, values, limit in (
        ("ids", recorded.ids, n_vocab),
        ("rows", recorded.rows, len(ids)),
        ("draft_position", (position - 1,), len(ids) - 1),
    ):
        if not values or min(values) < 0 or max(values) >= limit:
            raise FormatError(f"{path}: seq{number}_{name} is out of range")
    return recorded


def longest(recording: Sequence[Recorded]) -> int:
    """Return the tokens of the longest sequence."""
    return max(len(recorded.ids) for recorded in recording)


def compare_with(
    contexts: PairContexts, recording: Sequence[Recorded], file: str, program: str
) -> Reference:
    """Compute every recorded row anew and compare.

    Rows of a model that is all F32 must be within `MAX_DIFFERENCE`, others within `MAX_KL`.
    Raises RuntimeUnavailable if llama.cpp refuses a batch.
    """
    base = _Tally("base", contexts.target.model.is_all_f32)
    heads = _Tally("heads", contexts.drafter.model.is_all_f32)
    head = "ordered"
    for recorded in recording:
        for row, logits, expected in _base_rows(contexts.target, recorded):
            base.add(recorded.name, row, logits, expected)
        for step, logits in enumerate(_draft_rows(contexts, recorded)):
            head = "ordered" if np.isneginf(logits).any() else "dense"
            expected = (
                _scored(recorded.ordered_logits[step])
                if head == "ordered"
                else recorded.dense_logits[step]
            )
            heads.add(recorded.name, recorded.draft_position + step, logits, expected)
    return Reference(
        file=file,
        program=program,
        head=head,
        sequences=len(recording),
        base=base.comparison(),
        heads=heads.comparison(),
        divergences=(*base.divergences, *heads.divergences),
    )


def _base_rows(target: Context, recorded: Recorded) -> list[tuple[int, Row, Row]]:
    found = []
    target.clear()
    wanted = dict(zip(recorded.rows, recorded.base_logits, strict=True))
    for start in range(0, len(recorded.ids), MAX_OUTPUTS):
        chunk = recorded.ids[start : start + MAX_OUTPUTS]
        target.decode(chunk, start)
        for row in (row for row in wanted if start <= row < start + len(chunk)):
            found.append((row, target.logits(row - start).copy(), wanted[row]))
    return found


def _draft_rows(contexts: PairContexts, recorded: Recorded) -> list[Row]:
    """Return the drafter's logits at each recorded step, fed with the recorded drafts."""
    position = recorded.draft_position
    contexts.target.prefill(recorded.ids[:position])
    hidden = contexts.target.hidden((position - 1) % contexts.target.n_batch)
    token = recorded.ids[position]
    rows = []
    for expected in recorded.ordered_logits:
        contexts.drafter.decode_with_hidden(token, hidden, position)
        rows.append(contexts.drafter.logits(0).copy())
        hidden = contexts.drafter.hidden(0)
        token = int(expected.argmax())
    return rows


def _scored(row: Row) -> Row:
    """Return a row of the ordered head with what it did not score, its lowest value, at -inf."""
    scored: Row = np.where(row > row.min(), row, -np.inf).astype(np.float32)
    return scored


class _Tally:
    """Adds up one model's rows."""

    def __init__(self, what: str, tight: bool) -> None:
        self.what = what
        self.tight = tight
        self.largest: list[float] = []
        self.kl: list[float] = []
        self.same_best = 0
        self.divergences: list[Divergence] = []

    def add(self, name: str, index: int, found: Row, expected: Row) -> None:
        both = np.isfinite(found) & np.isfinite(expected)
        largest = float(np.abs(found[both] - expected[both]).max(initial=0.0))
        kl = _kl(expected, found)
        best, ours = int(expected.argmax()), int(found.argmax())
        self.largest.append(largest)
        self.kl.append(kl)
        self.same_best += best == ours
        off = largest > MAX_DIFFERENCE if self.tight else kl > MAX_KL
        # Unselected rows are -inf: in a tight comparison the same ones must be.
        if self.tight and not np.array_equal(np.isfinite(found), np.isfinite(expected)):
            off = True
        if off or not np.isfinite(kl):
            second, first = np.partition(expected, expected.size - 2)[-2:]
            text = f"{self.what}: logits differ by {largest:.3g}, KL {kl:.3g}"
            self.divergences.append(
                Divergence(name, index, best, ours, float(first - second), text)
            )

    def comparison(self) -> Comparison:
        rows = len(self.kl)
        limit = f"difference <= {MAX_DIFFERENCE:g}" if self.tight else f"KL <= {MAX_KL:g}"
        return Comparison(
            criterion=limit,
            rows=rows,
            largest=max(self.largest, default=0.0),
            kl=float(np.mean(self.kl)) if rows else 0.0,
            best=Proportion(self.same_best, rows),
        )


def _kl(expected: Row, found: Row) -> float:
    """Return KL(expected || found) in nats; tokens that either does not score are left out."""
    both = np.isfinite(expected) & np.isfinite(found)
    if not both.any():
        return float("inf")
    p, q = (row[both].astype(np.float64) for row in (expected, found))
    log_p = p - p.max() - np.log(np.exp(p - p.max()).sum())
    log_q = q - q.max() - np.log(np.exp(q - q.max()).sum())
    return max(0.0, float((np.exp(log_p) * (log_p - log_q)).sum()))
