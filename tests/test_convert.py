"""Merging and splitting through the library: bytes, order, provenance, determinism."""

import hashlib
import shutil
import struct
from pathlib import Path
from typing import Any

import gguf
import pytest

import tiny
from gguf_bytes import u32
from gguf_mtp.api import convert, plan_convert, split
from gguf_mtp.errors import FormatError, OutputError, PairingError, UnsupportedError
from gguf_mtp.keyvalue import KeyValue, string
from gguf_mtp.model import half_from_gguf
from gguf_mtp.namespace import is_merged
from gguf_mtp.plan import plan
from gguf_mtp.readers.gguf import read_gguf
from gguf_mtp.writer import write_gguf


def values(path: Path) -> dict[str, Any]:
    return {key.name: key.value for key in read_gguf(path).keys}


def rewrite(source: Path, out: Path, change: dict[str, KeyValue | None]) -> Path:
    """Copy a GGUF with some keys replaced, added or (None) dropped."""
    half = half_from_gguf(read_gguf(source))
    kept = [change.get(key.name, key) for key in half.keys]
    added = [key for name, key in change.items() if name not in half.by_name]
    keys = tuple(key for key in [*kept, *added] if key is not None)
    write_gguf(plan(keys, half.tensors), out)
    return out


@pytest.mark.parametrize("kind", tiny.KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("heads_type", ["f32", "bf16", "auto"])
def test_split_then_convert_gives_the_same_bytes(
    tmp_path: Path, kind: tiny.Kind, heads_type: str
) -> None:
    base = tiny.write_target(tmp_path / "target", kind)
    heads = tiny.write_drafter(tmp_path / "drafter", kind)
    merged, again = tmp_path / "m.gguf", tmp_path / "again.gguf"
    convert(base, heads, merged, heads_type=heads_type)
    split(merged, tmp_path / "b.gguf", tmp_path / "h.gguf")
    convert(tmp_path / "b.gguf", tmp_path / "h.gguf", again)
    assert again.read_bytes() == merged.read_bytes()
    split(again, tmp_path / "b2.gguf", tmp_path / "h2.gguf")
    for name in ("b", "h"):
        first, second = tmp_path / f"{name}.gguf", tmp_path / f"{name}2.gguf"
        assert first.read_bytes() == second.read_bytes()


def test_trained_pair_survives_the_round_trip(merged_auto: Path, tmp_path: Path) -> None:
    split(merged_auto, tmp_path / "b.gguf", tmp_path / "h.gguf")
    convert(tmp_path / "b.gguf", tmp_path / "h.gguf", tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == merged_auto.read_bytes()


def test_same_input_same_bytes(tiny_target: Path, tiny_drafter: Path, tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        convert(tiny_target, tiny_drafter, tmp_path / name)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_shards_make_no_difference_to_the_tensors(tmp_path: Path, tiny_drafter: Path) -> None:
    tensors = []
    for shards in (1, 4):
        base = tiny.write_target(tmp_path / f"target{shards}" / "target", shards=shards)
        out = tmp_path / f"{shards}.gguf"
        convert(base, tiny_drafter, out)
        gguf, data = read_gguf(out), out.read_bytes()
        tensors.append({ref.name: data[ref.offset :][: ref.nbytes] for ref in gguf.tensors})
    assert tensors[0] == tensors[1]


def test_base_comes_first_and_unchanged(
    tiny_target: Path, tiny_drafter: Path, tiny_merged: Path, tmp_path: Path
) -> None:
    split(tiny_merged, tmp_path / "base.gguf", None)
    base, merged = read_gguf(tmp_path / "base.gguf"), read_gguf(tiny_merged)
    assert merged.keys[: len(base.keys)] == base.keys
    assert all(key.name.startswith("mtp.") for key in merged.keys[len(base.keys) :])
    names = [ref.name for ref in merged.tensors]
    assert names[: len(base.tensors)] == [ref.name for ref in base.tensors]
    assert all(name.startswith("mtp.") for name in names[len(base.tensors) :])
    assert is_merged(merged)
    assert not is_merged(base)
    assert "gemma4.nextn_predict_layers" not in merged.by_name
    first, second = (tmp_path / "base.gguf").read_bytes(), tiny_merged.read_bytes()
    length = base.size - base.data_start
    assert first[base.data_start :] == second[merged.data_start :][:length]


def test_gguf_py_reads_the_same(tiny_merged: Path) -> None:
    """An independent reader finds the same keys, tensors and places."""
    reader = gguf.GGUFReader(tiny_merged)
    ours = read_gguf(tiny_merged)
    theirs = {f.name: f.contents() for f in reader.fields.values() if f.name[:5] != "GGUF."}
    assert theirs == {key.name: key.value for key in ours.keys}
    assert [
        (t.name, t.tensor_type.name, t.shape.tolist(), t.data_offset, t.n_bytes)
        for t in reader.tensors
    ] == [(r.name, r.dtype, list(r.shape)[::-1], r.offset, r.nbytes) for r in ours.tensors]


def test_keys_of_a_merged_file(tiny_merged: Path) -> None:
    found = values(tiny_merged)
    assert found["mtp.format.version"] == 1
    assert found["mtp.format.layout"] == "inline"
    assert found["mtp.general.architecture"] == "gemma4-assistant"
    assert found["mtp.gemma4-assistant.embedding_length_out"] == tiny.HIDDEN
    assert found["mtp.gemma4-assistant.masked_embd.centroid_count"] == tiny.CENTROIDS
    assert found["mtp.gemma4-assistant.masked_embd.top_k"] == tiny.TOP_K
    assert found["mtp.gemma4-assistant.masked_embd.rows_sorted"] is True
    assert found["mtp.tokenizer.shared"] is True
    assert not any(name.startswith("mtp.tokenizer.ggml.") for name in found)


def test_provenance_names_and_digests_the_sources(
    tiny_target: Path, tiny_drafter: Path, tiny_merged: Path, tmp_path: Path
) -> None:
    convert(tiny_target, tiny_drafter, tmp_path / "m.gguf", hash_base=True)
    found = values(tmp_path / "m.gguf")
    heads, base = (path / "model.safetensors" for path in (tiny_drafter, tiny_target))
    assert found["mtp.source.kind"] == found["mtp.target.kind"] == "huggingface"
    assert found["mtp.source.name"] == "drafter"
    assert found["mtp.source.files"] == ["model.safetensors"]
    assert found["mtp.source.sha256"] == [hashlib.sha256(heads.read_bytes()).hexdigest()]
    assert found["mtp.target.sha256"] == [hashlib.sha256(base.read_bytes()).hexdigest()]
    assert found["mtp.target.embedding_length"] == tiny.HIDDEN
    assert found["mtp.target.vocab_size"] == tiny.VOCAB_SIZE
    plain = values(tiny_merged)
    assert plain == {name: value for name, value in found.items() if name in plain}
    assert set(found) - set(plain) == {"mtp.target.sha256"}
    assert not any("/" in str(value) for name, value in found.items() if "source" in name)


def test_licence_of_the_heads_is_kept(tmp_path: Path, tiny_target: Path) -> None:
    heads = tiny.write_drafter(tmp_path / "drafter")
    (heads / "README.md").write_text("---\nlicense: mit\n---\n")
    convert(tiny_target, heads, tmp_path / "m.gguf")
    assert values(tmp_path / "m.gguf")["mtp.source.license"] == "mit"


def test_drafter_without_tokenizer_borrows(tmp_path: Path, tiny_target: Path) -> None:
    heads = tiny.write_drafter(tmp_path / "drafter")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (heads / name).unlink()
    convert(tiny_target, heads, tmp_path / "m.gguf")
    split(tmp_path / "m.gguf", tmp_path / "b.gguf", tmp_path / "h.gguf")
    base, drafter = values(tmp_path / "b.gguf"), values(tmp_path / "h.gguf")
    for name, value in base.items():
        if name.startswith("tokenizer."):
            assert drafter[name] == value


def test_drafter_with_another_chat_template_keeps_it(tmp_path: Path, tiny_target: Path) -> None:
    heads = tiny.write_drafter(tmp_path / "drafter")
    (heads / "chat_template.jinja").write_text("other")
    convert(tiny_target, heads, tmp_path / "m.gguf")
    assert values(tmp_path / "m.gguf")["mtp.tokenizer.chat_template"] == "other"
    split(tmp_path / "m.gguf", tmp_path / "b.gguf", tmp_path / "h.gguf")
    assert values(tmp_path / "h.gguf")["tokenizer.chat_template"] == "other"
    convert(tmp_path / "b.gguf", tmp_path / "h.gguf", tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "m.gguf").read_bytes()


def test_heads_gguf_in_upstream_dialect(tmp_path: Path, tiny_target: Path) -> None:
    """One that was never merged: no provenance, no ordered head."""
    kind = tiny.Kind("plain", ordered=False)
    heads = tiny.write_drafter(tmp_path / "drafter", kind)
    convert(tiny_target, heads, tmp_path / "m.gguf")
    split(tmp_path / "m.gguf", None, tmp_path / "h.gguf")
    foreign: dict[str, KeyValue | None] = {
        name: None for name in values(tmp_path / "h.gguf") if name.startswith("mtp.")
    }
    plain = rewrite(tmp_path / "h.gguf", tmp_path / "plain.gguf", foreign)
    convert(tiny_target, plain, tmp_path / "m2.gguf")
    found = values(tmp_path / "m2.gguf")
    assert found["mtp.source.kind"] == "gguf"
    assert found["mtp.source.sha256"] == [hashlib.sha256(plain.read_bytes()).hexdigest()]
    assert "mtp.gemma4-assistant.masked_embd.rows_sorted" not in found
    split(tmp_path / "m2.gguf", None, tmp_path / "h2.gguf")
    assert {k: v for k, v in values(tmp_path / "h2.gguf").items() if k[:4] != "mtp."} == values(
        plain
    )


def test_alignment_of_the_base_is_kept(tmp_path: Path, tiny_merged: Path) -> None:
    split(tiny_merged, tmp_path / "b.gguf", tmp_path / "h.gguf")
    change = {"general.alignment": KeyValue("general.alignment", u32_type(), u32_bytes(4096))}
    wide = rewrite(tmp_path / "b.gguf", tmp_path / "wide.gguf", dict(change))
    convert(wide, tmp_path / "h.gguf", tmp_path / "m.gguf")
    merged = read_gguf(tmp_path / "m.gguf")
    assert merged.alignment == 4096
    assert all(ref.offset % 4096 == 0 for ref in merged.tensors)
    split(tmp_path / "m.gguf", tmp_path / "b2.gguf", tmp_path / "h2.gguf")
    assert (tmp_path / "b2.gguf").read_bytes() == wide.read_bytes()
    assert (tmp_path / "h2.gguf").read_bytes() == (tmp_path / "h.gguf").read_bytes()


def u32_type() -> Any:
    from gguf_mtp.keyvalue import ValueType

    return ValueType.UINT32


def u32_bytes(value: int) -> bytes:
    return struct.pack("<I", value)


def test_refuses_a_base_that_has_heads(tiny_merged: Path, tiny_drafter: Path) -> None:
    with pytest.raises(UnsupportedError, match="already has MTP heads"):
        plan_convert(tiny_merged, tiny_drafter)


def test_refuses_a_base_with_foreign_names(tmp_path: Path, tiny_merged: Path) -> None:
    split(tiny_merged, tmp_path / "b.gguf", tmp_path / "h.gguf")
    taken = rewrite(tmp_path / "b.gguf", tmp_path / "t.gguf", {"mtp.x": string("mtp.x", "y")})
    with pytest.raises(UnsupportedError, match=r"'mtp\.x' is in the namespace"):
        plan_convert(taken, tmp_path / "h.gguf")


def test_refuses_heads_that_are_none(tmp_path: Path, tiny_merged: Path) -> None:
    split(tiny_merged, tmp_path / "b.gguf", tmp_path / "h.gguf")
    arch = "general.architecture"
    other = rewrite(tmp_path / "h.gguf", tmp_path / "o.gguf", {arch: string(arch, "bert")})
    with pytest.raises(UnsupportedError, match=r"'bert' \(no drafter that is known\)"):
        plan_convert(tmp_path / "b.gguf", other)
    with pytest.raises(PairingError, match="draft model: expected fewer parameters than"):
        plan_convert(tmp_path / "b.gguf", tmp_path / "b.gguf")


def test_refuses_types_for_a_gguf(tmp_path: Path, tiny_merged: Path, tiny_drafter: Path) -> None:
    split(tiny_merged, tmp_path / "b.gguf", None)
    with pytest.raises(UnsupportedError, match="--outtype is not possible"):
        plan_convert(tmp_path / "b.gguf", tiny_drafter, outtype="f16")


def test_split_refuses_what_is_not_merged(tmp_path: Path, tiny_merged: Path) -> None:
    split(tiny_merged, tmp_path / "b.gguf", None)
    with pytest.raises(FormatError, match="not a merged file"):
        split(tmp_path / "b.gguf", tmp_path / "b2.gguf", None)


def test_split_checks_both_outputs_first(tmp_path: Path, tiny_merged: Path) -> None:
    (tmp_path / "h.gguf").write_bytes(b"mine")
    with pytest.raises(OutputError, match="exists"):
        split(tiny_merged, tmp_path / "b.gguf", tmp_path / "h.gguf")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["h.gguf"]
    assert (tmp_path / "h.gguf").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("mtp.format.version", 2, "format 2"),
        ("mtp.gemma4-assistant.masked_embd.top_k", 99, "top-k is 99, expected 1 to 16"),
        ("mtp.gemma4-assistant.masked_embd.centroid_count", 7, "expected \\[7, 32\\]"),
        ("mtp.gemma4-assistant.block_count", 3, "expected 3 values"),
        ("mtp.gemma4-assistant.attention.head_count", 4, "has shape"),
    ],
)
def test_split_refuses_damaged_keys(
    tmp_path: Path, tiny_merged: Path, name: str, value: int, message: str
) -> None:
    change: dict[str, KeyValue | None] = {name: KeyValue(name, u32_type(), u32_bytes(value))}
    damaged = rewrite(tiny_merged, tmp_path / "damaged.gguf", change)
    with pytest.raises((FormatError, UnsupportedError), match=message):
        split(damaged, tmp_path / "b.gguf", tmp_path / "h.gguf")
    assert [item.name for item in tmp_path.iterdir()] == ["damaged.gguf"]


def test_gguf_bytes_helper_agrees_with_the_package() -> None:
    assert u32(b"n", 7) == KeyValue("n", u32_type(), u32_bytes(7)).encode()


@pytest.mark.parametrize("change", ["missing", "extra", "shape", "dtype", "half of the heads"])
def test_checkpoint_tensors_are_checked(tmp_path: Path, tiny_target: Path, change: str) -> None:
    heads = tmp_path / "drafter"
    tiny.write_drafter(heads)
    tensors: tiny.Tensors = {
        name: ("BF16", shape, tiny.noise(name, shape, "BF16"))
        for name, shape in tiny.drafter_shapes(tiny.E2B).items()
    }
    tensors["masked_embedding.token_ordering"] = ("I64", (tiny.VOCAB_SIZE,), tiny.ordering())
    name = "model.layers.1.mlp.up_proj.weight"
    expected: type[Exception] = FormatError
    if change == "missing":
        del tensors[name]
        message = rf"found 25 of 26 expected tensors, first missing: {name}"
    elif change == "extra":
        tensors["model.layers.0.self_attn.k_proj.weight"] = ("BF16", (1,), b"ab")
        message, expected = "k_proj.weight' is not part of this model", UnsupportedError
    elif change == "shape":
        tensors[name] = ("BF16", (1, 2), b"abcd")
        message = r"has shape \[1, 2\], expected \[64, 32\] from config.json"
    elif change == "dtype":
        tensors[name] = ("I8", (64, 32), bytes(64 * 32))
        message, expected = "has dtype I8", UnsupportedError
    else:
        tensors = dict(list(tensors.items())[::2])
        message = r"found \d+ of \d+ expected tensors, first missing: "
    tiny.write_safetensors(heads / "model.safetensors", tensors)
    with pytest.raises(expected, match=message):
        plan_convert(tiny_target, heads)


@pytest.mark.parametrize(
    ("ordering", "message"),
    [
        ([0, 0, *range(2, 512)], "lists token 0 2 times"),
        ([*range(1, 513)], "entry 511 is 512, expected 0 to 511"),
        ([-1, *range(1, 512)], "entry 0 is -1"),
        ([*range(511)], "has 511 entries, expected 512"),
    ],
)
def test_ordering_must_be_a_permutation(
    tmp_path: Path, tiny_target: Path, ordering: list[int], message: str
) -> None:
    heads = tiny.write_drafter(tmp_path / "drafter")
    shapes = tiny.drafter_shapes(tiny.E2B)
    tensors: tiny.Tensors = {n: ("BF16", s, tiny.noise(n, s, "BF16")) for n, s in shapes.items()}
    data = struct.pack(f"<{len(ordering)}q", *ordering)
    tensors["masked_embedding.token_ordering"] = ("I64", (len(ordering),), data)
    tiny.write_safetensors(heads / "model.safetensors", tensors)
    with pytest.raises(FormatError, match=message):
        plan_convert(tiny_target, heads)


def test_nothing_of_the_input_directory_is_needed_twice(tmp_path: Path) -> None:
    """The halves of a merged file do not depend on where the checkpoints were."""
    for place in ("one", "two"):
        tiny.write_target(tmp_path / place / "target")
        tiny.write_drafter(tmp_path / place / "drafter")
        out = tmp_path / f"{place}.gguf"
        convert(tmp_path / place / "target", tmp_path / place / "drafter", out)
    shutil.rmtree(tmp_path / "one")
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "two.gguf").read_bytes()
