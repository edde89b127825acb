"""A strict GGUF reader: every length is checked against the bytes that remain before it is used.

Source: the GGUF specification (ggml ``docs/gguf.md``) and llama.cpp's ``ggml/src/gguf.cpp``.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from gguf_mtp.errors import FormatError, UnsupportedError
from gguf_mtp.ggml import type_by_id
from gguf_mtp.keyvalue import SCALAR_BYTES, KeyValue, ValueType
from gguf_mtp.readers.source import SourceFile, TensorRef, Window, explaining_pieces
from gguf_mtp.string_array import LENGTH_BYTES, whole_strings
from gguf_mtp.unique import first_repeated

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 20
MAX_DIMENSIONS = 4
MAX_NAME_BYTES = 63
MAX_ARRAY_DEPTH = 4
MAX_NESTED_ARRAYS = 1 << 12
MAX_HEADER_BYTES = 1 << 29
MAX_PAIRS = 1 << 16
# Ten times what any known model has; each costs some hundred bytes of memory.
MAX_TENSORS = 1 << 16
SMALLEST_PAIR = 8 + 1 + 4 + 1
SMALLEST_TENSOR_INFO = 8 + 1 + 4 + 8 + 4 + 8
READ_AHEAD = 1 << 20


@dataclass(frozen=True)
class GgufFile:
    """A parsed GGUF header. `data_start` is the offset of the tensor data in the file at `path`;
    `size` is the GGUF's, which may be only a part of that file (see `read_gguf`).

    `paths` are the files of one that comes in parts (see `read_gguf_parts`), `path` the first.
    """

    path: Path
    version: int
    keys: tuple[KeyValue, ...]
    tensors: tuple[TensorRef, ...]
    alignment: int
    data_start: int
    size: int
    paths: tuple[Path, ...]

    @cached_property
    def by_name(self) -> dict[str, KeyValue]:
        return {key.name: key for key in self.keys}


class _Cursor:
    """A forward reader over a file's header. Reads ahead, refuses to pass the end."""

    def __init__(self, source: SourceFile) -> None:
        self.source = source
        self.offset = 0
        self._start = 0
        self._buffer = b""

    @property
    def remaining(self) -> int:
        return self.source.size - self.offset

    def take(self, nbytes: int, field: str) -> bytes:
        begin = self.offset - self._start
        if begin + nbytes > len(self._buffer):
            self._refill(nbytes, field)
            begin = 0
        self.offset += nbytes
        return self._buffer[begin : begin + nbytes]

    def integer(self, code: str, field: str) -> int:
        return int(struct.unpack("<" + code, self.take(struct.calcsize(code), field))[0])

    def string(self, field: str) -> bytes:
        return self.take(self.integer("Q", f"length of {field}"), field)

    def strings(self, count: int, field: str) -> bytes:
        """The encoding of `count` strings, lengths included."""
        first = self.offset
        while count:
            begin = self.offset - self._start
            passed, end = whole_strings(self._buffer, begin, count)
            count -= passed
            self.offset += end - begin
            if not passed:
                at, length = self.offset, self.integer("Q", f"length of {field}")
                self.offset = at
                self._refill(LENGTH_BYTES + length, field)
        return self.source.read(first, self.offset - first)

    def _refill(self, nbytes: int, field: str) -> None:
        """Hold `nbytes` or more from the current offset on in the buffer, or refuse."""
        if nbytes > self.remaining:
            raise FormatError(
                f"{self.source.path}: {field} at offset {self.offset} needs {nbytes} bytes, "
                f"{self.remaining} remain"
            )
        if self.offset + nbytes > MAX_HEADER_BYTES:
            raise UnsupportedError(
                f"{self.source.path}: {field} at offset {self.offset} takes the header past "
                f"{MAX_HEADER_BYTES} bytes"
            )
        ahead = min(self.remaining, max(nbytes, READ_AHEAD))
        self._buffer, self._start = self.source.read(self.offset, ahead), self.offset

    def error(self, message: str) -> FormatError:
        return FormatError(f"{self.source.path}: {message}")


