"""The noise of coupled sampling: the C++ sampler's numbers, and samples of the distribution."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gguf_mtp.errors import RuntimeUnavailable
from gguf_mtp.runtime.bindings import Row
from gguf_mtp.runtime.coupled import (
    N_BUCKETS,
    Draw,
    bucket_noise,
    draft,
    first_of_buckets,
    perturbed,
    sample,
    token_noise,
)
from gguf_mtp.runtime.sampling import softmax
from gguf_mtp.validate.distribution import ALPHA
from gguf_mtp.validate.statistics import fit
from llamacpp.pin import PATCHES

HERE = Path(__file__).parent / "coupled"
FILES = PATCHES / "mtp" / "files"
SEED_AND_POSITION = [(0, 0), (1, 7), (4294967295, 123456)]
EVERY_BUCKET = np.arange(N_BUCKETS)
TEMPERATURE = 0.8
FAR = -1000.0  # a logit of what is never drawn

# Buckets 0, 1, 999 and 2047, printed by `coupled/draws.cpp` (g++ 12.2, glibc 2.36, x86-64).
RECORDED = {
    (0, 0): (-0.714395106, -1.09772265, 1.52775311, 0.558785558),
    (1, 7): (-0.336258918, 1.28122461, 0.808500111, -0.474776596),
    (4294967295, 123456): (-0.369111389, 1.88423765, 0.416853577, -0.791970909),
}


@pytest.mark.parametrize("where", SEED_AND_POSITION)
def test_noise_is_what_the_cpp_sampler_gave(where: tuple[int, int]) -> None:
    noise = bucket_noise(*where, np.array([0, 1, 999, 2047])).astype(np.float32)
    assert list(noise) == [np.float32(value) for value in RECORDED[where]]


def buckets() -> int:
    """How many buckets the patch series has."""
    header = (FILES / "include" / "llama-mtp.h").read_text(encoding="utf-8")
    found = re.search(r"#define LLAMA_MTP_DRAFT_BUCKETS +(\d+)", header)
    assert found is not None
    return int(found[1])


Program = Callable[..., list[float]]


@pytest.fixture(scope="module")
def draws(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """The C++ sampler of the patch series as a program; its answer as numbers."""
    program = tmp_path_factory.mktemp("coupled") / "draws"
    include = [f"-I{HERE}", f"-I{FILES / 'common'}", f"-DLLAMA_MTP_DRAFT_BUCKETS={buckets()}"]
    sources = [str(HERE / "draws.cpp"), str(FILES / "common" / "coupled-sampling.cpp")]
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    options = ["-O1", "-std=c++17", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([*compiler, *options, *include, *sources, "-o", str(program)], check=True)

    def run(*words: object, logits: bytes = b"") -> list[float]:
        command = [str(program), *map(str, words)]
        done = subprocess.run(command, input=logits, capture_output=True, check=True)
        return [float(value) for value in done.stdout.split()]

    return run


@pytest.mark.parametrize("where", SEED_AND_POSITION)
def test_noise_is_that_of_the_patch_series(draws: Program, where: tuple[int, int]) -> None:
    theirs = np.array(draws("noise", *where), np.float32)
    ours = bucket_noise(*where, EVERY_BUCKET)
    assert theirs.shape == ours.shape
    # Two libraries' logarithms may differ in the last bit.
    np.testing.assert_allclose(theirs, ours, rtol=2e-7)


def test_samples_are_those_of_the_patch_series(draws: Program) -> None:
    """Also of tokens that are not the first of their bucket, whose noise is another."""
    random = np.random.default_rng(0)
    not_first = 0
    for number in range(100):
        row = (3 * random.standard_normal(3 * N_BUCKETS - 5)).astype(np.float32)
        draw = Draw(int(random.integers(1 << 32)), number, (0.6, 0.8, 1.0, 1.7)[number % 4])
        words = (draw.seed, draw.position, draw.temperature, row.size)
        token = sample(row, draw)
        assert draws("sample", *words, logits=row.tobytes()) == [token]
        not_first += token not in first_of_buckets(row)
    assert not_first > 2


# --- the distribution ---------------------------------------------------------------------------


def crowded() -> Row:
    """Logits [3 * N_BUCKETS] of five likely tokens in two buckets, and of others never drawn."""
    row = np.full(3 * N_BUCKETS, FAR, np.float32)
    likely = [5, 5 + N_BUCKETS, 5 + 2 * N_BUCKETS, 9, 9 + N_BUCKETS]
    row[likely] = np.log([0.3, 0.25, 0.15, 0.2, 0.1])
    return row


def p_value(choose: Callable[[Row, Draw], int], n: int = 2000) -> float:
    row = crowded()
    counts = Counter(choose(row, Draw(seed, 11, TEMPERATURE)) for seed in range(n))
    return fit(counts, softmax(row, TEMPERATURE)).p_value


def test_samples_have_the_distribution_of_the_logits() -> None:
    assert p_value(sample) > ALPHA


def test_noise_shared_by_a_bucket_would_not_give_it() -> None:
    """As for the drafter, whose distribution need not be exact."""
    assert p_value(draft) < 1e-9


def test_positions_are_independent() -> None:
    row = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    pairs = Counter(
        3 * sample(row, Draw(seed, 20, 1.0)) + sample(row, Draw(seed, 21, 1.0))
        for seed in range(3000)
    )
    p = softmax(row, 1.0)
    assert fit(pairs, np.outer(p, p).ravel()).p_value > ALPHA


def test_seeds_and_positions_change_the_noise() -> None:
    places = ((1, 5), (1, 6), (2, 5), (5, 1))
    noise = [bucket_noise(seed, position, EVERY_BUCKET) for seed, position in places]
    own = token_noise(1, 5, EVERY_BUCKET)
    rows = np.corrcoef([*noise, own])
    assert np.abs(rows - np.eye(len(rows))).max() < 0.1


def test_equal_logits_give_the_drafted_token() -> None:
    random = np.random.default_rng(3)
    for position in range(50):
        row = random.standard_normal(N_BUCKETS).astype(np.float32)
        draw = Draw(9, position, 1.0)
        assert draft(row, draw) == sample(row, draw)


# --- single values ------------------------------------------------------------------------------


def test_the_first_of_a_bucket_is_the_most_probable_and_of_equals_the_lowest_id() -> None:
    row = np.zeros(2 * N_BUCKETS + 2, np.float32)
    row[3 + N_BUCKETS] = 1.0
    row[1 + 2 * N_BUCKETS] = 2.0
    firsts = first_of_buckets(row)
    assert firsts.shape == (N_BUCKETS,)
    assert list(firsts[:5]) == [0, 1 + 2 * N_BUCKETS, 2, 3 + N_BUCKETS, 4]
    assert list(first_of_buckets(np.zeros(3, np.float32))) == [0, 1, 2]


def test_what_is_out_of_reach_has_no_value() -> None:
    row = np.array([0.0, -30.0, -50.0, -np.inf], np.float32)
    values = perturbed(row, Draw(1, 2, 1.0))
    assert list(np.isfinite(values)) == [True, True, False, False]
    assert list(np.isfinite(perturbed(row, Draw(1, 2, 2.0)))) == [True, True, True, False]


def test_a_draw_at_temperature_0_is_the_best_token() -> None:
    row = np.array([1.0, 3.0, 3.0, 2.0], np.float32)
    assert {f(row, Draw(seed, 4, 0.0)) for f in (sample, draft) for seed in range(5)} == {1}


def test_the_draw_after_n_tokens_keeps_its_seed() -> None:
    assert Draw(3, 10, 0.5).after(2) == Draw(3, 12, 0.5)


@pytest.mark.parametrize("choose", [sample, draft])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_numbers_are_refused(
    choose: Callable[[Row, Draw], int], temperature: float
) -> None:
    with pytest.raises(RuntimeUnavailable, match="logits are not numbers"):
        choose(np.array([1.0, np.nan], np.float32), Draw(1, 1, temperature))
