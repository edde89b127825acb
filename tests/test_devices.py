"""Where drafts are computed: two loopback RPC servers stand in for GPUs.

Their buffers are not the host's, so that graphs split as they do for a GPU. All on the `exact`
build at F32, where the texts are those of the CPU.
"""

import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from backend_runs import rpc_server
from hung import HUNG
from llama_programs import Output, programs, server, speculative_simple
from pair_files import Files

PROMPT = "def read(self, size=-1):"
N_DRAFT = ("--spec-draft-n-max", "3")


@pytest.fixture(scope="module")
def two_devices(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The flags that name two devices, RPC0 and RPC1."""
    logs = tmp_path_factory.mktemp("rpc")
    with rpc_server(logs / "0.log", "exact") as one, rpc_server(logs / "1.log", "exact") as other:
        yield "--rpc", f"{one},{other}"


def drafted(*arguments: str | Path) -> Output:
    """With at least one draft accepted."""
    output = speculative_simple(programs("exact"), *arguments, *N_DRAFT, prompt=PROMPT)
    assert output.figure("n_accept") > 0
    return output


def n_splits(output: Output) -> int:
    found = re.findall(r"3 tokens are drafted in one graph of (\d+) splits", output.log)
    assert len(found) == 1, output.log[-3000:]
    return int(found[0])


@pytest.fixture(scope="module")
def on_the_cpu(files: Files) -> Output:
    return drafted("-m", files.merged)


def test_the_cpu_drafts_in_one_piece(on_the_cpu: Output) -> None:
    assert n_splits(on_the_cpu) == 1


# Where the keys and values, the target's head and the drafter lie together, a draft is one piece.
@pytest.mark.parametrize(
    ("flags", "pieces"),
    [
        ("-dev RPC0 -ngl 99", 1),
        ("-dev RPC0,RPC1 -ngl 99", None),
        ("-dev RPC0,RPC1 -ngl 99 -devd RPC0", None),
        ("-dev RPC0,RPC1 -ngl 99 -devd RPC1", None),
        ("-dev RPC0 -devd none -nkvo -ngl 99", 1),
        ("-dev RPC0 -devd none -ngl 1", None),
        ("-dev RPC0 -devd none -ngl 99", 1),
        ("-dev RPC0 -ngl 2", None),
        ("-dev RPC0 -ngl 99 -ngld 0", None),
        ("-dev RPC0 -ngl 0 -ngld 99", None),
        ("-dev RPC0 -ngl 99 -nkvo", None),
    ],
)
def test_any_placement_drafts_the_same(
    files: Files, on_the_cpu: Output, two_devices: tuple[str, str], flags: str, pieces: int | None
) -> None:
    output = drafted("-m", files.merged, *two_devices, *flags.split())
    assert output.text == on_the_cpu.text
    assert output.figure("n_accept") == on_the_cpu.figure("n_accept")
    if pieces is not None:
        assert n_splits(output) == pieces


def test_a_drafter_away_from_the_keys_is_moved_and_that_is_said(
    files: Files, two_devices: tuple[str, str]
) -> None:
    flags = ["-dev", "RPC0", "-ngl", "99", "-devd", "RPC1"]
    output = drafted("-m", files.merged, *two_devices, *flags)
    moved = "the MTP heads read keys and values on RPC0: drafting there instead of on RPC1"
    assert moved in output.log
    assert n_splits(output) == 1


def test_the_table_of_a_drafter_file_lies_on_the_device(
    files: Files, on_the_cpu: Output, two_devices: tuple[str, str]
) -> None:
    """An ordered head whose rows are in token order gathers them there."""
    pair = ("-m", files.base, "-md", files.with_tensors, "--spec-type", "draft-mtp")
    output = drafted(*pair, *two_devices, "-dev", "RPC0", "-devd", "RPC0", "-ngl", "99")
    assert output.text == on_the_cpu.text
    assert n_splits(output) == 1


@pytest.mark.parametrize("flags", ["-ub 1", "-ub 2", "-b 16 -ub 3"])
def test_small_batches_start_and_draft(files: Files, on_the_cpu: Output, flags: str) -> None:
    """The first batch of a start has no output in its first token."""
    assert drafted("-m", files.merged, *flags.split()).text == on_the_cpu.text


@pytest.mark.parametrize("n_max", ["0", "1", "64", "100000"])
def test_any_length_of_drafts_gives_the_text(files: Files, on_the_cpu: Output, n_max: str) -> None:
    for program in ("llama-speculative-simple", "llama-speculative"):
        if (program, n_max) == ("llama-speculative", "0"):
            continue  # the next test
        output = speculative_simple(
            programs("exact"),
            *("-m", files.merged, "--spec-draft-n-max", n_max),
            prompt=PROMPT,
            program=program,
        )
        assert on_the_cpu.text in output.text or output.text in on_the_cpu.text
        assert (output.figure("n_accept") > 0) == (n_max != "0")


@pytest.mark.parametrize(
    ("flags", "named"),
    [("--spec-draft-n-max 0", "--spec-draft-n-max"), ("-ub 8 --spec-draft-n-max 16", "-ub")],
)
def test_trees_that_cannot_be_are_refused(files: Files, flags: str, named: str) -> None:
    program = programs("exact") / "llama-speculative"
    done = subprocess.run(
        [program, "-m", files.merged, "-p", PROMPT, *flags.split()],
        capture_output=True,
        text=True,
        timeout=HUNG,
    )
    assert done.returncode == 1
    assert named in done.stderr


def test_many_slots_draft_at_once(files: Files, tmp_path: Path) -> None:
    """More than 31, where a draft's head is multiplied in slices."""
    with server(
        programs("exact"), "-m", files.merged, *N_DRAFT, log=tmp_path / "log", slots=40
    ) as running:
        alone = running.complete(PROMPT, 24)
        with ThreadPoolExecutor(40) as pool:
            found = list(pool.map(lambda _: running.complete(PROMPT, 24), range(40)))
    assert {tuple(answer["tokens"]) for answer in found} == {tuple(alone["tokens"])}
    assert all(answer["timings"]["draft_n_accepted"] > 0 for answer in found)
