"""Builds on demand (`make test-variants`): a library for each kind of CPU, one series alone."""

import os
from pathlib import Path

import pytest

from demo import same_text
from llama_programs import Output, programs, speculative_simple
from pair_files import Files
from test_cpu_symbols import cpu_libraries, unique

pytestmark = pytest.mark.skipif(
    os.environ.get("GGUF_MTP_VARIANTS") != "1", reason="builds of `make test-variants`"
)
PROMPT = "def f("


def test_no_library_of_a_cpu_has_unique_symbols_of_ours() -> None:
    (stock,) = cpu_libraries(programs("stock"))
    libraries = cpu_libraries(programs("every-cpu"))
    assert len(libraries) > 1
    known = unique(stock)
    assert {path.name: unique(path) - known for path in libraries} == {
        path.name: set() for path in libraries
    }


def generated(variant: str, *arguments: str | Path) -> Output:
    return speculative_simple(programs(variant), *arguments, prompt=PROMPT)


@pytest.mark.parametrize("variant", ["every-cpu", "only-mtp"])
def test_a_merged_file_drafts(variant: str, files: Files) -> None:
    plain = generated(variant, "-m", files.merged, "--spec-type", "none")
    drafted = generated(variant, "-m", files.merged)
    assert drafted.figure("n_accept") > 0
    assert len(drafted.text) > 0
    assert same_text(drafted.text, plain.text)


def test_the_kernels_alone_give_stock_llamacpps_text(files: Files) -> None:
    """Without the other series, llama.cpp's own program drafts with the heads as a second file."""
    two = ("-m", files.base, "-md", files.heads, "--spec-type", "draft-mtp")
    patched, stock = (generated(variant, *two) for variant in ("only-cpu", "stock"))
    assert patched.figure("n_accept") > 0
    assert same_text(patched.text, stock.text)
