"""Recorded logits from strangers: an .npz is a zip archive of arrays, and numpy opens anything."""

import io
import random
import zipfile
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from conftest import FIXTURE
from gguf_mtp.errors import FormatError
from gguf_mtp.validate.reference import read_recording
from test_fuzz import outcome

N_VOCAB = 2048


def npz(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def header(text: bytes, data: bytes = b"") -> bytes:
    """An .npy of version 1."""
    text = text.ljust(118 - 10) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def array(values: object) -> bytes:
    out = io.BytesIO()
    np.save(out, values, allow_pickle=False)  # type: ignore[arg-type]
    return out.getvalue()


@pytest.mark.parametrize(
    ("member", "words"),
    [
        (array(np.zeros(4, "i4")), "not a recording of logits"),  # the others are missing
        (bytes(1 << 24), "unpacks to 33554432 bytes, 256 times its own"),
        (
            header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (1 << 40,)}"),
            "not a recording",
        ),
        (
            header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,)}"),
            "not a rec",
        ),
        (
            header(b"{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", b"cos\nsystem\n"),
            "not a recording",
        ),
        (header(b"__import__('os').system('false')"), "not a recording"),
        (header(b"(" * 100), "not a recording"),
        (b"", "not a recording"),
    ],
    ids=["alone", "bomb", "code in a shape", "a terabyte", "pickle", "code", "brackets", "empty"],
)
def test_members_that_lie(tmp_path: Path, member: bytes, words: str) -> None:
    path = npz(tmp_path / "r.npz", {"seq0_ids.npy": member, "seq0_base_logits.npy": member})
    with pytest.raises(FormatError, match=words) as caught:
        read_recording(path, N_VOCAB)
    assert str(caught.value).startswith(str(path))


def test_no_archive(tmp_path: Path) -> None:
    path = tmp_path / "r.npz"
    for data in (array(np.zeros(4)), b"", b"PK\x03\x04", b"\x80\x04.", b"PK\x05\x06" + bytes(18)):
        path.write_bytes(data)
        with pytest.raises(FormatError, match=r"r\.npz: "):
            read_recording(path, N_VOCAB)


def test_damaged_anywhere(tmp_path: Path) -> None:
    """A result or one line; most damage is found by the archive's checksums."""
    rng = random.Random(7)
    sound = (FIXTURE / "reference.npz").read_bytes()
    path = tmp_path / "r.npz"
    seen: Counter[str] = Counter()
    for _ in range(60):
        damaged = bytearray(sound)
        # Half of it in the directory at the end, where names, sizes and methods are.
        begin = len(damaged) - 3000 if rng.random() < 0.5 else 0
        for _ in range(3):
            damaged[rng.randrange(begin, len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        seen[outcome(partial(read_recording, path, N_VOCAB))] += 1
    assert seen["FormatError"] > 30
    path.write_bytes(sound)
    assert read_recording(path, N_VOCAB)[1]
