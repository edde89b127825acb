"""The footer of a tail file: where, behind a base GGUF's own bytes, a complete drafter GGUF lies.

Source: this project's format document, layout "tail", format version 1.
"""

import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

from gguf_mtp.errors import FormatError, UnsupportedError
from gguf_mtp.readers.source import SourceFile, Window

FOOTER_MAGIC = b"GGUF-MTP"
# The same fields at the very end of a file to which heads are just being appended.
PENDING_MAGIC = b"MTP-OPEN"
VERSION = 1
PAGE = 4096
PENDING_ALIGNMENT = 128
# magic, base's length, drafter's offset and length, SHA-256, version; then the CRC-32 of these.
_FIELDS = struct.Struct("<8sQQQ32sI")
_CRC = struct.Struct("<I")
FOOTER_BYTES = _FIELDS.size + _CRC.size


@dataclass(frozen=True)
class Footer:
    """Lengths in bytes and the drafter's SHA-256; `pending` while it is being appended."""

    base_bytes: int
    heads_bytes: int
    sha256: bytes = bytes(32)
    pending: bool = False

    @property
    def heads_offset(self) -> int:
        return heads_offset(self.base_bytes)

    @property
    def total_bytes(self) -> int:
        """The finished file's length."""
        return self.heads_offset + self.heads_bytes + FOOTER_BYTES

    @property
    def pending_offset(self) -> int:
        """Where the footer stands while it is pending: behind the finished file, within one sector
        and page, so that it is there whole or not at all."""
        return -(-self.total_bytes // PENDING_ALIGNMENT) * PENDING_ALIGNMENT

    @property
    def base_window(self) -> Window:
        return 0, self.base_bytes

    @property
    def heads_window(self) -> Window:
        return self.heads_offset, self.heads_offset + self.heads_bytes

    def encode(self) -> bytes:
        """The `FOOTER_BYTES` at the end of a file."""
        magic = PENDING_MAGIC if self.pending else FOOTER_MAGIC
        fields = _FIELDS.pack(
            magic, self.base_bytes, self.heads_offset, self.heads_bytes, self.sha256, VERSION
        )
        return fields + _CRC.pack(zlib.crc32(fields))


def heads_offset(base_bytes: int) -> int:
    """Where the drafter begins: at the first page boundary behind the base."""
    return -(-base_bytes // PAGE) * PAGE


def read_footer(path: Path) -> Footer | None:
    """The footer at the end of `path`, None where there is none (a plain file of any kind).

    A footer that is `pending` says only what an interrupted attach meant to do. Raises FormatError
    for a damaged footer, UnsupportedError for one of another version.
    """
    with SourceFile(path) as source:
        if source.size < FOOTER_BYTES:
            return None
        at = source.size - FOOTER_BYTES
        raw = source.read(at, FOOTER_BYTES)
        if raw[:8] not in (FOOTER_MAGIC, PENDING_MAGIC):
            return None
        (checksum,) = _CRC.unpack_from(raw, _FIELDS.size)
        if checksum != zlib.crc32(raw[: _FIELDS.size]):
            raise FormatError(
                f"{path}: footer at offset {at}: checksum is {checksum:08x}, "
                f"expected {zlib.crc32(raw[: _FIELDS.size]):08x}: damaged"
            )
        magic, base_bytes, offset, length, digest, version = _FIELDS.unpack_from(raw)
        if version != VERSION:
            raise UnsupportedError(
                f"{path}: footer at offset {at}: version {version}, expected {VERSION}"
            )
        footer = Footer(base_bytes, length, digest, magic == PENDING_MAGIC)
        _check(source, footer, at, offset)
        return footer


def _check(source: SourceFile, footer: Footer, at: int, offset: int) -> None:
    """Raise FormatError unless the three parts follow each other, with zeros as padding."""
    where = f"{source.path}: footer at offset {at}"
    if offset != footer.heads_offset:
        raise FormatError(
            f"{where}: heads at {offset}, expected {footer.heads_offset} "
            f"behind a base of {footer.base_bytes} bytes"
        )
    end = footer.pending_offset if footer.pending else footer.heads_window[1]
    if end != at:
        raise FormatError(
            f"{where}: heads of {footer.heads_bytes} bytes end at {end}, expected {at}"
        )
    if any(source.read(footer.base_bytes, offset - footer.base_bytes)):
        raise FormatError(f"{where}: the padding before the heads is not zero")


def require_complete(path: Path, footer: Footer | None) -> None:
    """Raise FormatError where `footer` says that attaching heads to `path` was interrupted."""
    if footer is not None and footer.pending:
        raise FormatError(
            f"{path}: attaching heads was interrupted; attach again, or detach to get the base back"
        )


def is_tail(path: Path) -> bool:
    """Whether the file at `path` ends in heads. Raises what `read_footer` raises."""
    return os.path.isfile(path) and read_footer(path) is not None
