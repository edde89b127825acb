"""Every size of Gemma 4 beyond its bytes: which drafter fits which target, and that pairs run."""

from collections.abc import Callable
from pathlib import Path

import pytest

import tiny
from demo import same_text
from gguf_mtp.api import convert, plan_convert
from gguf_mtp.errors import PairingError
from llama_programs import programs, speculative_simple

Pair = Callable[[str], tuple[Path, Path]]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The target and the drafter of a size, each written once."""
    written: dict[str, tuple[Path, Path]] = {}

    def get(size: str) -> tuple[Path, Path]:
        if size not in written:
            root = tmp_path_factory.mktemp(size)
            target = tiny.write_structure(root / "target", size, "target")
            drafter = tiny.write_structure(root / "drafter", size, "drafter")
            written[size] = (target, drafter)
        return written[size]

    return get


@pytest.mark.parametrize("target", tiny.SIZES)
@pytest.mark.parametrize("drafter", tiny.SIZES)
def test_a_drafter_fits_its_own_target_only(pair: Pair, target: str, drafter: str) -> None:
    base, heads = pair(target)[0], pair(drafter)[1]
    if target == drafter:
        assert plan_convert(base, heads).total_bytes
        return
    with pytest.raises(PairingError, match=r"expected .* \(base .*found .* \(heads "):
        plan_convert(base, heads)


@pytest.mark.parametrize("size", tiny.SIZES)
def test_every_size_runs_with_and_without_its_heads(pair: Pair, size: str, tmp_path: Path) -> None:
    exact = programs("exact")
    convert(*pair(size), tmp_path / "m.gguf", outtype="f32", heads_type="f32")
    run = ("-m", tmp_path / "m.gguf", "--spec-draft-n-max", "3")
    mtp = speculative_simple(exact, *run, prompt="the cat", n_predict=32)
    plain = speculative_simple(exact, *run, "--spec-type", "none", prompt="the cat", n_predict=32)
    assert "drafting with the MTP heads inside" in mtp.log
    assert mtp.figure("n_drafted") > 0
    assert plain.figure("n_drafted") == 0
    assert same_text(mtp.text, plain.text)
