"""Drafters that are no MTP heads: which are taken, what is refused before a byte is written, and
that what was merged comes back."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import drafter_files as made
import tiny
from drafter_files import Drafter, d2t, random
from gguf_mtp.api import attach, convert, detach, plan_convert, split
from gguf_mtp.cli.main import main
from gguf_mtp.drafters.families import FAMILIES, find_family
from gguf_mtp.errors import FormatError, GgufMtpError, PairingError, UnsupportedError
from gguf_mtp.keyvalue import ValueType, array, string, strings, u32
from gguf_mtp.model import Half, half_from_gguf
from gguf_mtp.readers.gguf import read_gguf

WIDTH = tiny.HIDDEN
LAYERS = len(tiny.E2B.layers)


@pytest.fixture(scope="module")
def base_file(tmp_path_factory: pytest.TempPathFactory, tiny_merged: Path) -> Path:
    out = tmp_path_factory.mktemp("base") / "base.gguf"
    split(tiny_merged, out, None)
    return out


@pytest.fixture(scope="module")
def base(base_file: Path) -> Half:
    return half_from_gguf(read_gguf(base_file))


@pytest.fixture(params=[*made.MADE, "gemma4"])
def drafter(request: pytest.FixtureRequest, base: Half, tmp_path: Path) -> tuple[str, Path]:
    """The --spec-type and the file of each."""
    out = tmp_path / "drafter.gguf"
    if request.param == "gemma4":
        return "draft-simple", made.gemma4(base, tmp_path / "small").write(out)
    make, spec_type = made.MADE[request.param]
    return spec_type, make(base).write(out)


@pytest.mark.parametrize("layout", ["inline", "tail"])
def test_it_comes_back(
    base_file: Path, drafter: tuple[str, Path], layout: str, tmp_path: Path
) -> None:
    spec_type, heads = drafter
    merged, base_out, heads_out, again = (tmp_path / f"{name}.gguf" for name in "mbha")
    convert(base_file, heads, merged, layout=layout)
    summary = json.loads(CliRunner().invoke(main, ["inspect", str(merged), "--json"]).stdout)
    assert summary["summary"]["heads"]["spec_type"] == spec_type
    assert summary["summary"]["heads"]["layout"] == layout
    split(merged, base_out, heads_out)
    assert base_out.read_bytes() == base_file.read_bytes()
    before, after = read_gguf(heads), read_gguf(heads_out)
    kept = [key for key in after.keys if not key.name.startswith(("mtp.source.", "mtp.target."))]
    assert tuple(kept) == before.keys
    assert [(ref.name, ref.dtype, ref.shape) for ref in after.tensors] == [
        (ref.name, ref.dtype, ref.shape) for ref in before.tensors
    ]
    for ours, theirs in zip(after.tensors, before.tensors, strict=True):
        assert stored(ours.file, ours.offset, ours.nbytes) == stored(
            theirs.file, theirs.offset, theirs.nbytes
        )
    convert(base_out, heads_out, again, layout=layout)
    assert again.read_bytes() == merged.read_bytes()


def stored(path: Path, offset: int, nbytes: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(nbytes)


def test_attached_and_detached(base_file: Path, base: Half, tmp_path: Path) -> None:
    whole = tmp_path / "whole.gguf"
    whole.write_bytes(base_file.read_bytes())
    heads = made.eagle3(base).write(tmp_path / "eagle3.gguf")
    attach(whole, heads)
    assert whole.stat().st_size > base_file.stat().st_size
    # another family in its place
    attach(whole, made.llama(base).write(tmp_path / "llama.gguf"), replace_heads=True)
    shown = CliRunner().invoke(main, ["inspect", str(whole)]).stdout
    assert "draft model, llama, Small llama" in shown
    detach(whole)
    assert whole.read_bytes() == base_file.read_bytes()


def test_a_drafter_without_a_tokenizer_borrows_the_base_s(
    base_file: Path, base: Half, tmp_path: Path
) -> None:
    whole = made.eagle3(base)
    bare = whole.without(*(name for name in whole.keys if name.startswith("tokenizer.")))
    heads, merged, out = (tmp_path / f"{name}.gguf" for name in ("heads", "merged", "out"))
    convert(base_file, bare.write(heads), merged)
    split(merged, None, out)
    kept = [key.name for key in read_gguf(out).keys if not key.name.startswith("mtp.")]
    assert kept == list(bare.keys)


def eagle3_layers(*layers: int) -> Callable[[Drafter], Drafter]:
    return lambda drafter: drafter.having(
        array("eagle3.target_layers", ValueType.INT32, list(layers))
    )


def dflash_layers(*layers: int) -> Callable[[Drafter], Drafter]:
    return lambda drafter: drafter.having(
        array("dflash.target_layers", ValueType.INT32, list(layers))
    )


def having(*parts: object) -> Callable[[Drafter], Drafter]:
    return lambda drafter: drafter.having(*parts)


def without(*names: str) -> Callable[[Drafter], Drafter]:
    return lambda drafter: drafter.without(*names)


def swapped_tokens(drafter: Drafter) -> Drafter:
    name = "tokenizer.ggml.tokens"
    tokens = drafter.keys[name].value
    return drafter.having(strings(name, [tokens[1], tokens[0], *tokens[2:]]))


REFUSED: list[tuple[str, str, Callable[[Drafter], Drafter], type[GgufMtpError], str]] = [
    ("layer-behind", "eagle3", eagle3_layers(1, 2, LAYERS + 1), PairingError,
     f"eagle3.target_layers: expected layers from 0 to {LAYERS}"),
    ("layer-negative", "eagle3", eagle3_layers(-1, 2, 3), PairingError, "found -1"),
    ("layers-two", "eagle3", eagle3_layers(1, 2), FormatError, "has 2 entries, expected 3"),
    ("layers-none", "eagle3", without("eagle3.target_layers"), FormatError,
     "eagle3.target_layers is missing or no array"),
    ("layers-floats", "eagle3",
     having(array("eagle3.target_layers", ValueType.FLOAT32, [1.0, 2.0, 3.0])), FormatError,
     "missing or no array of integers"),
    ("target-width", "eagle3", having(u32("eagle3.target_hidden_size", 128)), PairingError,
     f"target hidden size: expected {WIDTH}"),
    ("no-target-width", "eagle3", without("eagle3.target_hidden_size"), FormatError,
     "key eagle3.target_hidden_size is missing"),
    ("two-blocks", "eagle3", having(u32("eagle3.block_count", 2)), FormatError, "from 1 to 1"),
    ("no-fc", "eagle3", without("fc.weight"), FormatError, "first missing: fc.weight"),
    ("fc-narrow", "eagle3", having(random("fc.weight", (WIDTH, 2 * WIDTH))), FormatError,
     f"fc.weight has shape [{WIDTH}, {2 * WIDTH}], expected [{WIDTH}, {3 * WIDTH}]"),
    ("tokens", "eagle3", swapped_tokens, PairingError, "tokenizer.ggml.tokens: expected"),
    ("heads-0", "eagle3", having(u32("eagle3.attention.head_count", 0)), FormatError,
     "head_count is 0"),
    ("value-width", "eagle3", having(u32("eagle3.attention.value_length", 8)), FormatError,
     "expected equal widths"),
    ("borrowed-output-other-width", "eagle3-own", without("output.weight"), PairingError,
     "width for the target's output.weight: expected 64"),
    ("borrowed-embedding-other-width", "eagle3-own", without("token_embd.weight"), PairingError,
     "width for the target's token_embd.weight: expected 64"),
    ("d2t-outside", "eagle3-own", having(d2t([*range(255), tiny.VOCAB_SIZE])), FormatError,
     f"entry 255 is {tiny.VOCAB_SIZE}, expected 0 to {tiny.VOCAB_SIZE - 1}"),
    ("d2t-negative", "eagle3-own", having(d2t([-1, *range(255)])), FormatError, "entry 0 is -1"),
    ("d2t-floats", "eagle3-own", having(random("d2t", (256,))), FormatError, "d2t is F32"),
    ("d2t-long", "eagle3-own", having(d2t(range(600))), FormatError, "expected [600, 32]"),
    ("d2t-borrowed-output", "eagle3", having(d2t(range(256))), PairingError,
     "entries of d2t for the target's output: expected 512"),
    ("dflash-layer-behind", "dflash", dflash_layers(1, LAYERS), PairingError,
     f"expected layers from 0 to {LAYERS - 1}"),
    ("dflash-no-layers", "dflash", dflash_layers(), FormatError, "has 0 entries"),
    ("dflash-width", "dflash", having(u32("dflash.embedding_length", 32)), PairingError,
     f"target hidden size: expected {WIDTH}"),
    ("dflash-mask", "dflash", having(u32("tokenizer.ggml.mask_token_id", 512)), FormatError,
     "mask_token_id is 512, expected a token from 0 to 511"),
    ("dflash-deepseek", "dflash", having(u32("dflash.hyper_connection.count", 4)),
     UnsupportedError, "hyper_connection.count is 4, expected none or 0"),
    ("dflash-axes", "dflash",
     having(array("dflash.rope.dimension_sections", ValueType.INT32, [8, 0, 0, 0])),
     UnsupportedError, "expected none or 0"),
    ("dflash-selector-keys-only", "dflash", having(u32("dflash.selector_top_k", 4)),
     UnsupportedError, "selector_top_k is 4"),
    ("dspark-no-block-size", "dspark", without("dflash.block_size"), FormatError,
     "key dflash.block_size is missing"),
    ("plain-nextn", "llama", having(u32("llama.nextn_predict_layers", 1)), UnsupportedError,
     "nextn_predict_layers is 1"),
    ("plain-tokens", "gemma3", swapped_tokens, PairingError, "tokenizer.ggml.tokens: expected"),
    ("plain-vocabulary", "llama", having(random("token_embd.weight", (480, 32))), FormatError,
     "expected [512, 32]"),
    ("plain-bos", "llama", having(u32("tokenizer.ggml.bos_token_id", 9)), PairingError,
     "tokenizer.ggml.bos_token_id: expected 2"),
    ("plain-large", "llama", having(random("ballast.weight", (1024, 1024))), PairingError,
     "draft model: expected fewer parameters than"),
    ("unknown", "llama", having(string("general.architecture", "bert")), UnsupportedError,
     "general.architecture is 'bert' (no drafter that is known), expected MTP heads"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "change", "error", "message"),
    [case[1:] for case in REFUSED],
    ids=[case[0] for case in REFUSED],
)
def test_refused(
    base_file: Path,
    base: Half,
    tmp_path: Path,
    name: str,
    change: Callable[[Drafter], Drafter],
    error: type[GgufMtpError],
    message: str,
) -> None:
    heads = change(made.MADE[name][0](base)).write(tmp_path / "heads.gguf")
    with pytest.raises(error) as caught:
        plan_convert(base_file, heads)
    assert message in str(caught.value)
    assert str(heads) in str(caught.value)


def test_a_wrong_pair_is_one_line_and_exit_code_2(
    base_file: Path, base: Half, tmp_path: Path
) -> None:
    heads = eagle3_layers(1, 2, 99)(made.eagle3(base)).write(tmp_path / "heads.gguf")
    out = tmp_path / "out.gguf"
    result = CliRunner().invoke(
        main, ["convert", "--base", str(base_file), "--heads", str(heads), "-o", str(out)]
    )
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: eagle3.target_layers: expected layers from 0 to")
    assert result.stderr.count("\n") == 1
    assert not out.exists()


def test_dialects_are_of_mtp_heads(base_file: Path, base: Half, tmp_path: Path) -> None:
    merged, heads = tmp_path / "m.gguf", tmp_path / "h.gguf"
    convert(base_file, made.eagle3(base).write(heads), merged)
    with pytest.raises(UnsupportedError, match="--dialect is for MTP heads, found eagle3"):
        split(merged, None, tmp_path / "x.gguf", dialect="ik")


def test_a_drafter_is_no_base(base_file: Path, base: Half, tmp_path: Path) -> None:
    heads = made.eagle3(base).write(tmp_path / "h.gguf")
    with pytest.raises(UnsupportedError, match=r"'eagle3' \(EAGLE-3 drafter: for --heads\)"):
        plan_convert(heads, heads)


def test_the_card_names_the_type(base_file: Path, base: Half, tmp_path: Path) -> None:
    merged, heads = tmp_path / "m.gguf", tmp_path / "h.gguf"
    convert(base_file, made.dflash(base).write(heads), merged)
    card = CliRunner().invoke(main, ["card", str(merged)]).stdout
    assert "with DFlash drafter, in one GGUF" in card
    assert "--spec-type draft-dflash" in card
    assert "draft-mtp" not in card
    assert "ik_llama.cpp" not in card
    assert "- mtp\n" not in card


def test_every_row_is_found_by_what_it_has() -> None:
    for family in FAMILIES:
        marks = {family.mark} if family.mark else set()
        for arch in family.architectures:
            assert find_family(arch, marks) is family
    assert find_family("bert", set()) is None
    assert find_family(np.float32(1), set()) is None
