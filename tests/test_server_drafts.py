"""llama-server answers with drafts as it does without: every field, and every request.

On the `exact` build at F32, where equal means equal. Drafts are forced, since a merged file turns
them on by itself.
"""

import itertools
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import drafter_files as made
from gguf_mtp.api import convert
from gguf_mtp.model import half_from_gguf
from gguf_mtp.readers.gguf import read_gguf
from gguf_mtp.runtime.bindings import Context, ContextOptions, Model, ModelOptions
from gguf_mtp.runtime.library import load_library
from gguf_mtp.runtime.speculative import decode_plainly
from gguf_mtp.validate.prompts import load_prompts
from llama_programs import Server, programs, server
from pair_files import Files

PROMPTS = [prompt.text for prompt in load_prompts(["python"])][:4]
NONE = ("--spec-type", "none")
F32_CACHE = ("-ctk", "f32", "-ctv", "f32")
Answer = dict[str, Any]


def without_times(value: Any) -> Any:
    """An answer without what no two runs share."""
    changing = {"timings", "created", "id", "created_at", "generation_settings"}
    if isinstance(value, dict):
        return {name: without_times(item) for name, item in value.items() if name not in changing}
    if isinstance(value, list):
        return [without_times(item) for item in value]
    return value


class Both:
    """A server without drafts and one with them, which are asked the same."""

    def __init__(self, plain: Server, drafting: Server) -> None:
        self.plain = plain
        self.drafting = drafting

    def answers(self, ask: Callable[[Server], Any]) -> tuple[Any, Any]:
        return ask(self.plain), ask(self.drafting)


@pytest.fixture(scope="module")
def start(
    merged_f32: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., "ExitStack[Any]"]:
    root = tmp_path_factory.mktemp("servers")

    def start(*flags: str, model: Path = merged_f32, slots: int = 1) -> Any:
        number = len(list(root.iterdir()))
        common: tuple[str | Path, ...] = ("-m", model, *F32_CACHE, *flags)
        return server(programs("exact"), *common, log=root / f"{number}.log", slots=slots)

    return start


@pytest.fixture(scope="module")
def both(start: Callable[..., Any]) -> Iterator[Both]:
    with start(*NONE, slots=2) as plain, start(slots=2) as drafting:
        yield Both(plain, drafting)


def drafted(answer: Answer) -> int:
    """How many tokens of an answer came out of drafts."""
    accepted: int = answer["timings"].get("draft_n_accepted", 0)
    return accepted


SAMPLED = {"temperature": 0.8, "seed": 7, "top_k": 20}
PROBABILITIES: dict[str, dict[str, Any]] = {
    "greedy": {"n_probs": 3},
    "sampled": {"n_probs": 3, **SAMPLED},
    "post-sampling": {"n_probs": 3, "post_sampling_probs": True, **SAMPLED},
    "post-sampling, greedy": {"n_probs": 2, "post_sampling_probs": True},
    "with penalties": {"n_probs": 3, "post_sampling_probs": True, "repeat_penalty": 1.2, **SAMPLED},
    "grammar": {"n_probs": 3, "post_sampling_probs": True, "grammar": "root ::= [a-z (),:=\\n]*"},
}


@pytest.mark.parametrize("name", PROBABILITIES)
def test_probabilities_of_accepted_drafts_are_the_targets(both: Both, name: str) -> None:
    def ask(running: Server) -> Answer:
        return running.complete(PROMPTS[0], 32, **PROBABILITIES[name])

    plain, drafting = both.answers(ask)
    assert drafted(drafting) > 0
    assert len(plain["completion_probabilities"]) > 10
    assert without_times(drafting) == without_times(plain)


