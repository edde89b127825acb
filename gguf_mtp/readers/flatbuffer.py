"""FlatBuffers read in place with every offset checked: for `.litertlm` headers and TFLite models.

Source: the FlatBuffers documentation, "Internals". Nothing is read that is not asked for, and what
is asked for is charged against a budget, as tables may point to the same bytes many times over.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from gguf_mtp.errors import FormatError
from gguf_mtp.readers.source import SourceFile

PAGE_BYTES = 1 << 16
CACHED_PAGES = 64
# What a reader may take out of a buffer, in bytes: a few times its size. Official writers share
# next to nothing; a hostile one could let a million vectors overlap.
BUDGET_FACTOR = 4
BUDGET_FLOOR = 1 << 16
MAX_BUFFER_BYTES = (1 << 31) - 1
# Google's largest graphs have some tens of thousands.
MAX_TABLES = 1 << 18


class Flatbuffer:
    """The bytes from `begin` up to `end` of `source`, a buffer whose root offset is at `begin`.

    `where` names it in messages. Raises FormatError for anything out of range.
    """

    def __init__(self, source: SourceFile, begin: int, end: int, where: str) -> None:
        self.where = where
        self._source = source
        self._begin = begin
        # Offsets are signed 32-bit numbers at most; bytes beyond are somebody else's.
        self.size = min(end - begin, MAX_BUFFER_BYTES)
        self._budget = BUDGET_FACTOR * self.size + BUDGET_FLOOR
        self._tables = 0
        self._page = lru_cache(CACHED_PAGES)(self._read_page)

    def error(self, message: str) -> FormatError:
        return FormatError(f"{self.where}: {message}")

    def _read_page(self, index: int) -> bytes:
        first = index * PAGE_BYTES
        return self._source.read(self._begin + first, min(PAGE_BYTES, self.size - first))

    def bytes_at(self, at: int, nbytes: int, what: str) -> bytes:
        """`nbytes` bytes at `at`, which `what` describes."""
        if at < 0 or nbytes > self.size - at:
            raise self.error(f"{what} at offset {at} needs {nbytes} bytes, the end is {self.size}")
        self._budget -= nbytes
        if self._budget < 0:
            raise self.error(f"{what} at offset {at}: too much of the buffer is used twice")
        index, first = divmod(at, PAGE_BYTES)
        if first + nbytes <= PAGE_BYTES:
            return self._page(index)[first : first + nbytes]
        return self._source.read(self._begin + at, nbytes)

    def count_table(self) -> None:
        self._tables += 1
        if self._tables > MAX_TABLES:
            raise self.error(f"more than {MAX_TABLES} tables")

    def number(self, at: int, code: str, what: str) -> int:
        return int(self.scalar(at, code, what))

    def scalar(self, at: int, code: str, what: str) -> int | float | bool:
        value: int | float | bool = struct.unpack(
            "<" + code, self.bytes_at(at, struct.calcsize("<" + code), what)
        )[0]
        return value

    def root(self, what: str) -> "Table":
        return Table(self, self.number(0, "I", f"root of {what}"), what)


@dataclass(frozen=True)
class Span:
    """`count` items in the buffer, from `at`."""

    at: int
    count: int


class Table:
    """One table; fields go by slot, as in the schema's order. `what` names it in messages."""

    def __init__(self, buffer: Flatbuffer, at: int, what: str) -> None:
        self.buffer = buffer
        self.what = what
        self._at = at
        buffer.count_table()
        vtable = at - buffer.number(at, "i", f"{what}: vtable offset")
        size = buffer.number(vtable, "H", f"{what}: vtable")
        table_size = buffer.number(vtable + 2, "H", f"{what}: vtable")
        if size < 4 or size % 2 or table_size < 4:
            raise buffer.error(
                f"{what}: vtable at offset {vtable} says {size} and {table_size} bytes, "
                "expected 4 or more"
            )
        raw = buffer.bytes_at(vtable + 4, size - 4, f"{what}: vtable")
        self._slots = struct.unpack(f"<{len(raw) // 2}H", raw)
        self._size = table_size
        buffer.bytes_at(at, table_size, what)

    def _field(self, slot: int, nbytes: int, name: str) -> int | None:
        """Where field `slot` stands, None where it is absent."""
        offset = self._slots[slot] if slot < len(self._slots) else 0
        if offset == 0:
            return None
        if offset < 4 or offset + nbytes > self._size:
            raise self.buffer.error(
                f"{self.what}: {name} at byte {offset} is outside of a table of {self._size}"
            )
        return self._at + offset

    def integer(self, slot: int, code: str, name: str, default: int = 0) -> int:
        """A number or bool of struct format `code`."""
        value = self.scalar(slot, code, name)
        return default if value is None else int(value)

    def scalar(self, slot: int, code: str, name: str) -> int | float | bool | None:
        """A number or bool of struct format `code`, None where the field is absent."""
        at = self._field(slot, struct.calcsize("<" + code), name)
        return None if at is None else self.buffer.scalar(at, code, f"{self.what}: {name}")

    def _target(self, slot: int, name: str) -> int | None:
        at = self._field(slot, 4, name)
        if at is None:
            return None
        offset = self.buffer.number(at, "I", f"{self.what}: {name}")
        # Offsets point forward, past themselves: that is what rules out cycles.
        if offset < 4:
            raise self.buffer.error(f"{self.what}: {name} has offset {offset}, expected 4 or more")
        return at + offset

    def table(self, slot: int, name: str) -> "Table | None":
        at = self._target(slot, name)
        return None if at is None else Table(self.buffer, at, f"{self.what}: {name}")

    def span(self, slot: int, item_bytes: int, name: str) -> Span:
        """A vector's place, without its items; empty where the field is absent."""
        at = self._target(slot, name)
        if at is None:
            return Span(0, 0)
        count = self.buffer.number(at, "I", f"{self.what}: length of {name}")
        if count > (self.buffer.size - at - 4) // item_bytes:
            raise self.buffer.error(
                f"{self.what}: {name} at offset {at} has {count} items of {item_bytes} bytes, "
                f"the end is {self.buffer.size}"
            )
        return Span(at + 4, count)

    def vector(self, slot: int, dtype: str, name: str) -> npt.NDArray[np.generic]:
        """A vector of numbers of numpy type `dtype`."""
        item_bytes = np.dtype(dtype).itemsize
        span = self.span(slot, item_bytes, name)
        raw = self.buffer.bytes_at(span.at, span.count * item_bytes, f"{self.what}: {name}")
        return np.frombuffer(raw, np.dtype(dtype).newbyteorder("<"))

    def integers(self, slot: int, name: str, dtype: str = "i4") -> tuple[int, ...]:
        return tuple(int(value) for value in self.vector(slot, dtype, name).tolist())

    def string(self, slot: int, name: str) -> str | None:
        """UTF-8 text, what is not UTF-8 as escapes; None where the field is absent."""
        span = self.span(slot, 1, name)
        if span.at == 0:
            return None
        raw = self.buffer.bytes_at(span.at, span.count, f"{self.what}: {name}")
        return raw.decode("utf-8", "backslashreplace")

    def tables(self, slot: int, name: str, item: str) -> Iterator["Table"]:
        """The tables of a vector of them; `item` is what one is called."""
        span = self.span(slot, 4, name)
        for index in range(span.count):
            at = span.at + 4 * index
            what = f"{item} {index}"
            offset = self.buffer.number(at, "I", what)
            if offset < 4:
                raise self.buffer.error(f"{what} has offset {offset}, expected 4 or more")
            yield Table(self.buffer, at + offset, what)
