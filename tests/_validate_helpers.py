"""Stand-ins and files for the tests of runtime and validation."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import numpy as np
import pytest

from gguf_mtp.errors import RuntimeUnavailable
from gguf_mtp.runtime.bindings import Context, ContextOptions, Row
from gguf_mtp.runtime.library import Library, load_library
from gguf_mtp.runtime.speculative import Round, Run

VOCAB = 23


@dataclass
class FakeModel:
    """As much of a model as a loop asks of one."""

    n_vocab: int = VOCAB


class FakeContext:
    """A context without a library: logits are a hash of all that is in the cache before them.

    Like llama.cpp it refuses positions that do not follow the cache. `wide_shift` moves the
    logits of batches wider than one, as kernels that are not batch-invariant do.
    """

    def __init__(self, n_ctx: int = 256, n_batch: int = 8, wide_shift: float = 0.0) -> None:
        self.options = ContextOptions(n_ctx=n_ctx)
        self.model = FakeModel()
        self.n_batch = n_batch
        self.cache: list[int] = []
        self.rows: list[Row] = []
        self.widths: list[int] = []
        self.wide_shift = wide_shift

    def decode(self, tokens: Sequence[int], position: int, all_rows: bool = True) -> None:
        if position != len(self.cache):
            raise RuntimeUnavailable(f"position {position} after {len(self.cache)} tokens")
        self.widths.append(len(tokens))
        self.rows = []
        for i, token in enumerate(tokens):
            self.cache.append(token)
            row = logits_after(tuple(self.cache))
            if self.wide_shift and len(tokens) > 1:
                row = row.copy()
                row[i % VOCAB] += self.wide_shift
            self.rows.append(row)

    def prefill(self, tokens: Sequence[int]) -> None:
        self.clear()
        for start in range(0, len(tokens), self.n_batch):
            self.decode(tokens[start : start + self.n_batch], start, all_rows=False)

    def logits(self, i: int) -> Row:
        return self.rows[i]

    def best(self, i: int) -> int:
        return int(np.argmax(self.rows[i]))

    def hidden(self, i: int) -> Row:
        row: Row = self.rows[i][:4].copy()
        return row

    def keep(self, n_tokens: int) -> None:
        del self.cache[n_tokens:]

    def clear(self) -> None:
        self.cache = []


def fake_context(**arguments: Any) -> Context:
    """Return a `FakeContext` under the type that loops are written for."""
    return cast(Context, FakeContext(**arguments))


@cache
def logits_after(tokens: tuple[int, ...]) -> Row:
    """Return logits [VOCAB] that depend on every token and on their order; not to be changed."""
    seed = hashlib.sha256(repr(list(tokens)).encode()).digest()[:8]
    rng = np.random.default_rng(int.from_bytes(seed, "little"))
    return rng.standard_normal(VOCAB).astype(np.float32)


class OracleDrafter:
    """Drafts what is known to come, with mistakes where `mistakes` says so.

    `text` is prompt and plain output; `mistakes` are positions in it.
    """

    def __init__(
        self, text: Sequence[int], mistakes: frozenset[int] = frozenset(), n_vocab: int = VOCAB
    ) -> None:
        self.text = tuple(text)
        self.mistakes = mistakes
        self.n_vocab = n_vocab

    def draft(self, last: int, hidden: Row, position: int, n: int) -> list[int]:
        drafted = []
        for i in range(position + 1, position + 1 + n):
            token = self.text[i] if i < len(self.text) else 0
            drafted.append((token + 1) % self.n_vocab if i in self.mistakes else token)
        return drafted


def a_round(
    drafted: Sequence[int], emitted: Sequence[int], accepted: int | None = None, position: int = 0
) -> Round:
    """Return a round that took 1 ms to draft and 2 ms to verify."""
    return Round(
        position=position,
        token=0,
        drafted=tuple(drafted),
        accepted=len(emitted) - 1 if accepted is None else accepted,
        emitted=tuple(emitted),
        draft_seconds=0.001,
        verify_seconds=0.002,
    )


def a_run(prompt: Sequence[int], first: int, rounds: Sequence[Round], ended: bool = False) -> Run:
    """Return a run whose prefill emitted `first` and whose rounds emitted the rest."""
    tokens = [first, *(token for r in rounds for token in r.emitted)]
    return Run(
        prompt=tuple(prompt),
        tokens=tuple(tokens),
        prints=tuple(bytes([token]) for token in tokens),
        margins=(1.0,) * len(tokens),
        rounds=tuple(rounds),
        prefill_seconds=0.5,
        decode_seconds=0.25,
        ended=ended,
    )


REQUIRED = os.environ.get("GGUF_MTP_REQUIRE_LLAMA") == "1"


def library_under_test() -> Library:
    """Load the library under test: the exact build if there is one. Skips where there is none.

    GGUF_MTP_REQUIRE_LLAMA=1 makes that a failure, so that a CI run cannot pass by skipping.
    """
    try:
        try:
            return load_library(exact=True)
        except RuntimeUnavailable:
            return load_library()
    except RuntimeUnavailable as error:
        if REQUIRED:
            raise
        pytest.skip(str(error))


def require_patches(library: Library) -> None:
    """Skip where `library` is not patched, unless a library is required."""
    if not library.is_patched:
        if REQUIRED:
            pytest.fail(f"{library.directory} is not a patched llama.cpp")
        pytest.skip(f"{library.directory} is not a patched llama.cpp")