def test_log_probabilities_of_the_other_endpoints(both: Both) -> None:
    message = [{"role": "user", "content": PROMPTS[1]}]
    common = {"max_tokens": 24, "temperature": 0, "seed": 1}
    requests = {
        "/v1/completions": {"prompt": PROMPTS[1], "logprobs": 3, **common},
        "/v1/chat/completions": {
            "messages": message,
            "logprobs": True,
            "top_logprobs": 2,
            "ignore_eos": True,
            **common,
        },
    }
    for path, body in requests.items():

        def ask(running: Server, path: str = path, body: Answer = body) -> Answer:
            return running.post(path, **body)

        plain, drafting = both.answers(ask)
        assert drafted(drafting) > 0
        assert len(plain["choices"][0]["logprobs"]["content"]) > 10
        assert without_times(drafting) == without_times(plain)


def both_ways(
    start: Callable[..., Any], ask: Callable[[Server], Any], *flags: str, **options: Any
) -> tuple[Any, Any]:
    """What `ask` gets from a server without drafts, and from one with them."""
    results = []
    for more in (NONE, ()):
        with start(*flags, *more, **options) as running:
            results.append(ask(running))
    return results[0], results[1]


def test_what_is_cached_after_a_stop_string_in_a_draft(both: Both) -> None:
    whole = both.plain.complete(PROMPTS[0], 48, ignore_eos=True)["content"]
    stops = sorted({whole[i : i + 3] for i in range(8, 40, 4)})
    in_draft = 0
    for stop in stops:
        for more in ({"stop": [stop]}, {"stop": [stop], "n_probs": 1}):

            def ask(running: Server, more: dict[str, Any] = more) -> Answer:
                return running.complete(PROMPTS[0], 48, ignore_eos=True, **more)

            plain, drafting = both.answers(ask)
            assert plain["stop_type"] == "word"
            in_draft += drafted(drafting)
            assert without_times(drafting) == without_times(plain)
    assert in_draft > 0


def test_the_end_of_the_context(start: Callable[..., Any]) -> None:
    def ask(running: Server) -> list[Answer]:
        sizes = [214, 216, 218, -1]
        return [running.complete(PROMPTS[0], n, ignore_eos=True) for n in sizes]

    plain, drafting = both_ways(start, ask, "-c", "256")
    assert plain[-1]["truncated"]
    assert all(drafted(answer) > 0 for answer in drafting)
    assert without_times(drafting) == without_times(plain)


def at_once(running: Server, requests: list[dict[str, Any]]) -> list[Answer]:
    """The answers to /completion requests that are sent together."""
    fixed = {"temperature": 0, "ignore_eos": True, "return_tokens": True}
    with ThreadPoolExecutor(len(requests)) as pool:
        return list(
            pool.map(lambda body: running.post("/completion", **{**fixed, **body}), requests)
        )


@pytest.fixture(scope="module")
def target(merged_f32: Path) -> Iterator[Context]:
    """The exact build's target, for its logits."""
    options = ContextOptions(n_ctx=512, n_threads=1, kv_type="f32")
    with (
        Model.open(load_library(exact=True), merged_f32, ModelOptions()) as model,
        Context(model, options) as context,
    ):
        yield context


