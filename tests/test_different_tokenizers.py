"""Pairs whose tokenizers are one vocabulary with other settings, as publishers' files have them.

They merge, the base's settings win, and `split` gives back each half exactly.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edited_gguf import (
    Keys,
    all_of,
    content,
    edited,
    with_items,
    with_keys,
    with_token_types,
    without_keys,
)
from gguf_mtp.api import attach, convert, detach, plan_convert, split
from gguf_mtp.errors import FormatError, PairingError, UnsupportedError
from gguf_mtp.keyvalue import KeyValue, ValueType, array, boolean, string, strings, u32
from gguf_mtp.merge.tokenizer import (
    CHANGED,
    MASK,
    POSITIONS_KEY,
    lend,
    restore,
    with_base_tokenizer,
    without_base_tokenizer,
)
from gguf_mtp.readers.gguf import read_gguf
from gguf_mtp.readers.tail import read_footer

EOS, PAD, BOS = (f"tokenizer.ggml.{name}_token_id" for name in ("eos", "padding", "bos"))
TYPES, SCORES = "tokenizer.ggml.token_type", "tokenizer.ggml.scores"


@dataclass(frozen=True)
class Halves:
    base: Path
    heads: Path
    foreign: Path
    """The heads without this project's own keys, as another converter writes them."""


@pytest.fixture(scope="module")
def halves(tiny_merged: Path, tmp_path_factory: pytest.TempPathFactory) -> Halves:
    root = tmp_path_factory.mktemp("halves")
    split(tiny_merged, root / "b.gguf", root / "h.gguf")
    foreign = edited(
        root / "h.gguf", root / "f.gguf", keys=without_keys("mtp.source", "mtp.target")
    )
    return Halves(root / "b.gguf", root / "h.gguf", foreign)


def int32(name: str, value: int) -> KeyValue:
    return KeyValue(name, ValueType.INT32, struct.pack("<i", value))


def rising_scores(keys: list[KeyValue]) -> list[KeyValue]:
    count = next(key.count for key in keys if key.name == SCORES)
    return list(with_items(SCORES, dict(enumerate(range(count))))(keys))


def as_ollama(keys: list[KeyValue]) -> list[KeyValue]:
    """Keys in alphabetical order, the model called llama, rising scores and no merges."""
    keys = rising_scores(keys)
    keys = list(without_keys("tokenizer.ggml.merges", "tokenizer.ggml.add_")(keys))
    ends = array("tokenizer.ggml.eos_token_ids", ValueType.INT32, [1, 6, 50])
    model = string("tokenizer.ggml.model", "llama")
    keys = list(with_keys(model, string("tokenizer.ggml.pre", "gemma4"), ends)(keys))
    return sorted(keys, key=lambda key: key.name)


# What the base states otherwise than the heads, and the names that the note gives.
DIFFERENCES: dict[str, tuple[Keys, list[str]]] = {
    "unsloth": (
        all_of(with_token_types({1: 1, 500: 3}), with_keys(u32(EOS, 6))),
        ["token_type (2 of 512, first at 1: base 1, heads 3)", "eos_token_id (base 6, heads 1)"],
    ),
    "retyped": (with_token_types({10: 3}), ["token_type (1 of 512, first at 10: base 3, heads 4)"]),
    "padding": (with_keys(u32(PAD, 3)), ["padding_token_id (base 3, heads 0)"]),
    "eos of another type": (with_keys(int32(EOS, 1)), []),
    "bos of another type": (with_keys(int32(BOS, 2)), []),
    "add_bos off": (
        with_keys(boolean("tokenizer.ggml.add_bos_token", False)),
        ["add_bos_token (base False, heads True)"],
    ),
    "no add_bos": (
        without_keys("tokenizer.ggml.add_bos_token"),
        ["add_bos_token (only in the heads)"],
    ),
    "further keys of the base": (
        with_keys(boolean("tokenizer.ggml.add_eos_token", True), string("tokenizer.x", "y")),
        [],
    ),
    "scores": (rising_scores, ["scores (512 of 512, first at 0: base 0.0, heads -1000.0)"]),
    "ollama": (
        as_ollama,
        ["model (base 'llama', heads 'gemma4')", "scores (512", "merges (only in the heads)"],
    ),
    "chat template": (
        with_keys(string("tokenizer.chat_template", "{{ x }}" * 100)),
        ["differ in chat_template;"],
    ),
}


