"""Drafters that are no MTP heads, and lie: see test_hostile_merged.py, whose driver this runs."""

from pathlib import Path

import pytest

from gguf_mtp.api import split
from gguf_mtp.model import half_from_gguf
from gguf_mtp.readers.gguf import read_gguf
from hostile_drafters import cases
from hostile_merged import Case
from test_hostile_merged import driver, unexpected, unexpected_of_programs

__all__ = ["driver"]  # a fixture


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, tiny_merged: Path) -> dict[Path, Case]:
    root = tmp_path_factory.mktemp("hostile-drafters")
    split(tiny_merged, root / "base.gguf", None)
    base = half_from_gguf(read_gguf(root / "base.gguf"))
    files = {root / f"{case.name}.gguf": case for case in cases(base, root / "small")}
    for path, case in files.items():
        path.write_bytes(case.data)
    return files


@pytest.mark.parametrize("what", ["heads", "pair"])
def test_refused_with_a_reason_or_loaded(driver: Path, corpus: dict[Path, Case], what: str) -> None:
    assert len(corpus) > 140
    wrong = unexpected(driver, what, corpus)
    assert not wrong, "\n".join(wrong)


def test_the_programs_say_the_same(corpus: dict[Path, Case]) -> None:
    wrong = unexpected_of_programs(corpus)
    assert not wrong, "\n\n".join(wrong)
