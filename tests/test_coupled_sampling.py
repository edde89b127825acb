"""Coupled sampling in the patched server: one text a seed, more drafts accepted, the law kept.

All on the `exact` build at F32, where equal means equal.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gguf_mtp.runtime.bindings import Context, ContextOptions, Model, ModelOptions, Row
from gguf_mtp.runtime.coupled import Draw, sample
from gguf_mtp.runtime.library import load_library
from gguf_mtp.runtime.sampling import softmax
from gguf_mtp.validate.distribution import ALPHA
from gguf_mtp.validate.prompts import load_prompts
from gguf_mtp.validate.statistics import fit
from llama_programs import Server, programs, server

PROMPTS = [prompt.text for prompt in load_prompts(["python"])][:4]
PURE = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
COUPLED = "--spec-draft-coupled"
SEEDS = (1, 2, 3)

Tokens = list[int]


def answers(running: Server, n_predict: int = 96, **sampling: Any) -> list[dict[str, Any]]:
    return [
        running.complete(prompt, n_predict, seed=seed, **{"temperature": 0.8, **PURE, **sampling})
        for prompt in PROMPTS
        for seed in SEEDS
    ]


def texts(found: Sequence[dict[str, Any]]) -> list[Tokens]:
    return [answer["tokens"] for answer in found]


@pytest.fixture
def started(merged_f32: Path, tmp_path: Path) -> Callable[..., Any]:
    """A server of the merged file with these flags."""
    return lambda *flags, **options: server(
        programs("exact"), "-m", merged_f32, *flags, log=tmp_path / "log", **options
    )


@pytest.fixture(scope="module")
def without_drafts(merged_f32: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Tokens]:
    """What `answers` gives with coupled sampling and no drafts."""
    log = tmp_path_factory.mktemp("none") / "log"
    flags = ("-m", merged_f32, COUPLED, "--spec-type", "none")
    with server(programs("exact"), *flags, log=log) as running:
        return texts(answers(running))


WAYS = {
    "one draft": ("--spec-draft-n-max", "1"),
    "six drafts": ("--spec-draft-n-max", "6"),
    "at least two drafts": ("--spec-draft-n-min", "2", "--spec-draft-p-min", "0.25"),
    "depth by the clock": ("--spec-draft-auto-depth",),
    "step by step": ("--no-spec-draft-one-graph",),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_seed_has_one_text_with_any_drafts_and_without(
    started: Callable[..., Any], without_drafts: list[Tokens], way: str
) -> None:
    with started(COUPLED, *WAYS[way]) as running:
        found = answers(running)
    assert texts(found) == without_drafts
    assert len({tuple(text) for text in without_drafts}) == len(without_drafts)
    if "auto" not in " ".join(WAYS[way]):
        assert sum(answer["timings"]["draft_n_accepted"] for answer in found) > 0


def test_a_seed_has_one_text_in_four_busy_slots(
    started: Callable[..., Any], without_drafts: list[Tokens]
) -> None:
    with started(COUPLED, slots=4) as running, ThreadPoolExecutor(4) as pool:
        wanted = [(prompt, seed) for prompt in PROMPTS for seed in SEEDS]
        found = pool.map(
            lambda one: running.complete(one[0], 96, seed=one[1], temperature=0.8, **PURE), wanted
        )
        assert texts(list(found)) == without_drafts


def test_one_request_repeats_its_text_whatever_came_before(started: Callable[..., Any]) -> None:
    """With the depth chosen by the clock, and other requests between."""
    with started(COUPLED, "--spec-draft-auto-depth") as running:
        seen = set()
        for other in range(10):
            again = running.complete(PROMPTS[0], 60, seed=5, temperature=0.9, **PURE)
            seen.add(tuple(again["tokens"]))
            running.complete(PROMPTS[1], 7, seed=other, temperature=0.9, **PURE)
    assert len(seen) == 1


def test_without_a_seed_answers_differ(started: Callable[..., Any]) -> None:
    with started(COUPLED) as running:
        one, other = (running.complete(PROMPTS[0], 32, temperature=1.0, **PURE) for _ in "12")
    assert one["tokens"] != other["tokens"]


def test_greedy_answers_are_not_changed(started: Callable[..., Any]) -> None:
    found = []
    for flags in ((COUPLED,), ("--spec-type", "none")):
        with started(*flags) as running:
            found.append(texts(answers(running, temperature=0.0)))
    assert found[0] == found[1]


def test_more_drafts_are_accepted_than_by_matching(started: Callable[..., Any]) -> None:
    """By more than twice the standard error of what these answers show."""
    rates = []
    for flags in ((COUPLED,), ()):
        with started(*flags) as running:
            timings = [answer["timings"] for answer in answers(running, 160)]
        rates.append(np.array([t["draft_n_accepted"] / t["draft_n"] for t in timings]))
    coupled, match = rates
    error = np.sqrt((np.var(match, ddof=1) + np.var(coupled, ddof=1)) / len(match))
    assert coupled.mean() - match.mean() > 2 * error


# --- the law of the first two tokens ------------------------------------------------------------

N_TOP = 8  # candidates of a token, so that pairs are often enough
REQUESTS = int(os.environ.get("GGUF_MTP_LAW_REQUESTS", "1500"))
PROMPT = "def "


@pytest.fixture(scope="module")
def target(merged_f32: Path) -> Iterator[Context]:
    library = load_library(exact=True)
    with (
        Model.open(library, merged_f32, ModelOptions()) as model,
        Context(model, ContextOptions(n_ctx=512, n_threads=1)) as context,
    ):
        yield context


def best(row: Row) -> Tokens:
    """The candidates that top_k leaves, the most probable first."""
    return [int(token) for token in np.argsort(row)[::-1][:N_TOP]]


class Law:
    """Probabilities of the first two tokens after `PROMPT` at temperature 1, and their rows."""

    def __init__(self, target: Context) -> None:
        prompt = target.model.tokenize(PROMPT)
        target.prefill(prompt)
        first = target.logits(len(prompt) - 1).copy()
        self.rows: dict[tuple[int, ...], Row] = {(): first}
        for token in best(first):
            target.prefill([*prompt, token])
            self.rows[(token,)] = target.logits(len(prompt)).copy()
        self.pairs: dict[tuple[int, int], float] = {}
        for one, p_one in self._of(()):
            for two, p_two in self._of((one,)):
                self.pairs[one, two] = p_one * p_two

    def _of(self, before: tuple[int, ...]) -> Iterator[tuple[int, float]]:
        row = self.rows[before]
        tokens = best(row)
        yield from zip(tokens, softmax(row[tokens], 1.0), strict=True)

    def p_value(self, seen: Sequence[tuple[int, int]]) -> float:
        """Of a chi-square test of these pairs; 0 where one of them is impossible."""
        number = {pair: i for i, pair in enumerate(self.pairs)}
        counts = Counter(number.get(pair, -1) for pair in seen)
        if -1 in counts:
            return 0.0
        return fit(counts, np.array(list(self.pairs.values()))).p_value

    def drawn(self, n: int, position_of_second: int) -> list[tuple[int, int]]:
        """Pairs drawn with noise of position 7, and of another for the second token."""
        pairs = []
        for seed in range(n):
            one = self._sample((), Draw(seed, 7, 1.0))
            two = self._sample((one,), Draw(seed, position_of_second, 1.0))
            pairs.append((one, two))
        return pairs

    def _sample(self, before: tuple[int, ...], draw: Draw) -> int:
        row = np.full_like(self.rows[before], -1e9)
        tokens = best(self.rows[before])
        row[tokens] = self.rows[before][tokens]
        return sample(row, draw)


@pytest.fixture(scope="module")
def law(target: Context) -> Law:
    return Law(target)


@pytest.mark.parametrize("flags", [(COUPLED,), ()], ids=["coupled", "match"])
def test_the_first_two_tokens_have_the_targets_law(
    started: Callable[..., Any], law: Law, flags: tuple[str, ...]
) -> None:
    """The second of them is in the first draft."""
    sampling: dict[str, Any] = {"temperature": 1.0, "top_k": N_TOP, "top_p": 1.0, "min_p": 0.0}
    sampling |= {"samplers": ["top_k", "temperature"], "cache_prompt": True, "ignore_eos": True}
    with started(*flags) as running:
        found = [
            running.complete(PROMPT, 4, seed=1000 + seed, **sampling) for seed in range(REQUESTS)
        ]
    assert sum(answer["timings"].get("draft_n_accepted", 0) for answer in found) > REQUESTS / 10
    assert (
        law.p_value([(one, two) for one, two, *_ in (answer["tokens"] for answer in found)]) > ALPHA
    )


def test_noise_used_twice_would_not_have_that_law(law: Law) -> None:
    assert law.p_value(law.drawn(REQUESTS, position_of_second=8)) > ALPHA
    assert law.p_value(law.drawn(REQUESTS, position_of_second=7)) < 1e-9