@pytest.fixture(params=DIFFERENCES)
def difference(request: pytest.FixtureRequest) -> tuple[Keys, list[str]]:
    return DIFFERENCES[request.param]


@pytest.mark.parametrize("own", [False, True], ids=["foreign heads", "heads of split"])
def test_the_pair_merges_and_comes_apart_again(
    tmp_path: Path, halves: Halves, difference: tuple[Keys, list[str]], own: bool
) -> None:
    change, named = difference
    base = edited(halves.base, tmp_path / "base.gguf", keys=change)
    heads = halves.heads if own else halves.foreign
    merged = tmp_path / "m.gguf"
    notes = {note.code: note.message for note in convert(base, heads, merged).plan.notes}
    assert ("tokenizer-differs" in notes) is bool(named)
    assert all(text in notes["tokenizer-differs"] for text in named)

    split(merged, tmp_path / "b.gguf", tmp_path / "h.gguf")
    assert content(tmp_path / "b.gguf") == content(base)
    assert without_provenance(tmp_path / "h.gguf") == without_provenance(heads)

    convert(base, heads, tmp_path / "t.gguf", layout="tail")
    split(tmp_path / "t.gguf", tmp_path / "tb.gguf", tmp_path / "th.gguf")
    assert (tmp_path / "tb.gguf").read_bytes() == base.read_bytes()
    assert content(tmp_path / "th.gguf") == content(tmp_path / "h.gguf")


@pytest.mark.parametrize("layout", ["inline", "tail"])
def test_again_from_its_own_halves(
    tmp_path: Path, halves: Halves, difference: tuple[Keys, list[str]], layout: str
) -> None:
    base = edited(halves.base, tmp_path / "base.gguf", keys=difference[0])
    convert(base, halves.foreign, tmp_path / "1.gguf", layout=layout)
    split(tmp_path / "1.gguf", tmp_path / "b.gguf", tmp_path / "h.gguf")
    convert(tmp_path / "b.gguf", tmp_path / "h.gguf", tmp_path / "2.gguf", layout=layout)
    assert (tmp_path / "1.gguf").read_bytes() == (tmp_path / "2.gguf").read_bytes()


def test_attach_in_place_and_detach(
    tmp_path: Path, halves: Halves, difference: tuple[Keys, list[str]]
) -> None:
    path = edited(halves.base, tmp_path / "base.gguf", keys=difference[0])
    before = path.read_bytes()
    attach(path, halves.foreign)
    heads = heads_in(path)
    base = {key.name: key for key in read_gguf_front(path)}
    for name in (EOS, TYPES, PAD, "tokenizer.ggml.model"):
        assert (heads[name].type, heads[name].raw) == (base[name].type, base[name].raw)
    detach(path)
    assert path.read_bytes() == before


def heads_in(path: Path) -> dict[str, KeyValue]:
    """The keys of the heads' GGUF in a tail file, as an unpatched program reads them."""
    footer = read_footer(path)
    assert footer is not None
    return read_gguf(path, window=footer.heads_window).by_name


def read_gguf_front(path: Path) -> tuple[KeyValue, ...]:
    footer = read_footer(path)
    assert footer is not None
    return read_gguf(path, window=footer.base_window).keys


def without_provenance(path: Path) -> object:
    keys, tensors = content(path)
    return [key for key in keys if not key[0].startswith(("mtp.source.", "mtp.target."))], tensors


def test_the_difference_is_small(tmp_path: Path, halves: Halves) -> None:
    """Two token types take two ranges, not a second list of types."""
    base = edited(halves.base, tmp_path / "base.gguf", keys=with_token_types({1: 1, 500: 3}))
    convert(base, halves.foreign, tmp_path / "m.gguf")
    found = read_gguf(tmp_path / "m.gguf").by_name
    assert f"mtp.{TYPES}" not in found
    assert found[f"{CHANGED}ggml.token_type.ranges"].value == [1, 2, 500, 501]
    assert found[f"{CHANGED}ggml.token_type.values"].value == [3, 1]


