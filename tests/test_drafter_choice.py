"""Which drafter the programs take from merged files, by `-m`, `-md` and `--spec-type`."""

import subprocess
from pathlib import Path

import pytest

from demo import same_text
from gguf_mtp.api import convert
from hung import HUNG
from llama_programs import GREEDY, THREADS, Output, programs, speculative_simple
from pair_files import Files

PROMPT = "def f("
USES_HEADS = "drafting with the MTP heads inside"
PROGRAMS = ("llama-speculative-simple", "llama-server", "llama-cli")


@pytest.fixture(scope="module")
def plain(files: Files) -> Output:
    return speculative_simple(
        programs("exact"), "-m", files.merged, "--spec-type", "none", prompt=PROMPT
    )


@pytest.fixture(scope="module")
def tail(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pair in one file of the tail layout."""
    out = tmp_path_factory.mktemp("tail") / "tail.gguf"
    convert(files.base, files.heads, out, layout="tail")
    return out


@pytest.mark.parametrize("chosen", [(), ("--spec-type", "draft-mtp")], ids=["default", "named"])
@pytest.mark.parametrize("layout", ["inline", "tail"])
@pytest.mark.parametrize("fragment", ["", "#mtp"])
@pytest.mark.parametrize("base", ["base", "merged"])
def test_a_merged_file_as_draft_model_means_its_heads(
    files: Files,
    tail: Path,
    plain: Output,
    base: str,
    fragment: str,
    layout: str,
    chosen: tuple[str, ...],
) -> None:
    merged = files.merged if layout == "inline" else tail
    models = ("-m", getattr(files, base), "-md", f"{merged}{fragment}")
    run = speculative_simple(programs("exact"), *models, *chosen, prompt=PROMPT)
    assert USES_HEADS in run.log
    assert run.figure("n_accept") > 0
    assert same_text(run.text, plain.text)


def ended(program: str, *arguments: str | Path, variant: str = "exact") -> tuple[int, list[str]]:
    """Exit code and error lines of a program that should not start."""
    command = [str(programs(variant) / program), *THREADS, *map(str, arguments)]
    command += () if program == "llama-server" else ("-p", "x", *GREEDY)
    result = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=HUNG
    )
    return result.returncode, [line for line in result.stderr.splitlines() if "rror" in line]


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("kind", ["draft-simple", "draft-eagle3", "ngram-mod,draft-dflash"])
def test_a_type_that_the_drafter_is_not_for_is_an_error(
    files: Files, program: str, kind: str
) -> None:
    code, errors = ended(program, "-m", files.merged, "--spec-type", kind)
    assert code == 1
    wanted = kind.split(",")[-1]
    assert errors == [
        f"error: --spec-type {wanted}: the drafter inside '{files.merged}' is for "
        "--spec-type draft-mtp; use that, or give another drafter with -md"
    ]


def test_a_draft_model_is_held_to_its_type_too(files: Files) -> None:
    models = ("-m", files.base, "-md", files.merged, "--spec-type", "draft-eagle3")
    code, errors = ended("llama-speculative-simple", *models)
    assert code == 1
    assert len(errors) == 1
    assert f"the drafter inside '{files.merged}' is for --spec-type draft-mtp" in errors[0]


def test_the_base_of_a_merged_file_may_draft_as_a_small_model(files: Files, plain: Output) -> None:
    models = ("-m", files.base, "-md", files.merged, "--spec-type", "draft-simple")
    run = speculative_simple(programs("exact"), *models, prompt=PROMPT)
    assert USES_HEADS not in run.log
    assert run.figure("n_accept") == run.figure("n_drafted") > 0  # it drafts for itself
    assert same_text(run.text, plain.text)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_small_model_is_asked_for(files: Files, program: str) -> None:
    code, errors = ended(program, "-m", files.base, "--spec-type", "draft-simple")
    assert (code, errors) == (1, ["error: --spec-type draft-simple needs a draft model (-md)"])


def test_programs_that_never_draft_do_not_look(files: Files) -> None:
    command = [str(programs("exact") / "llama-tokenize"), "-m", str(files.merged), "-p", PROMPT]
    result = subprocess.run(command, capture_output=True, text=True, timeout=HUNG, check=True)
    assert len(result.stdout) > 0
    assert "inside" not in result.stderr


def test_quantize_refuses_to_lose_a_tail(tail: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    command = [str(programs("exact") / "llama-quantize"), "--allow-requantize", str(tail)]
    result = subprocess.run(
        [*command, str(out), "Q8_0", "1"], capture_output=True, text=True, timeout=HUNG
    )
    assert result.returncode == 1
    said = result.stdout + result.stderr
    reasons = [line for line in said.splitlines() if "would be lost" in line]
    assert len(reasons) == 1
    assert str(tail) in reasons[0]
    assert "`gguf-mtp detach`" in reasons[0]
    assert "--layout inline" in reasons[0]
    assert not out.exists() or out.stat().st_size == 0
