"""Pairs with different tokenizer settings in the patched programs: the base's settings are used."""

import re
import shutil
from pathlib import Path

import pytest

from demo import same_text
from edited_gguf import all_of, edited, with_keys, with_token_types
from gguf_mtp import api
from gguf_mtp.keyvalue import u32
from gguf_mtp.readers.tail import read_footer
from gguf_mtp.validate.prompts import load_prompts
from llama_programs import programs, speculative_simple
from pair_files import Files

PROMPT = load_prompts(["python"])[0].text
EOS, TURN_END = "tokenizer.ggml.eos_token_id", 6
# EOS is the end of a turn and <eos> a normal token, as in the most used base files.
AS_PUBLISHED = all_of(with_token_types({1: 1}), with_keys(u32(EOS, TURN_END)))


@pytest.fixture(scope="module")
def base(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return edited(files.base, tmp_path_factory.mktemp("base") / "base.gguf", keys=AS_PUBLISHED)


@pytest.mark.parametrize("layout", ["inline", "tail"])
@pytest.mark.parametrize("dialect", ["upstream", "atomic", "ik"])
def test_the_base_decides(
    files: Files, base: Path, tmp_path: Path, layout: str, dialect: str
) -> None:
    heads, merged = tmp_path / "heads.gguf", tmp_path / "merged.gguf"
    api.split(files.merged, None, heads, dialect=dialect)
    if layout == "tail":
        shutil.copy(base, merged)
        api.attach(merged, heads)
    else:
        api.convert(base, heads, merged)
    exact = programs("exact")
    run = speculative_simple(exact, "-m", merged, "-v", "--ignore-eos", prompt=PROMPT)
    plain = speculative_simple(exact, "-m", base, "--ignore-eos", prompt=PROMPT)
    ends = re.findall(r"EOS token\s*= (\d+)", run.log)
    assert set(ends) == {str(TURN_END)}
    assert len(ends) >= 2, "the drafter's vocabulary is not in the log"
    assert run.figure("n_accept") > 0
    assert same_text(run.text, plain.text)


def test_an_unpatched_loader_gets_the_base_values(files: Files, base: Path, tmp_path: Path) -> None:
    """The heads' GGUF cut out of a tail runs in a stock build, with the base's EOS."""
    merged = Path(shutil.copy(base, tmp_path / "merged.gguf"))
    api.attach(merged, files.heads)
    footer = read_footer(merged)
    assert footer is not None
    begin, end = footer.heads_window
    heads = tmp_path / "cut.gguf"
    heads.write_bytes(merged.read_bytes()[begin:end])
    two = ("-md", heads, "--spec-type", "draft-mtp")
    run = speculative_simple(programs("stock"), "-m", merged, *two, "-v", prompt=PROMPT)
    ends = re.findall(r"EOS token\s*= (\d+)", run.log)
    assert set(ends) == {str(TURN_END)}
    assert run.figure("n_accept") > 0