def test_an_arbitrary_difference_is_stored_whole(tmp_path: Path, halves: Halves) -> None:
    heads = edited(halves.foreign, tmp_path / "h.gguf", keys=rising_scores)
    convert(halves.base, heads, tmp_path / "m.gguf")
    found = read_gguf(tmp_path / "m.gguf").by_name
    assert found[f"mtp.{SCORES}"].value[:3] == [0, 1, 2]
    assert not any(name.startswith(CHANGED) for name in found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_keys(u32(BOS, 5)), f"{BOS}: expected 2 (base "),
        (with_keys(strings("tokenizer.ggml.merges", ["a b"])), "merges: expected 149 entries"),
    ],
)
def test_what_must_agree(tmp_path: Path, halves: Halves, change: Keys, message: str) -> None:
    heads = edited(halves.foreign, tmp_path / "h.gguf", keys=change)
    with pytest.raises(PairingError) as caught:
        plan_convert(halves.base, heads)
    assert message in str(caught.value)


def test_a_drafter_keeps_its_own_mask_token() -> None:
    base = [u32(MASK, 4), u32(EOS, 1), string("tokenizer.chat_template", "x")]
    heads = [string("general.architecture", "dflash"), u32(EOS, 6), u32(MASK, 9)]
    kept = with_base_tokenizer(base, heads, "h")
    used = {key.name: key.value for key in kept if key.name.startswith("tokenizer.")}
    assert used == {MASK: 9, EOS: 1}
    assert without_base_tokenizer(kept, base, "h") == tuple(heads)


def test_names_that_the_record_needs() -> None:
    with pytest.raises(UnsupportedError, match=r"h: key 'tokenizer\.positions'"):
        lend([], [u32("tokenizer.positions", 1)], "h")


NUMBERS = st.lists(st.integers(0, 3), min_size=0, max_size=40)
NAMES = ("tokenizer.a", "tokenizer.b", "tokenizer.c", "general.d")


def keys_of(named: dict[str, list[int]]) -> list[KeyValue]:
    return [array(name, ValueType.INT32, values) for name, values in named.items()]


@given(
    base=st.dictionaries(st.sampled_from(NAMES), NUMBERS),
    heads=st.dictionaries(st.sampled_from(NAMES), NUMBERS),
)
def test_restore_is_the_inverse(base: dict[str, list[int]], heads: dict[str, list[int]]) -> None:
    ours, theirs = keys_of(base), keys_of(heads)
    lent = lend(ours, theirs, "h")
    assert restore(lent.own, lent.record, ours, "h") == tuple(theirs)
    kept = with_base_tokenizer(ours, theirs, "h")
    assert without_base_tokenizer(kept, ours, "h") == tuple(theirs)


RANGES, VALUES = f"{CHANGED}a.ranges", f"{CHANGED}a.values"


@pytest.mark.parametrize(
    ("record", "field"),
    [
        ([], POSITIONS_KEY),
        ([string(POSITIONS_KEY, "x")], POSITIONS_KEY),
        ([array(POSITIONS_KEY, ValueType.UINT32, [])], POSITIONS_KEY),
        ([array(POSITIONS_KEY, ValueType.UINT32, [9])], POSITIONS_KEY),
        ([(RANGES, [0, 1])], f"{CHANGED}a"),
        ([(VALUES, [0])], f"{CHANGED}a"),
        ([(RANGES, []), (VALUES, [])], f"{CHANGED}a"),
        ([(RANGES, [0, 1, 2]), (VALUES, [0])], f"{CHANGED}a"),
        ([(RANGES, [0, 4]), (VALUES, [0])], RANGES),
        ([(RANGES, [1, 1]), (VALUES, [0])], RANGES),
        ([(RANGES, [2, 1]), (VALUES, [0])], RANGES),
        ([(RANGES, [1, 2, 0, 1]), (VALUES, [0, 0])], RANGES),
        ([(RANGES, [4294967295, 4294967295]), (VALUES, [0])], RANGES),
        ([string(RANGES, "x"), (VALUES, [0])], f"{CHANGED}a"),
        ([(f"{CHANGED}b.ranges", [0, 1])], f"{CHANGED}b.ranges"),
    ],
)
def test_a_record_that_does_not_fit(
    record: list[KeyValue | tuple[str, list[int]]], field: str
) -> None:
    base = [array("tokenizer.a", ValueType.INT32, [1, 2, 3])]
    keys = [
        key
        if isinstance(key, KeyValue)
        else array(key[0], ValueType.UINT32 if "ranges" in key[0] else ValueType.INT32, key[1])
        for key in record
    ]
    if field.startswith(CHANGED):
        keys.append(array(POSITIONS_KEY, ValueType.UINT32, [0]))
    with pytest.raises(FormatError) as caught:
        restore([], keys, base, "m.gguf")
    assert str(caught.value).startswith("m.gguf: ")
    assert field in str(caught.value)
