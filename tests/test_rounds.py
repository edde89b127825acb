"""How the patched programs draft and verify: one graph or step by step, trees, slots.

All on the `exact` build at F32, where equal means equal.
"""

import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from demo import same_text
from gguf_mtp.runtime.bindings import (
    Context,
    ContextOptions,
    Model,
    ModelOptions,
)
from gguf_mtp.runtime.library import load_library
from gguf_mtp.runtime.speculative import Run, decode_plainly
from gguf_mtp.validate.prompts import load_prompts
from hung import HUNG
from llama_programs import Output, programs, server, speculative_simple
from near_ties import MULTIPLE, moved_by_cells, parting
from pair_files import Files

PROMPTS = [prompt.text for prompt in load_prompts(["python"])][:4]
STEPS = "--no-spec-draft-one-graph"
TREE = "llama-speculative"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Output]:
    """`speculative_simple` of the exact build with statistics."""
    stats = tmp_path_factory.mktemp("stats") / "stats.json"

    def run(*arguments: str | Path, **options: Any) -> Output:
        return speculative_simple(programs("exact"), *arguments, stats=stats, **options)

    return run


DRAFTS = ("n_rounds", "n_drafted", "n_accepted", "accepted_at")


def drafts(output: Output) -> dict[str, Any]:
    return {name: output.stats[name] for name in DRAFTS}


@pytest.mark.parametrize("n_max", [1, 2, 3, 6])
def test_one_graph_drafts_what_steps_draft(
    run: Callable[..., Output], merged_f32: Path, n_max: int
) -> None:
    for prompt in PROMPTS[:2]:
        common = ("-m", merged_f32, "--spec-draft-n-max", str(n_max))
        at_once = run(*common, prompt=prompt)
        steps = run(*common, STEPS, prompt=prompt)
        assert same_text(at_once.text, steps.text)
        # The last rounds differ: steps draft past the end of the budget and throw that away.
        rounds = steps.stats["n_rounds"]
        assert abs(at_once.stats["n_rounds"] - rounds) <= 1
        assert abs(at_once.stats["n_accepted"] - steps.stats["n_accepted"]) <= n_max
        assert at_once.stats["n_accepted"] > 0


def test_a_long_draft_fits_one_graph(run: Callable[..., Output], merged_f32: Path) -> None:
    deep = run("-m", merged_f32, "--spec-draft-n-max", "24", prompt=PROMPTS[0])
    assert same_text(deep.text, run("-m", merged_f32, prompt=PROMPTS[0]).text)
    assert len(deep.stats["accepted_at"]) > 6


def test_p_min_cuts_where_steps_stop(run: Callable[..., Output], merged_f32: Path) -> None:
    n_max = 4
    common = ("-m", merged_f32, "--spec-draft-n-max", str(n_max), "--spec-draft-p-min", "0.6")
    at_once = run(*common, prompt=PROMPTS[0])
    steps = run(*common, STEPS, prompt=PROMPTS[0])
    free = run(*common[:-1], "0.0", prompt=PROMPTS[0])
    # Either way may draft past the end of the budget in the last round.
    assert abs(at_once.stats["n_drafted"] - steps.stats["n_drafted"]) <= n_max
    assert at_once.stats["n_drafted"] < free.stats["n_drafted"] - 2 * n_max


def test_dense_and_unsorted_heads_draft_in_one_graph(
    run: Callable[..., Output], files: Files
) -> None:
    merged = run("-m", files.merged, prompt=PROMPTS[0])
    for heads in (files.heads, files.with_tensors):
        two = ("-m", files.base, "-md", heads, "--spec-type", "draft-mtp")
        at_once, steps = run(*two, prompt=PROMPTS[0]), run(*two, STEPS, prompt=PROMPTS[0])
        assert same_text(at_once.text, steps.text)
        assert same_text(at_once.text, merged.text)
        if heads == files.with_tensors:
            assert drafts(at_once) == drafts(merged)


