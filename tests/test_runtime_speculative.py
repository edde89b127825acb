"""The greedy loop and its checks on a context that needs no library."""

from collections.abc import Sequence
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from _validate_helpers import FakeContext, OracleDrafter, fake_context
from gguf_mtp.errors import RuntimeUnavailable
from gguf_mtp.runtime.bindings import Context, Row
from gguf_mtp.runtime.speculative import (
    RejectAllLoop,
    Run,
    SpeculativeLoop,
    Verified,
    decode_plainly,
    fingerprint,
    margin,
)
from gguf_mtp.validate.tiers import compare_runs, measure_invariance, near_ties, replay
from mutants import AcceptsOneTooMany, ForgetsRollback, RollsBackOneTooFew

PROMPT = (3, 1, 4, 1, 5)
N = 24


def plain(prompt: Sequence[int] = PROMPT, n: int = N) -> Run:
    return decode_plainly(fake_context(), prompt, n)


def oracle(mistakes: frozenset[int] = frozenset()) -> OracleDrafter:
    return OracleDrafter(PROMPT + plain().tokens, mistakes)


MISTAKES = frozenset({8, 9, 12, 17, 18, 20})


def test_drafts_that_are_right_are_all_accepted() -> None:
    context = FakeContext()
    run = SpeculativeLoop(cast(Context, context), oracle(), n_max=3).run(PROMPT, 17)
    assert run.tokens == plain().tokens[:17]
    assert [r.accepted for r in run.rounds] == [3, 3, 3, 3]
    assert context.widths == [5, 4, 4, 4, 4]
    assert [r.position for r in run.rounds] == [5, 9, 13, 17]


@settings(max_examples=60, deadline=None)
@given(
    mistakes=st.frozensets(st.integers(0, 40)),
    n_max=st.integers(1, 6),
    n=st.integers(1, N),
    prompt_length=st.integers(1, 20),
)
def test_output_equals_plain_decoding_whatever_is_drafted(
    mistakes: frozenset[int], n_max: int, n: int, prompt_length: int
) -> None:
    prompt = tuple(range(prompt_length))
    expected = decode_plainly(fake_context(), prompt, N)
    drafter = OracleDrafter(prompt + expected.tokens, mistakes)
    run = SpeculativeLoop(fake_context(), drafter, n_max).run(prompt, n)
    assert run.tokens == expected.tokens[:n]
    assert run.prints == expected.prints[:n]
    assert run.margins == expected.margins[:n]
    assert replay(fake_context(), "p", run) is None
    control = RejectAllLoop(fake_context(), drafter, n_max).run(prompt, n)
    assert (control.tokens, control.prints) == (expected.tokens[:n], expected.prints[:n])
    assert all(r.accepted == 0 and len(r.drafted) == n_max for r in control.rounds)


def test_decoding_stops_at_an_end_token() -> None:
    end = plain().tokens[7]
    stop = frozenset({end})
    cut = plain().tokens.index(end) + 1
    assert decode_plainly(fake_context(), PROMPT, N, stop).tokens == plain().tokens[:cut]
    run = SpeculativeLoop(fake_context(), oracle(), 3, stop).run(PROMPT, N)
    assert run.tokens == plain().tokens[:cut]
    assert run.ended


def test_what_does_not_fit_the_context_is_refused() -> None:
    with pytest.raises(RuntimeUnavailable, match="5 prompt \\+ 10 new \\+ 3 drafted"):
        SpeculativeLoop(fake_context(n_ctx=17), oracle(), 3).run(PROMPT, 10)
    with pytest.raises(RuntimeUnavailable, match="nothing to decode"):
        decode_plainly(fake_context(), (), 10)
    with pytest.raises(ValueError, match="n_max"):
        SpeculativeLoop(fake_context(), oracle(), 0)


@pytest.mark.parametrize("mutant", [ForgetsRollback, RollsBackOneTooFew, AcceptsOneTooMany])
def test_a_broken_loop_breaks_l1_and_l2(mutant: type[SpeculativeLoop]) -> None:
    run = mutant(fake_context(), oracle(MISTAKES), 3).run(PROMPT, N)
    assert replay(fake_context(), "p", run) is not None
    assert compare_runs("p", plain(), run, bits=False) is not None


def test_accepting_fewer_than_possible_is_slow_but_not_wrong() -> None:
    class Timid(SpeculativeLoop):
        def _accept(self, drafted: Sequence[int], verified: Verified) -> int:
            return super()._accept(drafted, verified) // 2

    run = Timid(fake_context(), oracle(MISTAKES), 3).run(PROMPT, N)
    assert replay(fake_context(), "p", run) is None
    assert run.tokens == plain().tokens


def test_a_drafter_that_touches_the_cache_breaks_l0() -> None:
    context = FakeContext()

    class Careless(OracleDrafter):
        def draft(self, last: int, hidden: Row, position: int, n: int) -> list[int]:
            context.cache[0] = (context.cache[0] + 1) % 23
            return super().draft(last, hidden, position, n)

    loop = RejectAllLoop(cast(Context, context), Careless(PROMPT + plain().tokens), 3)
    found = compare_runs("p", plain(), loop.run(PROMPT, N), bits=True, what="all rejected")
    assert found is not None
    assert found.what.startswith("all rejected: ")


def test_replay_names_the_first_wrong_token() -> None:
    run = AcceptsOneTooMany(fake_context(), oracle(frozenset({7})), 3).run(PROMPT, N)
    found = replay(fake_context(), "p", run)
    # Output token 2 sits at position 7, the only mistake.
    assert found is not None
    assert (found.index, found.expected) == (2, plain().tokens[2])
    assert found.found == run.tokens[2] != found.expected


def test_runs_of_different_length_differ_where_the_shorter_ends() -> None:
    found = compare_runs("p", plain(), plain(n=5), bits=False)
    assert found is not None
    assert (found.index, found.found) == (5, None)


def test_invariance_holds_where_rows_do_not_depend_on_the_batch() -> None:
    found = measure_invariance(fake_context(), fake_context(), [plain()], 4)
    assert found.holds
    assert (found.equal.total, found.noise) == (N - 1, 0.0)


def test_noise_is_how_far_two_logits_move_apart() -> None:
    wide = fake_context(wide_shift=0.25)
    found = measure_invariance(fake_context(), wide, [plain()], 4)
    assert not found.holds
    # The last chunk of 23 rows in fours is 3 wide; every row of every chunk moves.
    assert found.equal.hits == 0
    assert found.noise == pytest.approx(0.25, abs=1e-6)


def test_near_ties_are_judged_by_their_margin() -> None:
    divergence = compare_runs("p", plain(), plain(n=5), bits=False)
    assert divergence is not None
    assert divergence.margin is not None
    assert near_ties([divergence], divergence.margin) == []
    assert near_ties([divergence], divergence.margin * 0.99) == [divergence]


def test_fingerprints_tell_bits_apart() -> None:
    row = np.array([0.0, 1.0], np.float32)
    assert fingerprint(row) == fingerprint(row.copy())
    assert fingerprint(row) != fingerprint(np.array([-0.0, 1.0], np.float32))


def test_margin_is_the_distance_of_the_two_highest() -> None:
    assert margin(np.array([1.0, 5.0, 4.5, -2.0], np.float32)) == 0.5
