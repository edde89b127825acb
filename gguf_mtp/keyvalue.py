"""GGUF key-value pairs, kept as their encoded bytes so that copying one is exact.

Source: the GGUF specification (ggml ``docs/gguf.md``), section "Metadata".
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from gguf_mtp.string_array import encode_strings


class ValueType(IntEnum):
    """GGUF's `gguf_metadata_value_type`."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


SCALARS = {
    ValueType.UINT8: "B",
    ValueType.INT8: "b",
    ValueType.UINT16: "H",
    ValueType.INT16: "h",
    ValueType.UINT32: "I",
    ValueType.INT32: "i",
    ValueType.FLOAT32: "f",
    ValueType.BOOL: "?",
    ValueType.UINT64: "Q",
    ValueType.INT64: "q",
    ValueType.FLOAT64: "d",
}
SCALAR_BYTES = {kind: struct.calcsize("<" + code) for kind, code in SCALARS.items()}

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_ARRAY_HEAD = struct.Struct("<IQ")


@dataclass(frozen=True)
class KeyValue:
    """A named value. `raw` is the value's encoding after its type code (for an array: item type,
    count, items). Nested arrays are kept as bytes and never decoded."""

    name: str
    type: ValueType
    raw: bytes

    def renamed(self, name: str) -> "KeyValue":
        return KeyValue(name, self.type, self.raw)

    @property
    def item_type(self) -> ValueType | None:
        """An array's item type, else None."""
        return ValueType(_U32.unpack_from(self.raw)[0]) if self.type is ValueType.ARRAY else None

    @property
    def count(self) -> int:
        """An array's length; 1 for anything else."""
        return int(_U64.unpack_from(self.raw, 4)[0]) if self.type is ValueType.ARRAY else 1

    @property
    def value(self) -> Any:
        """The decoded value: int, float, bool, str or a list of those."""
        return self.head(self.count)

    def head(self, limit: int) -> Any:
        """The decoded value, an array cut to its first `limit` items."""
        if self.type is ValueType.STRING:
            return _text(self.raw[8:])
        if self.type is not ValueType.ARRAY:
            return struct.unpack("<" + SCALARS[self.type], self.raw)[0]
        kind, count = self.item_type, min(self.count, limit)
        if kind is ValueType.STRING:
            return [_text(item) for item in self.encoded_strings(count)]
        if kind is None or kind is ValueType.ARRAY:
            return [f"<nested array {index}>" for index in range(count)]
        return list(struct.unpack_from(f"<{count}{SCALARS[kind]}", self.raw, _ARRAY_HEAD.size))

    def encoded_strings(self, limit: int) -> list[bytes]:
        """The first `limit` items of an array of strings, undecoded."""
        items = []
        offset = _ARRAY_HEAD.size
        for _ in range(limit):
            (length,) = _U64.unpack_from(self.raw, offset)
            items.append(self.raw[offset + 8 : offset + 8 + length])
            offset += 8 + length
        return items

    def encode(self) -> bytes:
        """The pair as it stands in a file."""
        name = self.name.encode()
        return b"".join((_U64.pack(len(name)), name, _U32.pack(self.type), self.raw))


def _text(encoded: bytes) -> str:
    return encoded.decode("utf-8", "backslashreplace")


def scalar(name: str, kind: ValueType, value: int | float | bool) -> KeyValue:
    return KeyValue(name, kind, struct.pack("<" + SCALARS[kind], value))


def u32(name: str, value: int) -> KeyValue:
    return scalar(name, ValueType.UINT32, value)


def f32(name: str, value: float) -> KeyValue:
    return scalar(name, ValueType.FLOAT32, value)


def boolean(name: str, value: bool) -> KeyValue:
    return scalar(name, ValueType.BOOL, value)


def string(name: str, value: str) -> KeyValue:
    encoded = value.encode()
    return KeyValue(name, ValueType.STRING, _U64.pack(len(encoded)) + encoded)


def strings(name: str, values: Sequence[str]) -> KeyValue:
    head = _ARRAY_HEAD.pack(ValueType.STRING, len(values))
    return KeyValue(name, ValueType.ARRAY, head + encode_strings(values))


def array(name: str, kind: ValueType, values: Iterable[int | float | bool]) -> KeyValue:
    items = list(values)
    body = struct.pack(f"<{len(items)}{SCALARS[kind]}", *items)
    return KeyValue(name, ValueType.ARRAY, _ARRAY_HEAD.pack(kind, len(items)) + body)


def byte_array(name: str, values: bytes) -> KeyValue:
    return array_with_payload(name, ValueType.UINT8, values)


def array_with_payload(name: str, kind: ValueType, payload: bytes) -> KeyValue:
    """An array of scalars from its items' encoding."""
    head = _ARRAY_HEAD.pack(kind, len(payload) // SCALAR_BYTES[kind])
    return KeyValue(name, ValueType.ARRAY, head + payload)


def array_payload(key: KeyValue) -> bytes:
    """The encoding of an array's items: of an array of bytes the bytes themselves."""
    return key.raw[_ARRAY_HEAD.size :]