@pytest.fixture(scope="module")
def target(merged_f32: Path) -> Iterator[Context]:
    """The exact build's target, for its logits."""
    library = load_library(exact=True)
    options = ContextOptions(n_ctx=512, n_threads=1)
    with (
        Model.open(library, merged_f32, ModelOptions()) as model,
        Context(model, options) as context,
    ):
        yield context


N_PREDICT = 64


@pytest.fixture(scope="module")
def baseline(target: Context) -> list[Run]:
    """The prompts decoded without drafts, past the end of the programs' last round."""
    return [decode_plainly(target, target.model.tokenize(p), N_PREDICT + 8) for p in PROMPTS]


def assert_same_but_for_a_near_tie(target: Context, run: Run, text: str) -> None:
    """Fail where a text leaves the baseline by more than other cells of the cache can explain."""
    found = parting(target, run, text)
    if found is not None:
        assert found.gap <= MULTIPLE * moved_by_cells(target, found.tokens), found


@pytest.mark.parametrize("sequences", [1, 4])
def test_a_tree_gives_the_same_text_in_fewer_rounds(
    run: Callable[..., Output],
    merged_f32: Path,
    target: Context,
    baseline: list[Run],
    sequences: int,
) -> None:
    rounds = {"chain": 0, "tree": 0}
    for prompt, expected in zip(PROMPTS, baseline, strict=True):
        chain = run("-m", merged_f32, prompt=prompt)
        tree = run("-m", merged_f32, "-np", str(sequences), prompt=prompt, program=TREE)
        assert parting(target, expected, chain.text) is None
        if sequences == 1:
            assert parting(target, expected, tree.text) is None
        else:
            # Branches take up cells of the cache, so that sums over it run in another order.
            assert_same_but_for_a_near_tie(target, expected, tree.text)
        assert tree.stats["program"] == TREE
        assert set(tree.stats) == set(chain.stats)
        rounds["chain"] += chain.stats["n_rounds"]
        rounds["tree"] += tree.stats["n_rounds"]
    if sequences == 1:
        assert abs(rounds["tree"] - rounds["chain"]) <= len(PROMPTS)
    else:
        assert rounds["tree"] < rounds["chain"]


def test_another_token_is_no_near_tie(target: Context, baseline: list[Run]) -> None:
    """What the comparison with trees must find: a second best token, where the best is usual."""
    for run in baseline:
        place = int(np.argsort(run.margins)[len(run.margins) // 2])
        before = (*run.prompt, *run.tokens[:place])
        target.prefill(before)
        row = target.logits((len(before) - 1) % target.n_batch)
        second = int(np.argsort(row)[-2])
        wrong = target.model.text((*before, second, *run.tokens[place:]))
        found = parting(target, run, wrong)
        assert found is not None
        assert 0 < MULTIPLE * moved_by_cells(target, found.tokens) < found.gap
        with pytest.raises(AssertionError, match="Parting"):
            assert_same_but_for_a_near_tie(target, run, wrong)


def test_statistics_that_cannot_be_written_are_an_error(merged_f32: Path, tmp_path: Path) -> None:
    for program in ("llama-speculative-simple", TREE):
        path = str(tmp_path / "none" / "stats.json")
        command = [str(programs("exact") / program), "-m", str(merged_f32), "--spec-stats", path]
        command += ["-p", "import", "-n", "4"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=HUNG)
        assert result.returncode == 1
        assert "cannot write the statistics" in result.stderr


def test_four_slots_give_the_texts_of_one(merged_f32: Path, tmp_path: Path) -> None:
    def answers(slots: int, *arguments: str) -> list[list[int]]:
        flags: tuple[str | Path, ...] = ("-m", merged_f32, *arguments)
        with (
            server(programs("exact"), *flags, log=tmp_path / "log", slots=slots) as running,
            ThreadPoolExecutor(slots) as pool,
        ):
            results = list(pool.map(lambda prompt: running.complete(prompt, 96), PROMPTS))
        assert all(r["timings"].get("draft_n_accepted", 0) > 0 for r in results) or arguments
        return [result["tokens"] for result in results]

    plain = answers(1, "--spec-type", "none")
    assert answers(1) == plain
    assert answers(4) == plain
    assert answers(4, "--spec-draft-auto-depth") == plain
