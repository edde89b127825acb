"""Statistics over rounds: known intervals, and traces small enough to count by hand."""

import math

import pytest

from _validate_helpers import a_round, a_run
from gguf_mtp.validate.acceptance import (
    Proportion,
    acceptance,
    counted_rounds,
    novel_rounds,
    wilson,
)


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (1, 10, 0.0179, 0.4042),
        (5, 10, 0.2366, 0.7634),
        (10, 10, 0.7225, 1.0),
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_published_values(hits: int, total: int, low: float, high: float) -> None:
    assert wilson(hits, total) == pytest.approx((low, high), abs=5e-5)


def test_nothing_observed_leaves_everything_possible() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert math.isnan(Proportion(0, 0).rate)


def test_acceptance_counts_prefixes_and_tokens() -> None:
    rounds = [
        a_round([1, 2, 3], [1, 2, 3, 4]),  # all three accepted
        a_round([1, 2, 3], [1, 9]),  # one
        a_round([1, 2, 3], [9]),  # none
        a_round([1], [1, 2]),  # a shorter draft, accepted
    ]
    found = acceptance(rounds, n_max=3)
    assert found.first_accepted == (Proportion(3, 4), Proportion(1, 3), Proportion(1, 3))
    assert found.rounds == 4
    assert found.tokens_per_pass == (4 + 2 + 1 + 2) / 4
    assert found.draft_seconds == pytest.approx(0.004)
    assert found.verify_seconds == pytest.approx(0.008)


def test_acceptance_without_rounds() -> None:
    found = acceptance([], n_max=2)
    assert found.first_accepted == (Proportion(0, 0), Proportion(0, 0))
    assert math.isnan(found.tokens_per_pass)


def test_a_round_cut_by_the_token_limit_counts_in_full() -> None:
    # Two drafts were accepted but only one token was wanted.
    run = a_run([1], 2, [a_round([3, 4], [3], accepted=2)])
    assert acceptance(counted_rounds(run), 2).first_accepted == (Proportion(1, 1),) * 2


def test_a_round_that_met_the_end_does_not_count() -> None:
    rounds = [a_round([3, 4], [3, 4, 5]), a_round([6, 7], [6], accepted=0)]
    assert counted_rounds(a_run([1], 2, rounds, ended=True)) == rounds[:1]
    assert counted_rounds(a_run([1], 2, rounds, ended=False)) == rounds


def test_novel_rounds_are_those_whose_first_token_completes_a_new_4_gram() -> None:
    repeated = a_round([4], [4])  # 1 2 3 4 is in the prompt
    fresh = a_round([5], [5, 6])  # 2 3 4 5 is not
    again = a_round([1], [1])  # 4 5 6 1 is new too
    run = a_run([1, 2, 3, 4, 9, 1, 2], 3, [repeated, fresh, again])
    assert novel_rounds(run) == [fresh, again]


def test_a_4_gram_of_the_output_is_seen_from_then_on() -> None:
    cycle = [a_round([token], [token]) for token in (2, 3, 1, 2, 3, 1, 2)]
    run = a_run([1, 2, 3], 1, cycle)
    # 2312, 3123, 1231 come once each before they repeat; 1231 ended with the prefill's token.
    assert novel_rounds(run) == cycle[:2]


def test_text_shorter_than_a_4_gram_is_not_novel() -> None:
    rounds = [a_round([2], [2]), a_round([3], [3])]
    assert novel_rounds(a_run([1], 1, rounds)) == rounds[1:]
