"""The patched programs run every family of drafter from one file, without a flag: the text is that
of two files with upstream's flags, and that without drafts; what is drafted is the same."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

import drafter_files as made
from demo import same_text
from gguf_mtp.api import convert
from gguf_mtp.errors import UnsupportedError
from gguf_mtp.model import half_from_gguf
from gguf_mtp.readers.gguf import read_gguf
from gguf_mtp.runtime.pair import open_pair
from gguf_mtp.validate.prompts import load_prompts
from llama_programs import Output, programs, server, speculative_simple
from pair_files import Files
from test_programs import cli_answer

PROMPT = load_prompts(["python"])[0].text
NAMES = [*made.MADE, "gemma4"]


@dataclass(frozen=True)
class Made:
    """A drafter's file, merged files in both layouts, and the --spec-type that runs it."""

    heads: Path
    inline: Path
    tail: Path
    spec_type: str


@pytest.fixture(scope="module")
def drafters(files: Files, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    root = tmp_path_factory.mktemp("drafters")
    base = half_from_gguf(read_gguf(files.base))
    found = {}
    for name in NAMES:
        heads, inline, tail = (root / f"{name}-{kind}.gguf" for kind in ("heads", "inline", "tail"))
        if name == "gemma4":
            made.gemma4(base, root / "small").write(heads)
            spec_type = "draft-simple"
        else:
            make, spec_type = made.MADE[name]
            make(base).write(heads)
        convert(files.base, heads, inline)
        convert(files.base, heads, tail, layout="tail")
        found[name] = Made(heads, inline, tail, spec_type)
    return found


@pytest.fixture(scope="module")
def plain(files: Files) -> Output:
    none = ("-m", files.base, "--spec-type", "none")
    return speculative_simple(programs("exact"), *none, prompt=PROMPT)


def uses(spec_type: str) -> str:
    return f"drafting with the {spec_type} inside"


@pytest.mark.parametrize("name", NAMES)
def test_one_file_drafts_as_two(
    files: Files, drafters: dict[str, Made], plain: Output, name: str
) -> None:
    exact, drafter = programs("exact"), drafters[name]
    two = ("-m", files.base, "-md", drafter.heads, "--spec-type", drafter.spec_type)
    separate = speculative_simple(exact, *two, prompt=PROMPT)
    inline = speculative_simple(exact, "-m", drafter.inline, prompt=PROMPT)
    tail = speculative_simple(exact, "-m", drafter.tail, prompt=PROMPT)
    assert uses(drafter.spec_type) in inline.log
    assert uses(drafter.spec_type) in tail.log
    assert "inside" not in separate.log
    assert inline.figure("n_drafted") > 0
    for run in (separate, tail):
        assert run.figure("n_drafted") == inline.figure("n_drafted")
        assert run.figure("n_accept") == inline.figure("n_accept")
    for run in (separate, inline, tail):
        assert same_text(run.text, plain.text)


def test_a_drafter_that_is_often_right(files: Files, tmp_path: Path) -> None:
    """The base as an explicit draft model: every draft stands, and what is in the file is left."""
    heads = made.llama(half_from_gguf(read_gguf(files.base))).write(tmp_path / "llama.gguf")
    merged = tmp_path / "merged.gguf"
    convert(files.base, heads, merged)
    two = ("-m", merged, "-md", files.base, "--spec-type", "draft-simple")
    run = speculative_simple(programs("exact"), *two, prompt=PROMPT)
    assert "inside" not in run.log
    assert run.figure("n_accept") == run.figure("n_drafted") > 0


def test_what_tells_a_family_may_be_in_another_part(
    files: Files, drafters: dict[str, Made], plain: Output, tmp_path: Path
) -> None:
    """Of a merged file in parts the drafter's tensors are in the last."""
    done = convert(
        files.base, drafters["dspark"].heads, tmp_path / "x.gguf", split_max_size=4_000_000
    )
    assert len(done.outputs) > 2
    run = speculative_simple(programs("exact"), "-m", done.outputs[0].path, prompt=PROMPT)
    assert uses("draft-dspark") in run.log
    assert same_text(run.text, plain.text)


@pytest.mark.parametrize("name", ["eagle3", "llama"])
def test_none_turns_it_off(drafters: dict[str, Made], plain: Output, name: str) -> None:
    off = ("-m", drafters[name].inline, "--spec-type", "none")
    run = speculative_simple(programs("exact"), *off, prompt=PROMPT)
    assert "inside" not in run.log
    assert run.figure("n_drafted") == 0
    assert run.text == plain.text


def test_the_type_may_be_named(drafters: dict[str, Made]) -> None:
    asked = ("-m", drafters["dflash"].inline, "--spec-type", "draft-dflash")
    run = speculative_simple(programs("exact"), *asked, prompt=PROMPT, n_predict=16)
    assert uses("draft-dflash") in run.log
    assert run.figure("n_drafted") > 0


def test_another_type_does_not_take_it(drafters: dict[str, Made]) -> None:
    command = [str(programs("exact") / "llama-speculative-simple"), "-m"]
    command += [str(drafters["eagle3"].inline), "--spec-type", "draft-dflash", "-p", "x"]
    result = subprocess.run(command, capture_output=True, text=True, errors="replace")
    assert result.returncode == 1
    assert "drafting with" not in result.stderr
    assert "is for --spec-type draft-eagle3" in result.stderr


@pytest.mark.parametrize("name", NAMES)
def test_the_server_drafts(
    drafters: dict[str, Made], plain: Output, name: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with server(programs("exact"), "-m", drafters[name].inline, log=log) as running:
        answer = running.complete(PROMPT, 64)
    assert uses(drafters[name].spec_type) in log.read_text()
    assert answer["timings"]["draft_n"] > 0
    assert same_text(plain.text.removeprefix("<bos>").strip(), (PROMPT + answer["content"]).strip())


@pytest.mark.parametrize("name", ["eagle3", "llama"])
def test_the_cli_drafts(drafters: dict[str, Made], name: str) -> None:
    drafted, log = cli_answer("-m", drafters[name].inline, prompt=PROMPT)
    off, _ = cli_answer("-m", drafters[name].inline, "--spec-type", "none", prompt=PROMPT)
    assert uses(drafters[name].spec_type) in log
    assert drafted == off


def test_the_harness_says_that_it_has_mtp_heads_only(drafters: dict[str, Made]) -> None:
    for merged in (drafters["llama"].inline, drafters["eagle3"].tail, drafters["gemma4"].tail):
        with pytest.raises(UnsupportedError, match="here only MTP heads are"):
            open_pair(merged=merged)
