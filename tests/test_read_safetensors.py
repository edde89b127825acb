"""The strict safetensors and checkpoint readers: refusals, each beside a control."""

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest

import tiny
from gguf_mtp.errors import FormatError, GgufMtpError, UnsupportedError
from gguf_mtp.readers.checkpoint import read_checkpoint
from gguf_mtp.readers.safetensors import read_safetensors
from gguf_mtp.readers.strict_json import parse_object


def build(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded) if length is None else length) + encoded + data


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


ACCEPTED = {
    "one tensor": build({"a": entry()}, bytes(8)),
    "none": build({}),
    "metadata": build({"__metadata__": {"format": "pt"}, "a": entry()}, bytes(8)),
    "unaligned": build({"b": entry("U8", [1], [0, 1]), "a": entry("F32", [2], [1, 9])}, bytes(9)),
    "scalar": build({"a": entry("F32", [], [0, 4])}, bytes(4)),
    "empty tensor": build({"a": entry("F32", [0, 4], [0, 0]), "b": entry()}, bytes(8)),
    "header padded with spaces": build(b'{"a":' + json.dumps(entry()).encode() + b"}   ", bytes(8)),
    "many empty tensors": build({f"t{i}": entry("F32", [0], [0, 0]) for i in range(10_000)}),
}

