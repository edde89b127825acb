"""The `.litertlm` container: magic, version, a FlatBuffers header, sections on 16 KiB boundaries.

A bare `.tflite`, one section that an unpacker wrote to a file of its own, is read as a package of
that section. Source: LiteRT-LM ``schema/core/litertlm_header_schema.fbs`` and its official builder.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf_mtp.errors import FormatError, UnsupportedError
from gguf_mtp.readers.flatbuffer import Flatbuffer, Table
from gguf_mtp.readers.other_files import other_file
from gguf_mtp.readers.source import SourceFile
from gguf_mtp.readers.tflite import IDENTIFIER

MAGIC = b"LITERTLM"
MAJOR_VERSION = 1
PREFIX_BYTES = 32
BLOCK_BYTES = 16 * 1024
# The official C++ reader's limit.
MAX_HEADER_BYTES = 16 * 1024
# What is read to see which kind of file it is.
START_BYTES = 16
TFLITE_MODEL = "TFLiteModel"
TFLITE_WEIGHTS = "TFLiteWeights"
SP_TOKENIZER = "SP_Tokenizer"
HF_TOKENIZER = "HF_Tokenizer_Zlib"
KINDS = {
    1: "GenericBinaryData",
    2: "Deprecated",
    3: TFLITE_MODEL,
    4: SP_TOKENIZER,
    5: "LlmMetadataProto",
    6: HF_TOKENIZER,
    7: TFLITE_WEIGHTS,
    8: "EmbeddingMetadataProto",
    9: "ExecutorMetadataProto",
    10: "TtsMetadataProto",
    11: "AsrMetadataProto",
}
STRING_VALUE = 9
# Value types that are tables of one number; in early versions they were structs.
NUMBER_CODES = dict(zip((*range(1, 9), 10, 11, 12), "BbHhIif?Qqd", strict=True))
MODEL_TYPE = "model_type"


@dataclass(frozen=True)
class Section:
    """Bytes `begin` up to `end` of the file, and what the header says of them. `kind` is the
    format's own name of the data type, ``type N`` where it is a newer one."""

    index: int
    kind: str
    begin: int
    end: int
    items: dict[str, Any]

    @property
    def nbytes(self) -> int:
        return self.end - self.begin

    @property
    def model_type(self) -> str:
        """Which of a package's models this is (part of); lower case, "" where nothing is said."""
        value = self.items.get(MODEL_TYPE)
        return value.lower() if isinstance(value, str) else ""


@dataclass(frozen=True)
class LitertlmFile:
    """A package's header: its version, what it says of itself, its sections in order.

    `version` is None for a bare `.tflite`, whose only section is the whole file.
    """

    path: Path
    size: int
    version: tuple[int, int, int] | None
    metadata: dict[str, Any]
    sections: tuple[Section, ...]

    @property
    def version_text(self) -> str | None:
        """The version with dots, None for a bare `.tflite`."""
        return None if self.version is None else ".".join(str(part) for part in self.version)

    def find(self, kind: str, model_type: str) -> tuple[Section, ...]:
        """The sections of `kind` that belong to the model `model_type`."""
        return tuple(
            section
            for section in self.sections
            if section.kind == kind and section.model_type == model_type
        )


def is_litertlm(start: bytes) -> bool:
    """Whether a file that begins with `start` is a package."""
    return start.startswith(MAGIC)


def is_tflite(start: bytes) -> bool:
    """Whether a file that begins with `start` is a TFLite model."""
    return start[4:8] == IDENTIFIER


def first_bytes(path: Path) -> bytes:
    """The first `START_BYTES` bytes of the file at `path`, fewer where it is shorter."""
    with SourceFile(path) as source:
        return source.read(0, min(START_BYTES, source.size))


def read_package(path: Path) -> LitertlmFile:
    """The package at `path`, or the bare `.tflite` there as a package of one section.

    Raises FormatError, and UnsupportedError where the file is of another kind that is known.
    """
    start = first_bytes(path)
    if is_tflite(start):
        with SourceFile(path) as source:
            whole = Section(0, TFLITE_MODEL, 0, source.size, {})
            return LitertlmFile(path, source.size, None, {}, (whole,))
    other = other_file(start)
    if other is not None:
        raise UnsupportedError(f"{path}: is {other}")
    return read_litertlm(path)