def read_gguf(path: Path, *, window: Window | None = None) -> GgufFile:
    """Read and check the header of the GGUF at `path`; no tensor data is read.

    With `window` the GGUF is what lies between these two offsets of the file.
    A tensor whose type this version does not know is listed under the name ``type N``; its bytes
    are all those up to the next tensor, padding included.
    Raises FormatError, or UnsupportedError for big-endian files and headers beyond the limits.
    """
    with explaining_pieces(path), SourceFile(path, window) as source:
        cursor = _Cursor(source)
        version, n_tensors, n_pairs = _read_counts(cursor)
        keys = _read_pairs(cursor, n_pairs)
        alignment = stated_alignment(keys, str(path))
        infos = [_read_tensor_info(cursor, index) for index in range(n_tensors)]
        _check_unique(cursor, [info.name for info in infos])
        data_start = -(-cursor.offset // alignment) * alignment
        tensors = _place(cursor, infos, alignment, data_start) if infos else ()
        if not infos and source.size > data_start:
            raise cursor.error(
                f"{source.size - data_start} bytes follow the header of a file without tensors"
                f"{_joined_hint(source, cursor.offset, data_start)}"
            )
        begin = source.begin
        if begin:
            tensors = tuple(replace(ref, offset=begin + ref.offset) for ref in tensors)
        data_start += begin
        return GgufFile(path, version, keys, tensors, alignment, data_start, source.size, (path,))


def _read_counts(cursor: _Cursor) -> tuple[int, int, int]:
    magic = cursor.take(4, "magic")
    if magic != MAGIC:
        raise cursor.error(f"magic is {magic!r}, expected {MAGIC!r}: not a GGUF file")
    version = cursor.integer("I", "version")
    if version not in VERSIONS:
        if int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS:
            raise UnsupportedError(f"{cursor.source.path}: big-endian GGUF is not supported")
        raise cursor.error(f"version is {version}, expected one of {VERSIONS}")
    n_tensors = cursor.integer("Q", "tensor count")
    n_pairs = cursor.integer("Q", "key-value count")
    for count, at, smallest, limit, field in (
        (n_pairs, 16, SMALLEST_PAIR, MAX_PAIRS, "key-value count"),
        (n_tensors, 8, SMALLEST_TENSOR_INFO, MAX_TENSORS, "tensor count"),
    ):
        if count > cursor.remaining // smallest or count > limit:
            raise cursor.error(
                f"{field} is {count} at offset {at}, but {cursor.remaining} bytes follow "
                f"(limit {limit})"
            )
    return version, n_tensors, n_pairs


def _read_pairs(cursor: _Cursor, count: int) -> tuple[KeyValue, ...]:
    keys: dict[str, KeyValue] = {}
    for index in range(count):
        at = cursor.offset
        encoded = cursor.string(f"name of key {index}")
        name = _name(cursor, encoded, f"key {index}", at)
        code = cursor.integer("I", f"type of key {name}")
        keys_before = len(keys)
        kind = _value_type(cursor, code, f"key {name}")
        keys[name] = KeyValue(name, kind, _read_value(cursor, kind, f"value of key {name}"))
        if len(keys) == keys_before:
            raise cursor.error(f"key {name} at offset {at} occurs twice")
    return tuple(keys.values())


def _name(cursor: _Cursor, encoded: bytes, what: str, at: int) -> str:
    if not encoded:
        raise cursor.error(f"{what} at offset {at} has an empty name")
    try:
        name = encoded.decode("utf-8")
    except UnicodeDecodeError:
        raise cursor.error(f"{what} at offset {at} has a name that is not UTF-8") from None
    if not name.isprintable():
        raise cursor.error(f"{what} at offset {at} has control characters in its name: {name!a}")
    return name


def _value_type(cursor: _Cursor, code: int, what: str) -> ValueType:
    try:
        return ValueType(code)
    except ValueError:
        raise cursor.error(
            f"{what} has value type {code} at offset {cursor.offset - 4}, expected 0 to 12"
        ) from None


def _read_value(cursor: _Cursor, kind: ValueType, field: str) -> bytes:
    if kind is ValueType.STRING:
        text = cursor.string(field)
        return len(text).to_bytes(8, "little") + text
    if kind is ValueType.ARRAY:
        return _read_array(cursor, field, 1)
    raw = cursor.take(SCALAR_BYTES[kind], field)
    if kind is ValueType.BOOL:
        _check_bools(cursor, raw, field)
    return raw


def _read_array(cursor: _Cursor, field: str, depth: int) -> bytes:
    if depth > MAX_ARRAY_DEPTH:
        raise cursor.error(
            f"{field} at offset {cursor.offset} nests arrays deeper than {MAX_ARRAY_DEPTH}"
        )
    code = cursor.integer("I", f"item type of {field}")
    kind = _value_type(cursor, code, f"array {field}")
    count = cursor.integer("Q", f"length of {field}")
    smallest = SCALAR_BYTES.get(kind, 12 if kind is ValueType.ARRAY else 8)
    if count > cursor.remaining // smallest:
        raise cursor.error(
            f"{field} has {count} items at offset {cursor.offset}, {cursor.remaining} bytes remain"
        )
    parts = [struct.pack("<IQ", code, count)]
    if kind is ValueType.STRING:
        parts.append(cursor.strings(count, field))
    elif kind is ValueType.ARRAY:
        if count > MAX_NESTED_ARRAYS:
            raise cursor.error(
                f"{field} nests {count} arrays at offset {cursor.offset}, "
                f"at most {MAX_NESTED_ARRAYS} are read"
            )
        parts += (_read_array(cursor, field, depth + 1) for _ in range(count))
    else:
        parts.append(cursor.take(count * SCALAR_BYTES[kind], field))
        if kind is ValueType.BOOL:
            _check_bools(cursor, parts[-1], field)
    return b"".join(parts)


def _check_bools(cursor: _Cursor, raw: bytes, field: str) -> None:
    if raw.translate(None, b"\x00\x01"):
        raise cursor.error(
            f"{field} before offset {cursor.offset} holds a bool that is neither 0 nor 1"
        )


def stated_alignment(keys: Iterable[KeyValue], where: str) -> int:
    """To what tensors are aligned in a file with these keys. Raises FormatError, naming `where`."""
    for key in keys:
        if key.name != "general.alignment":
            continue
        if key.type is not ValueType.UINT32:
            raise FormatError(
                f"{where}: general.alignment has type {key.type.name}, expected UINT32"
            )
        value = int(key.value)
        # llama.cpp accepts any power of two; below 8 tensors of 8-byte values would be unaligned.
        if value < 8 or value > MAX_ALIGNMENT or value & (value - 1):
            raise FormatError(
                f"{where}: general.alignment is {value}, "
                f"expected a power of two from 8 to {MAX_ALIGNMENT}"
            )
        return value
    return DEFAULT_ALIGNMENT


@dataclass(frozen=True)
class _TensorInfo:
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int | None


def _read_tensor_info(cursor: _Cursor, index: int) -> _TensorInfo:
    at = cursor.offset
    encoded = cursor.string(f"name of tensor {index}")
    if len(encoded) > MAX_NAME_BYTES:
        raise cursor.error(
            f"tensor {index} at offset {at} has a name of {len(encoded)} bytes, "
            f"at most {MAX_NAME_BYTES} fit"
        )
    name = _name(cursor, encoded, f"tensor {index}", at)
    n_dims = cursor.integer("I", f"dimension count of {name}")
    if not 1 <= n_dims <= MAX_DIMENSIONS:
        raise cursor.error(
            f"tensor {name} at offset {at} has {n_dims} dimensions, expected 1 to {MAX_DIMENSIONS}"
        )
    dims = [cursor.integer("Q", f"dimension {axis} of {name}") for axis in range(n_dims)]
    shape = tuple(reversed(dims))
    code = cursor.integer("I", f"type of {name}")
    offset = cursor.integer("Q", f"offset of {name}")
    elements = 1
    for dim in dims:
        elements *= dim
    if elements == 0 or elements >= 1 << 63:
        raise cursor.error(
            f"tensor {name} at offset {at} has shape {shape}, expected 1 to 2^63-1 elements"
        )
    number = type_by_id(code)
    if not number.is_known:
        return _TensorInfo(name, number.name, shape, offset, None)
    if not number.fits(shape):
        raise cursor.error(
            f"tensor {name} at offset {at} has rows of {shape[-1]} values, "
            f"{number.name} needs a multiple of {number.block_values}"
        )
    return _TensorInfo(name, number.name, shape, offset, number.nbytes(shape))


def _check_unique(cursor: _Cursor, names: list[str]) -> None:
    twice = first_repeated(names)
    if twice is not None:
        raise cursor.error(f"tensor {twice} occurs twice")


def _place(
    cursor: _Cursor, infos: list[_TensorInfo], alignment: int, data_start: int
) -> tuple[TensorRef, ...]:
    """Absolute positions; the tensors must tile the data section, padding aside."""
    path, end = cursor.source.path, cursor.source.size
    by_offset = sorted(infos, key=lambda info: info.offset)
    expected = 0
    sizes: dict[str, int] = {}
    for index, info in enumerate(by_offset):
        if info.offset % alignment:
            raise cursor.error(
                f"tensor {info.name} has offset {info.offset}, not a multiple of {alignment}"
            )
        if info.offset != expected:
            how = "overlaps the tensor before it" if info.offset < expected else "leaves a hole"
            raise cursor.error(
                f"tensor {info.name} has offset {info.offset}, expected {expected}: {how}"
            )
        nbytes = info.nbytes
        if nbytes is None:
            is_last = index + 1 == len(by_offset)
            following = end - data_start if is_last else by_offset[index + 1].offset
            nbytes = _gap(cursor, info, following, alignment)
        if data_start + info.offset + nbytes > end:
            raise cursor.error(
                f"tensor {info.name} ends at {data_start + info.offset + nbytes}, "
                f"the file at {end}: truncated"
            )
        sizes[info.name] = nbytes
        expected = -(-(info.offset + nbytes) // alignment) * alignment
    if end > data_start + expected:
        ends = (max(data_start + i.offset + sizes[i.name] for i in infos), data_start + expected)
        raise cursor.error(
            f"{end - data_start - expected} bytes follow the last tensor, "
            f"which ends at {data_start + expected}{_joined_hint(cursor.source, *ends)}"
        )
    return tuple(
        TensorRef(i.name, i.dtype, i.shape, path, data_start + i.offset, sizes[i.name])
        for i in infos
    )


def _joined_hint(source: SourceFile, *ends: int) -> str:
    """What to add to an error about bytes after a GGUF that ends at one of `ends`, with or without
    padding: whether they are another GGUF."""
    for end in ends:
        if end + len(MAGIC) <= source.size and source.read(end, len(MAGIC)) == MAGIC:
            return (
                f"; another GGUF begins at {end}: looks like GGUF parts joined with cat; use the "
                "parts as they are, or join them with gguf-split --merge"
            )
    return ""


def _gap(cursor: _Cursor, info: _TensorInfo, following: int, alignment: int) -> int:
    """The size of a tensor of unknown type: all the bytes before offset `following`."""
    nbytes = following - info.offset
    # Writers pad behind the last tensor too: an end elsewhere may be a cut.
    if nbytes <= 0 or nbytes % alignment:
        raise UnsupportedError(
            f"{cursor.source.path}: tensor {info.name} has unknown {info.dtype}, and "
            f"{nbytes} bytes follow its offset: its size cannot be told"
        )
    return nbytes
