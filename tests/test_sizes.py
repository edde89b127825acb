"""Every size of Gemma 4 beyond its bytes: which drafter fits which target, and that pairs run."""

from collections.abc import Callable
from pathlib import Path

import gguf
import pytest

import tiny
from demo import same_text
from gguf_mtp.api import convert, plan_convert, split
from gguf_mtp.errors import PairingError
from llama_programs import programs, speculative_simple

Q4_0 = gguf.GGMLQuantizationType.Q4_0
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
def test_every_size_in_q4_0_equals_gguf_py(pair: Pair, size: str, tmp_path: Path) -> None:
    readers = []
    for outtype in ("f32", "q4_0"):
        out = tmp_path / f"{outtype}.gguf"
        convert(*pair(size), out, outtype=outtype, heads_type=outtype)
        readers.append(gguf.GGUFReader(out))
    quantized = set()
    for plain, small in zip(readers[0].tensors, readers[1].tensors, strict=True):
        assert small.name == plain.name
        if small.tensor_type == Q4_0:
            assert (small.data == gguf.quants.quantize(plain.data, Q4_0)).all(), small.name
            quantized.add(small.name.split(".")[-2])
        else:
            # Vectors, norms, routers, and in F16 rows that are no whole number of blocks.
            assert (small.data == plain.data.astype(small.data.dtype)).all(), small.name
    assert {"token_embd", "attn_q", "ffn_down", "pre_projection"} < quantized


@pytest.mark.parametrize("size", tiny.SIZES)
def test_every_size_from_gguf(pair: Pair, size: str, tmp_path: Path) -> None:
    """Whatever is in a GGUF is copied: the halves of a merged file make the same file again."""
    merged, base, heads, again = (tmp_path / f"{name}.gguf" for name in "mbha")
    convert(*pair(size), merged, outtype="q8_0")
    split(merged, base, heads)
    convert(base, heads, again)
    assert again.read_bytes() == merged.read_bytes()


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
