"""The strict safetensors and checkpoint readers: what they read. What they refuse is in
``hostile/checkpoints.py``."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest

import tiny
from gguf_mtp.errors import FormatError
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


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted(tmp_path: Path, name: str) -> None:
    path = tmp_path / "f.safetensors"
    path.write_bytes(ACCEPTED[name])
    assert read_safetensors(path).size == len(ACCEPTED[name])


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


def test_several_files_need_an_index(tmp_path: Path) -> None:
    target = tiny.write_target(tmp_path / "t", shards=2)
    (target / "model.safetensors.index.json").unlink()
    with pytest.raises(FormatError, match="2 safetensors files but no"):
        read_checkpoint(target)
