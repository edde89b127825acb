"""Near ties: where a text leaves the baseline, and how far this build rounds logits apart there.

Sums in another order may choose another token where two are nearly as good. How near is not a
constant: it depends on the CPU's kernels, and is measured in the same run, for the same tokens.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from gguf_mtp.runtime.bindings import FLASH_ATTN, KV_TYPES, Context, Row
from gguf_mtp.runtime.speculative import Run

# A gap is a near tie up to this many times the largest movement seen: a few arrangements are tried,
# and the text under test comes from another one.
MULTIPLE = 2
ARRANGEMENTS = 8
STEP = 4  # tokens decoded at once, as drafts are
BOS = b"<bos>"


@dataclass(frozen=True)
class Parting:
    """Where a text leaves the baseline.

    `tokens` come before it. `gap` is how much better the baseline's next token is than the best one
    that the other text may have there, in logits.
    """

    tokens: tuple[int, ...]
    gap: float


def parting(target: Context, run: Run, other: str) -> Parting | None:
    """Find where `other`, prompt and output, leaves a baseline run of `target`.

    None where one of the two begins the other. Only the text says which tokens the other has: of
    all places up to the first difference where it may have had another token, the one with the
    smallest gap counts.
    """
    pieces = [target.model.piece(token) for token in range(target.model.n_vocab)]
    rest = _without(b"".join(pieces[token] for token in run.prompt), other.encode())
    rests = []
    for token in run.tokens:
        rests.append(rest)
        if not rest.startswith(pieces[token]):
            break
        rest = rest[len(pieces[token]) :]
    else:
        return None
    if pieces[run.tokens[len(rests) - 1]].startswith(rest):
        return None
    places = []
    for i, row in enumerate(_rows(target, run, len(rests))):
        others = [t for t, piece in enumerate(pieces) if piece and rests[i].startswith(piece)]
        others = [t for t in others if t != run.tokens[i]]
        gap = min((float(row[run.tokens[i]] - row[t]) for t in others), default=np.inf)
        places.append(Parting((*run.prompt, *run.tokens[:i]), gap))
    return min(places, key=lambda place: place.gap)


def _without(prompt: bytes, text: bytes) -> bytes:
    prompt, text = prompt.removeprefix(BOS), text.removeprefix(BOS)
    assert text.startswith(prompt), f"{text[:80]!r} does not begin with the prompt {prompt[:80]!r}"
    return text[len(prompt) :]


def _rows(target: Context, run: Run, n: int) -> Iterator[Row]:
    """The rows that the first `n` tokens of a baseline run were chosen from."""
    target.prefill(run.prompt)
    yield target.logits((len(run.prompt) - 1) % target.n_batch)
    for i in range(n - 1):
        target.decode([run.tokens[i]], len(run.prompt) + i)
        yield target.logits(0)


def moved_by_cells(target: Context, tokens: Sequence[int]) -> float:
    """How far two logits after `tokens` move against each other with the KV cache's cells.

    The largest movement over `ARRANGEMENTS` in which tokens of a second sequence take cells between
    those of the first and free them again, as the branches of a tree do: sums over the cache then
    run in another order.
    """
    with _two_sequences(target) as address:
        usual = _last_row(target, address, tokens, None)
        moved = [
            _last_row(target, address, tokens, random.Random(seed)) - usual
            for seed in range(ARRANGEMENTS)
        ]
    return max(float(change.max() - change.min()) for change in moved)


@contextmanager
def _two_sequences(target: Context) -> Iterator[Any]:
    """A ``llama_context *`` like `target`'s, in whose cache two sequences share the cells."""
    api, options = target.library.api, target.options
    params = api.llama_context_default_params()
    params.n_ctx, params.n_seq_max, params.kv_unified = options.n_ctx, 2, True
    params.n_threads = params.n_threads_batch = options.n_threads
    params.type_k = params.type_v = KV_TYPES[options.kv_type]
    params.flash_attn_type = FLASH_ATTN[options.flash_attn]
    address = api.llama_init_from_model(target.model.address, params)
    assert address, target.library.log.reason()
    try:
        yield address
    finally:
        api.llama_free(address)


def _last_row(
    target: Context, address: Any, tokens: Sequence[int], rng: random.Random | None
) -> Row:
    """Logits after `tokens`; with `rng`, others of a second sequence are decoded between them."""
    api = target.library.api
    memory = api.llama_get_memory(address)
    api.llama_memory_clear(memory, True)
    for start in range(0, len(tokens), STEP):
        entries: list[tuple[int, int, int]] = []  # token, position, sequence
        others = 0
        for position, token in enumerate(tokens[start : start + STEP], start):
            entries.append((token, position, 0))
            for _ in range(rng.randrange(3) if rng else 0):
                entries.append((token, others, 1))
                others += 1
        _decode(api, address, entries)
        api.llama_memory_seq_rm(memory, 1, -1, -1)
    last = max(i for i, (_, _, sequence) in enumerate(entries) if sequence == 0)
    pointer = api.llama_get_logits_ith(address, last)
    row: Row = np.ctypeslib.as_array(pointer, shape=(target.model.n_vocab,)).copy()
    return row


def _decode(api: Any, address: Any, entries: Sequence[tuple[int, int, int]]) -> None:
    batch = api.llama_batch_init(len(entries), 0, 1)
    batch.n_tokens = len(entries)
    for i, (token, position, sequence) in enumerate(entries):
        batch.token[i], batch.pos[i], batch.logits[i] = token, position, True
        batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
    code = api.llama_decode(address, batch)
    api.llama_batch_free(batch)
    assert code == 0
