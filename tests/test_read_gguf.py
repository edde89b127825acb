"""The strict GGUF reader: what it reads. What it refuses is in ``hostile/gguf.py``."""

import os
import struct
from pathlib import Path

import pytest

from gguf_bytes import ARCH, ARRAY, BOOL, STRING, U8, U64, Info, array, build, text, u32
from gguf_mtp.errors import FormatError, UnsupportedError
from gguf_mtp.keyvalue import ValueType
from gguf_mtp.readers.gguf import read_gguf

F32, Q8_0 = 0, 8
ONE = Info(b"a.weight", (8,), F32, 0)
TWO = Info(b"b.weight", (32, 2), Q8_0, 32)
DATA = bytes(32 + 68 + 28)
PAIRS = (
    ARCH,
    u32(b"n", 7),
    array(b"list", U64, 3, bytes(24)),
    array(b"names", STRING, 2, text(b"x") + text(b"")),
    array(b"flags", BOOL, 2, b"\x01\x00"),
    array(b"nested", ARRAY, 1, struct.pack("<IQ", U8, 2) + b"ab"),
)
GOOD = build(PAIRS, (ONE, TWO), DATA)


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def alignment_key(value: int) -> bytes:
    return u32(b"general.alignment", value)


ACCEPTED = {
    "everything": GOOD,
    "version 2": build(PAIRS, (ONE, TWO), DATA, version=2),
    "no tensors": build(PAIRS),
    "last padding cut": GOOD[:-28],
    "alignment 8": build((ARCH, alignment_key(8)), (ONE,), bytes(32), alignment=8),
    "alignment 4096": build((ARCH, alignment_key(4096)), (ONE,), bytes(4096), alignment=4096),
    "name of 63 bytes": build((ARCH,), (Info(b"n" * 63, (8,), F32, 0),), bytes(32)),
    "order in file other than in header": build(
        (ARCH,), (Info(b"b", (8,), F32, 32), Info(b"a", (8,), F32, 0)), bytes(64)
    ),
    "four dimensions": build((ARCH,), (Info(b"a", (2, 2, 2, 1), F32, 0),), bytes(32)),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted(tmp_path: Path, name: str) -> None:
    assert read_gguf(write(tmp_path / "f.gguf", ACCEPTED[name])).by_name["general.architecture"]


def test_header_cut_at_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "f.gguf"
    for length in range(len(GOOD) - 28):
        write(path, GOOD[:length])
        with pytest.raises(FormatError):
            read_gguf(path)
    write(path, GOOD)
    assert len(read_gguf(path).tensors) == 2


def test_any_single_byte_changed_is_read_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "f.gguf"
    for at in range(len(GOOD) - len(DATA)):
        for value in (0x00, 0x7F, 0xFF):
            write(path, GOOD[:at] + bytes([value]) + GOOD[at + 1 :])
            try:
                read_gguf(path)
            except (FormatError, UnsupportedError):
                continue


def test_contents(tmp_path: Path) -> None:
    gguf = read_gguf(write(tmp_path / "f.gguf", GOOD))
    values = {key.name: key.value for key in gguf.keys}
    assert values == {
        "general.architecture": "test",
        "n": 7,
        "list": [0, 0, 0],
        "names": ["x", ""],
        "flags": [True, False],
        "nested": ["<nested array 0>"],
    }
    assert gguf.by_name["names"].item_type is ValueType.STRING
    assert [(ref.name, ref.dtype, ref.shape, ref.nbytes) for ref in gguf.tensors] == [
        ("a.weight", "F32", (8,), 32),
        ("b.weight", "Q8_0", (2, 32), 68),
    ]
    start = gguf.data_start
    assert [ref.offset for ref in gguf.tensors] == [start, start + 32]
    assert b"".join(key.encode() for key in gguf.keys) in GOOD


def test_strings_longer_than_the_read_ahead(tmp_path: Path) -> None:
    long = b"x" * 3_000_000
    pairs = (array(b"names", STRING, 3, text(b"a") + text(long) + text(b"b")), u32(b"n", 1))
    gguf = read_gguf(write(tmp_path / "f.gguf", build(pairs)))
    assert gguf.by_name["names"].encoded_strings(3) == [b"a", long, b"b"]
    assert gguf.by_name["n"].value == 1


def test_unknown_types_take_all_bytes_up_to_the_next(tmp_path: Path) -> None:
    infos = (Info(b"a", (8,), 255, 0), Info(b"b", (8,), F32, 64), Info(b"c", (3,), 4, 96))
    gguf = read_gguf(write(tmp_path / "f.gguf", build((ARCH,), infos, bytes(160))))
    sizes = [(ref.dtype, ref.nbytes) for ref in gguf.tensors]
    assert sizes == [("type 255", 64), ("F32", 32), ("type 4", 64)]


@pytest.mark.parametrize("kind", ["missing", "directory", "fifo"])
def test_what_is_no_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "f.gguf"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    with pytest.raises(FormatError, match=r"f\.gguf: "):
        read_gguf(path)


def test_long_arrays_of_strings_that_are_nearly_the_same(tmp_path: Path) -> None:
    """A vocabulary that was read before is recognised, and only then."""
    words = [text(f"token {number}".encode()) for number in range(40_000)]
    files = {"one": words, "again": words, "other": [*words[:-1], text(b"last")]}
    for name, items in files.items():
        path = tmp_path / f"{name}.gguf"
        tokens = array(b"t", STRING, len(items), b"".join(items))
        path.write_bytes(build((ARCH, tokens, u32(b"behind", 7))))
        read = read_gguf(path)
        assert read.by_name["t"].encode() == tokens
        assert read.by_name["behind"].value == 7
    cut = tmp_path / "cut.gguf"
    cut.write_bytes((tmp_path / "one.gguf").read_bytes()[:-40])
    with pytest.raises(FormatError, match="remain"):
        read_gguf(cut)