def stopping(target: Context, cells: int, slots: int) -> Iterator[tuple[str, str]]:
    """Prompts, and strings that first end in their texts where so many answers fill a cache.

    No near ties come before: in a unified cache the cells of other sequences lie between, and sums
    run in another order.
    """
    for prompt in PROMPTS:
        tokens = target.model.tokenize(prompt)
        run = decode_plainly(target, tokens, (cells - len(tokens)) // slots)
        pieces = [target.model.piece(token) for token in run.tokens]
        for left in range(3):
            text = b"".join(pieces[: len(pieces) - left]).decode()
            ends = (text[-length:] for length in range(3, 40))
            unique = next((end for end in ends if text.find(end) == len(text) - len(end)), None)
            if unique is not None and min(run.margins) > 0.01:
                yield prompt, unique


def test_a_unified_cache_that_is_nearly_full(start: Callable[..., Any], target: Context) -> None:
    """All cells are needed for the answers, and none is left for drafts at the end.

    The answers are to one request, so that they are decoded in step.
    """
    cells, slots = 256, 4
    cases = list(stopping(target, cells, slots))
    assert len(cases) > 2

    def ask(running: Server) -> list[Any]:
        fixed = {"n_predict": -1, "temperature": 0, "ignore_eos": True, "n_cmpl": slots}
        return [
            running.post("/completion", prompt=prompt, stop=[stop], **fixed)
            for prompt, stop in cases
        ]

    flags = ("-kvu", "-c", str(cells), "--spec-draft-n-max", "6")
    plain, drafting = both_ways(start, ask, *flags, slots=slots)
    for expected, found in zip(plain, drafting, strict=True):
        assert all(answer["stop_type"] == "word" for answer in expected)
        assert all(drafted(answer) > 0 for answer in found)
        assert [answer["content"] for answer in found] == [a["content"] for a in expected]


@pytest.mark.parametrize(
    ("slots", "batch", "n_max"), [(1, 2, 3), (2, 3, 3), (2, 7, 3), (4, 15, 3), (4, 40, 16)]
)
def test_a_batch_too_small_for_all_drafts(
    start: Callable[..., Any], slots: int, batch: int, n_max: int
) -> None:
    def ask(running: Server) -> list[Answer]:
        bodies = [{"prompt": prompt, "n_predict": 48} for prompt in (PROMPTS * 2)[: slots + 1]]
        return at_once(running, bodies)

    flags = ("-b", str(batch), "--spec-draft-n-max", str(n_max))
    plain, drafting = both_ways(start, ask, *flags, slots=slots)
    assert [a["tokens"] for a in drafting] == [a["tokens"] for a in plain]
    assert sum(drafted(answer) for answer in drafting) > 0


def drafter_file(files: Files, root: Path, name: str) -> Path:
    """A merged file of the trained base and a small random drafter of a family."""
    drafter = made.MADE[name][0](half_from_gguf(read_gguf(files.base)))
    merged = root / f"{name}.gguf"
    convert(files.base, drafter.write(root / f"{name}-heads.gguf"), merged)
    return merged


@pytest.mark.parametrize("name", ["eagle3", "eagle3-own", "dflash"])
def test_several_answers_to_one_prompt(
    start: Callable[..., Any], files: Files, tmp_path: Path, name: str
) -> None:
    """What a drafter keeps of a sequence outside its context is copied with it."""
    merged = drafter_file(files, tmp_path, name)

    def ask(running: Server) -> list[Answer]:
        common = {"max_tokens": 24, "temperature": 0}
        return [
            running.post("/v1/completions", prompt=PROMPTS[0], n=3, **common),
            running.post("/v1/completions", prompt=PROMPTS[1], n=2, **common),
            running.post("/v1/completions", prompt=PROMPTS[0], **common),
        ]

    plain, drafting = both_ways(start, ask, model=merged, slots=4)
    assert all(answer["timings"]["draft_n"] > 0 for answer in drafting)
    assert without_times(drafting) == without_times(plain)


@pytest.mark.parametrize("name", ["dflash", "dspark"])
@pytest.mark.parametrize("ubatch", [1, 2, 3])
def test_a_ubatch_below_a_block(
    start: Callable[..., Any], files: Files, tmp_path: Path, name: str, ubatch: int
) -> None:
    merged = drafter_file(files, tmp_path, name)

    def ask(running: Server) -> list[Answer]:
        return at_once(running, [{"prompt": prompt, "n_predict": 16} for prompt in PROMPTS[:2]])

    plain, drafting = both_ways(start, ask, "-ub", str(ubatch), model=merged, slots=2)
    assert all(answer["timings"]["draft_n"] > 0 for answer in drafting)
    assert [a["tokens"] for a in drafting] == [a["tokens"] for a in plain]


@pytest.mark.parametrize("name", ["mtp", "eagle3", "dflash", "dspark", "llama"])
def test_a_drafter_full_of_nan_changes_no_answer(
    start: Callable[..., Any], files: Files, tmp_path: Path, name: str
) -> None:
    """Whatever it drafts, the server goes on and every request is answered."""
    merged = tmp_path / "nan.gguf"
    source = files.merged if name == "mtp" else drafter_file(files, tmp_path, name)
    merged.write_bytes(source.read_bytes())
    with merged.open("r+b") as file:
        for tensor in read_gguf(source).tensors:
            if tensor.name.startswith("mtp.") and tensor.dtype == "F32":
                file.seek(tensor.offset)
                file.write(np.full(tensor.nbytes // 4, np.nan, "<f4").tobytes())

    def ask(running: Server) -> list[Answer]:
        bodies = [{"prompt": PROMPTS[0], "n_predict": 24, **more} for more in ({}, SAMPLED)]
        return at_once(running, bodies)

    for flags in [(), ("--no-spec-draft-one-graph",)][: 2 if name == "mtp" else 1]:
        plain, drafting = both_ways(start, ask, *flags, model=merged, slots=2)
        assert [a["tokens"] for a in drafting] == [a["tokens"] for a in plain]


@pytest.mark.parametrize("name", ["mtp", "eagle3", "dflash"])
def test_fitting_to_memory_counts_the_drafter(files: Files, tmp_path: Path, name: str) -> None:
    merged = files.merged if name == "mtp" else drafter_file(files, tmp_path, name)
    log = tmp_path / "log"
    projected = []
    for more in (("-fit", "on", "-v"), ("-fit", "on", "-v", *NONE)):
        with server(programs("exact"), "-m", merged, *more, log=log):
            pass
        said = log.read_text()
        assert "failed to measure" not in said
        assert not [line for line in said.splitlines() if re.match(r"[\d.]+ E ", line)]
        projected.append(int(re.findall(r"projected to use (\d+) MiB", said)[0]))
    weights = sum(t.nbytes for t in read_gguf(merged).tensors if t.name.startswith("mtp."))
    assert projected[0] - projected[1] > weights / 2**20


def test_drafts_in_a_unified_cache_take_one_ubatch(start: Callable[..., Any]) -> None:
    """A second one may overwrite cells of the window that are needed after a rejection."""
    body = {"prompt": PROMPTS[0], "n_predict": 24, "temperature": 0, "ignore_eos": True}
    counts = []
    for more in ((), ("--swa-full",), ("-ub", "16")):
        with start("-kvu", "-ub", "4", *more, slots=4) as running:
            answers: Any = running.post("/completion", n_cmpl=4, **body)
        counts.append(sum(answer["timings"].get("draft_n", 0) for answer in answers))
    assert counts[:2] == [0, 0]
    assert counts[2] > 0


def while_prompts_arrive(running: Server) -> Answer:
    """An answer of one slot, with prompts of several ubatches in another all the while."""
    text = "\n".join(prompt.text for prompt in load_prompts(["python", "chat"]))
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(
            running.complete, PROMPTS[0], 128, ignore_eos=True, n_probs=1, id_slot=0
        )
        places = itertools.cycle(range(0, len(text) - 1000, 97))
        while not future.done():
            place = next(places)
            running.complete(text[place : place + 1000], 1, id_slot=1)
        return future.result()


def test_prompts_behind_drafts_in_a_unified_cache(start: Callable[..., Any]) -> None:
    """They may not overwrite what the drafting slot needs after a rejection."""
    flags = ("-kvu", "-c", "4096", "-ub", "32", "-b", "512", "-fa", "off", "--swa-full")

    def logprobs(*more: str) -> np.ndarray[Any, Any]:
        with start(*flags, *more, slots=2) as running:
            answer = while_prompts_arrive(running)
        if more != NONE:  # some are refused
            assert 0 < drafted(answer) < answer["timings"]["draft_n"]
        return np.array([token["logprob"] for token in answer["completion_probabilities"]])

    plain, *again = (logprobs(*NONE) for _ in range(3))
    # Cells of other sequences lie between, in another order each time.
    noise = max(float(abs(other - plain).max()) for other in again)
    drafting = logprobs("--spec-draft-n-max", "8")
    assert abs(drafting - plain).max() < 20 * noise
