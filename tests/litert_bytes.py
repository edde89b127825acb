"""`.litertlm` headers by hand, to break one thing at a time."""

import struct
from dataclasses import dataclass, field

BLOCK = 16 * 1024


def table(fields: dict[int, bytes | tuple[str, "Blob"]]) -> "Blob":
    return Blob(fields=fields)


@dataclass
class Blob:
    """Something that a flatbuffer's offset can lead to: raw bytes, a table, or a vector of them."""

    raw: bytes = b""
    fields: dict[int, bytes | tuple[str, "Blob"]] = field(default_factory=dict)
    items: list["Blob"] | None = None


def text(value: str) -> Blob:
    encoded = value.encode()
    return Blob(struct.pack("<I", len(encoded)) + encoded + b"\0")


def flatbuffer(root: Blob) -> bytes:
    """Front to back, so that all offsets are positive."""
    out = bytearray(4)
    struct.pack_into("<I", out, 0, _place(out, root))
    return bytes(out)


def _place(out: bytearray, blob: Blob) -> int:
    if blob.items is not None:
        at = len(out)
        out += struct.pack("<I", len(blob.items)) + bytes(4 * len(blob.items))
        for index, item in enumerate(blob.items):
            slot = at + 4 + 4 * index
            struct.pack_into("<I", out, slot, _place(out, item) - slot)
        return at
    if not blob.fields:
        at = len(out)
        out += blob.raw
        return at
    n_slots = max(blob.fields) + 1
    vtable = len(out)
    at = vtable + 4 + 2 * n_slots
    offsets = [0] * n_slots
    size = 4
    for slot, value in blob.fields.items():
        offsets[slot] = size
        size += len(value) if isinstance(value, bytes) else 4
    out += struct.pack(f"<{n_slots + 2}H", 4 + 2 * n_slots, size, *offsets)
    out += struct.pack("<i", at - vtable) + bytes(size - 4)
    for slot, value in blob.fields.items():
        where = at + offsets[slot]
        if isinstance(value, bytes):
            out[where : where + len(value)] = value
        else:
            struct.pack_into("<I", out, where, _place(out, value[1]) - where)
    return at


def item(key: str, value: str) -> Blob:
    return Blob(
        fields={0: ("", text(key)), 1: b"\x09", 2: ("", Blob(fields={0: ("", text(value))}))}
    )


def section(begin: int, end: int, kind: int = 3, *items: Blob) -> Blob:
    return Blob(
        fields={
            0: ("", Blob(items=list(items))),
            1: struct.pack("<Q", begin),
            2: struct.pack("<Q", end),
            3: bytes([kind]),
        }
    )


def package(
    sections: list[Blob],
    body: bytes = b"",
    *,
    magic: bytes = b"LITERTLM",
    version: tuple[int, int, int] = (1, 5, 0),
    reserved: int = 0,
    header_end: int | None = None,
) -> bytes:
    """A package whose `body` begins behind the first block."""
    listing = Blob(fields={0: ("", Blob(items=sections))})
    header = flatbuffer(Blob(fields={1: ("", listing)}))
    end = 32 + len(header) if header_end is None else header_end
    start = magic + struct.pack("<3IIQ", *version, reserved, end) + header
    return start + bytes(BLOCK - len(start)) + body