def read_litertlm(path: Path) -> LitertlmFile:
    """Read and check the header at `path`; no section is read. Raises FormatError, and
    UnsupportedError for another major version."""
    with SourceFile(path) as source:
        if source.size < PREFIX_BYTES:
            raise FormatError(
                f"{path}: {source.size} bytes, a .litertlm header needs {PREFIX_BYTES}"
            )
        prefix = struct.unpack("<8s3IIQ", source.read(0, PREFIX_BYTES))
        magic, version, reserved, end = prefix[0], prefix[1:4], prefix[4], prefix[5]
        if magic != MAGIC:
            raise FormatError(
                f"{path}: begins with {magic!r}, expected {MAGIC!r} (a .litertlm package) or "
                f"{IDENTIFIER!r} at byte 4 (a .tflite)"
            )
        if version[0] != MAJOR_VERSION:
            raise UnsupportedError(
                f"{path}: container version {version[0]}.{version[1]}.{version[2]}, "
                f"expected {MAJOR_VERSION}.x"
            )
        if reserved:
            raise FormatError(f"{path}: bytes 20 to 24 hold {reserved}, expected 0")
        if not PREFIX_BYTES + 4 <= end <= min(source.size, MAX_HEADER_BYTES):
            raise FormatError(
                f"{path}: header end is {end}, expected {PREFIX_BYTES + 4} to "
                f"{min(source.size, MAX_HEADER_BYTES)}"
            )
        buffer = Flatbuffer(source, PREFIX_BYTES, end, f"{path}: header")
        root = buffer.root("metadata")
        system = root.table(0, "system_metadata")
        listing = root.table(1, "section_metadata")
        if listing is None:
            raise buffer.error("section_metadata is missing")
        sections = tuple(
            _section(index, item)
            for index, item in enumerate(listing.tables(0, "objects", "section"))
        )
        _check_places(path, sections, end, source.size)
        metadata = {} if system is None else _items(system, 0)
        return LitertlmFile(path, source.size, version, metadata, sections)


def _section(index: int, table: Table) -> Section:
    code = table.integer(3, "B", "data_type")
    return Section(
        index,
        KINDS.get(code, f"type {code}"),
        table.integer(1, "Q", "begin_offset"),
        table.integer(2, "Q", "end_offset"),
        _items(table, 0),
    )


def _items(table: Table, slot: int) -> dict[str, Any]:
    """Key-value pairs; a value of a type that is not known is None."""
    values: dict[str, Any] = {}
    for item in table.tables(slot, "items", f"{table.what}: item"):
        key = item.string(0, "key")
        if not key:
            raise table.buffer.error(f"{item.what} has no key")
        if key in values:
            raise table.buffer.error(f"{table.what}: key {key!a} occurs twice")
        values[key] = _value(item, f"value of {key!a}")
    return values


def _value(item: Table, name: str) -> Any:
    code = item.integer(1, "B", f"type of {name}")
    if code != STRING_VALUE and code not in NUMBER_CODES:
        return None
    if code == STRING_VALUE:
        held = item.table(2, name)
        return None if held is None else held.string(0, name)
    try:
        number = item.table(2, name)
        return None if number is None else number.scalar(0, NUMBER_CODES[code], name)
    except FormatError:
        return None


def _check_places(path: Path, sections: tuple[Section, ...], header_end: int, size: int) -> None:
    """Sections are within the file, behind the header, on block boundaries and apart."""
    previous = header_end
    for section in sorted(sections, key=lambda section: section.begin):
        where = f"{path}: section {section.index} ({section.kind})"
        if section.begin > section.end:
            raise FormatError(f"{where} begins at {section.begin} and ends at {section.end}")
        if section.begin % BLOCK_BYTES:
            raise FormatError(
                f"{where} begins at {section.begin}, expected a multiple of {BLOCK_BYTES}"
            )
        if section.end > size:
            raise FormatError(f"{where} ends at {section.end}, the file at {size}: truncated")
        if section.begin < previous:
            raise FormatError(
                f"{where} begins at {section.begin}, what is before it ends at {previous}: overlap"
            )
        previous = section.end