REFUSED = {
    "empty file": (b"", "0 bytes"),
    "seven bytes": (bytes(7), "7 bytes"),
    "header past the end": (build({}, length=1 << 40), "header length is 1099511627776"),
    "header of 2^63 bytes": (build({}, length=1 << 63), "header length is"),
    "header over the limit": (build({}, length=100_000_001), "header length is 100000001"),
    "not UTF-8": (build(b'{"\xff": 1}'), "not UTF-8 at byte 2"),
    "an array": (build([]), "expected a JSON object, found list"),
    "not JSON": (build(b"{"), "not JSON"),
    "nested deeply": (build(b'{"a":' + b"[" * 100_000), "nested too deeply"),
    "key twice": (build(b'{"a": 1, "a": 2}'), "key 'a' occurs twice"),
    "NaN": (build(b'{"a": NaN}'), "NaN is not a JSON number"),
    "integer of 5000 digits": (build(b'{"a": ' + b"9" * 5000 + b"}"), "5000 digits"),
    "missing dtype": (
        build({"a": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
        "expected dtype",
    ),
    "unknown dtype": (build({"a": entry("Q9")}, bytes(8)), "unknown dtype 'Q9'"),
    "dtype no string": (build({"a": entry(7)}, bytes(8)), "unknown dtype 7"),
    "negative dimension": (build({"a": entry("F32", [-2])}, bytes(8)), "shape is [-2], expected"),
    "float dimension": (build({"a": entry("F32", [2.0])}, bytes(8)), "shape is [2.0], expected"),
    "bool dimension": (build({"a": entry("F32", [True])}, bytes(8)), "shape is [True], expected"),
    "offsets reversed": (
        build({"a": entry(offsets=[8, 0])}, bytes(8)),
        "data_offsets is [8, 0], expected",
    ),
    "three offsets": (
        build({"a": entry(offsets=[0, 4, 8])}, bytes(8)),
        "data_offsets is [0, 4, 8], expected",
    ),
    "size mismatch": (build({"a": entry(shape=[3])}, bytes(8)), "span 8 bytes, F32 [3] needs 12"),
    "huge shape": (build({"a": entry(shape=[1 << 62, 4])}, bytes(8)), "needs"),
    "overlap": (build({"a": entry(), "b": entry(offsets=[4, 12])}, bytes(12)), "overlaps"),
    "hole": (build({"a": entry(), "b": entry(offsets=[12, 20])}, bytes(20)), "leaves a hole"),
    "hole at the start": (build({"a": entry(offsets=[4, 12])}, bytes(12)), "leaves a hole"),
    "trailing bytes": (build({"a": entry()}, bytes(9)), "trailing bytes"),
    "truncated": (build({"a": entry()}, bytes(7)), "truncated"),
    "metadata of numbers": (build({"__metadata__": {"a": 1}}), "__metadata__"),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted(tmp_path: Path, name: str) -> None:
    path = tmp_path / "f.safetensors"
    path.write_bytes(ACCEPTED[name])
    assert read_safetensors(path).size == len(ACCEPTED[name])


@pytest.mark.parametrize("name", REFUSED)
def test_refused(tmp_path: Path, name: str) -> None:
    data, message = REFUSED[name]
    path = tmp_path / "f.safetensors"
    path.write_bytes(data)
    with pytest.raises(FormatError) as caught:
        read_safetensors(path)
    assert message in str(caught.value)
    assert "f.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_cut_at_every_byte(tmp_path: Path) -> None:
    good = build({"a": entry(), "b": entry(offsets=[8, 16])}, bytes(16))
    path = tmp_path / "f.safetensors"
    for length in range(len(good)):
        path.write_bytes(good[:length])
        with pytest.raises(FormatError):
            read_safetensors(path)


def test_tensors_come_sorted_by_name_with_absolute_offsets(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    path.write_bytes(build({"b": entry(), "a": entry(offsets=[8, 16])}, bytes(16)))
    file = read_safetensors(path)
    assert [(ref.name, ref.offset) for ref in file.tensors] == [
        ("a", file.size - 8),
        ("b", file.size - 16),
    ]


@pytest.mark.parametrize(
    "text", [b'\xef\xbb\xbf{"a": 1}', b"", b"null", b'{"a": Infinity}', b"{} x"]
)
def test_json_refused(text: bytes) -> None:
    with pytest.raises(FormatError, match=r"^config"):
        parse_object(text, "config")


def test_json_accepted() -> None:
    assert parse_object(b'{"a": [1, -2.5e3, "x", null, true]}', "config") == {
        "a": [1, -2500.0, "x", None, True]
    }


def test_shards_are_read(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(tiny.write_target(tmp_path / "t", shards=3))
    assert len(checkpoint.files) == 3
    assert len(checkpoint.tensors) == len(tiny.target_shapes(tiny.E2B))


def test_symlinked_shards_are_read(tmp_path: Path) -> None:
    """As in Hugging Face's own cache, where every file is a link to a blob."""
    target = tiny.write_target(tmp_path / "t", shards=2)
    (tmp_path / "blob").mkdir()
    for path in list(target.glob("*.safetensors")):
        blob = tmp_path / "blob" / path.name
        path.rename(blob)
        path.symlink_to(blob)
    assert len(read_checkpoint(target).files) == 2


INDEX_CASES = {
    "not an object": ([1], "weight_map is not a filled object"),
    "empty": ({}, "weight_map is not a filled object"),
    "shard is no string": ({"a": 1}, "bad shard for 'a': 1"),
    "absolute": ({"a": "/etc/passwd"}, "is not a plain file name"),
    "parent": ({"a": "../x.safetensors"}, "is not a plain file name"),
    "dots": ({"a": ".."}, "bad shard"),
    "backslash": ({"a": "..\\x"}, "is not a plain file name"),
    "missing shard": ({"a": "none.safetensors"}, "none.safetensors: cannot open"),
}


@pytest.mark.parametrize("name", INDEX_CASES)
def test_index_refused(tmp_path: Path, name: str) -> None:
    weight_map, message = INDEX_CASES[name]
    target = tiny.write_target(tmp_path / "t", shards=2)
    tiny.write_json(target / "model.safetensors.index.json", {"weight_map": weight_map})
    with pytest.raises(FormatError) as caught:
        read_checkpoint(target)
    assert message in str(caught.value)


@pytest.mark.parametrize("change", ["elsewhere", "nowhere", "unlisted", "twice"])
def test_index_must_agree_with_the_shards(tmp_path: Path, change: str) -> None:
    target = tiny.write_target(tmp_path / "t", shards=2)
    index = target / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    name, shard = next(iter(weight_map.items()))
    other = next(value for value in weight_map.values() if value != shard)
    if change == "elsewhere":
        weight_map[name] = other
        message = f"is mapped to {other}, but is in {shard}"
    elif change == "nowhere":
        weight_map["absent"] = shard
        message = "but is in no shard"
    elif change == "unlisted":
        del weight_map[name]
        message = "is not in model.safetensors.index.json"
    else:
        (target / other).write_bytes((target / shard).read_bytes())
        message = "is also in"
    tiny.write_json(index, {"weight_map": weight_map})
    with pytest.raises(FormatError) as caught:
        read_checkpoint(target)
    assert message in str(caught.value)


def test_several_files_need_an_index(tmp_path: Path) -> None:
    target = tiny.write_target(tmp_path / "t", shards=2)
    (target / "model.safetensors.index.json").unlink()
    with pytest.raises(FormatError, match="2 safetensors files but no"):
        read_checkpoint(target)


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    target = tiny.write_target(tmp_path / "t")
    (target / "model.safetensors").rename(target / "pytorch_model.bin")
    with pytest.raises(UnsupportedError, match="pickled weights are not read"):
        read_checkpoint(target)


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    target = tiny.write_target(tmp_path / "t")
    (target / "config.json").unlink()
    os.mkfifo(target / "config.json")
    with pytest.raises(GgufMtpError, match="not a regular file"):
        read_checkpoint(target)
