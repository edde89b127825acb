"""GGUF files put together byte by byte, so that any part can be wrong."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

STRING, ARRAY, U8, U32, U64, BOOL = 8, 9, 0, 4, 10, 7


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def pair(name: bytes, kind: int, payload: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + payload


def u32(name: bytes, value: int) -> bytes:
    return pair(name, U32, struct.pack("<I", value))


def array(name: bytes, kind: int, count: int, payload: bytes) -> bytes:
    return pair(name, ARRAY, struct.pack("<IQ", kind, count) + payload)


@dataclass(frozen=True)
class Info:
    """A tensor info; `dims` contiguous dimension first, as in the file."""

    name: bytes
    dims: Sequence[int]
    kind: int
    offset: int

    def encode(self) -> bytes:
        dims = struct.pack(f"<I{len(self.dims)}Q", len(self.dims), *self.dims)
        return text(self.name) + dims + struct.pack("<IQ", self.kind, self.offset)


ARCH = pair(b"general.architecture", STRING, text(b"test"))


def build(
    pairs: Sequence[bytes] = (ARCH,),
    infos: Sequence[Info] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    n_pairs: int | None = None,
    n_tensors: int | None = None,
    alignment: int = 32,
) -> bytes:
    """A file; counts are those of the parts unless given."""
    counts = (
        len(infos) if n_tensors is None else n_tensors,
        len(pairs) if n_pairs is None else n_pairs,
    )
    header = magic + struct.pack("<IQQ", version, *counts)
    header += b"".join(pairs) + b"".join(info.encode() for info in infos)
    if infos:
        header += bytes(-len(header) % alignment)
    return header + data
