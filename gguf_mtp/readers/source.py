"""A source file read with pread: never mapped, so that truncation is an error and not a SIGBUS.

Source: the Git LFS specification (pointers); ``split(1)`` and what publishers name its pieces.
"""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from gguf_mtp import system
from gguf_mtp.closing import Closing
from gguf_mtp.errors import FormatError

PIECE_BYTES = 1 << 20

# How the file begins that Git keeps in place of a large one, and how long it is at most.
LFS_POINTER = b"version https://git-lfs.github.com/spec/v"
MAX_POINTER_BYTES = 1024
# A raw piece of a file by its name: m.gguf.part1of2, m.gguf-split-a, m.gguf.001, m.ggufaa.
PIECE_NAME = re.compile(
    r"(?P<whole>.+?)(\.part[-_]?(\d+([-_]?of[-_]?\d+)?|[a-z]{1,3})|[.-]split-(\d+|[a-z]{1,3}))"
    r"|(?P<model>.+\.(gguf|safetensors))\.?(\d{1,3}|[a-z]{2})",
    re.IGNORECASE,
)

# Where in a file something lies: its first byte and the one behind its last.
Window = tuple[int, int]


def name_as_text(path: Path) -> str:
    """The last name of `path` as text that a file can hold: what is not UTF-8 becomes U+FFFD."""
    return os.fsencode(path.name).decode("utf-8", "replace")


@contextmanager
def explaining_pieces(path: Path) -> Iterator[None]:
    """Where reading `path` fails within, and its name is that of a raw piece, say that instead."""
    try:
        yield
    except FormatError:
        match = PIECE_NAME.fullmatch(path.name)
        if match is None:
            raise
        whole = match["whole"] or match["model"]
        raise FormatError(
            f"{path}: looks like a piece of {whole}, a file cut into raw pieces; join all of them "
            f"in order with cat into {whole} and give that"
        ) from None


@dataclass(frozen=True)
class TensorRef:
    """A tensor in a file. `shape` has the outermost dimension first; `dtype` is the file format's
    own name of the number type; `offset` counts from the start of `file`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int


class SourceFile(Closing):
    """An open regular file of known size; every read is checked against it.

    With `window`, begin and end, it is as if the file were those bytes alone: `size` is theirs and
    offsets count from begin. Raises FormatError when the path is no readable regular file, when it
    is a Git LFS pointer, or when fewer bytes come back than the size promised.
    """

    def __init__(self, path: Path, window: Window | None = None) -> None:
        self.path = path
        try:
            self.fd = os.open(path, system.READ)
        except OSError as error:
            raise FormatError(f"{path}: cannot open: {error.strerror}") from error
        except ValueError:
            raise FormatError(f"{path}: no file can have this name") from None
        status = os.fstat(self.fd)
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise FormatError(f"{path}: not a regular file")
        self.begin, end = window or (0, status.st_size)
        if not 0 <= self.begin <= end <= status.st_size:
            self.close()
            raise FormatError(f"{path}: bytes {self.begin} to {end} of {status.st_size} wanted")
        self.size = end - self.begin
        self._identity = _identity(status)
        if status.st_size <= MAX_POINTER_BYTES and self._is_lfs_pointer():
            self.close()
            raise FormatError(
                f"{path}: is a Git LFS pointer, not the file; run `git lfs pull` in that folder or "
                "download the file again"
            )

    def _is_lfs_pointer(self) -> bool:
        start = bytearray(len(LFS_POINTER))
        try:
            system.read_at(self.fd, memoryview(start), 0)
        except OSError:
            return False  # reported when it is read
        return start == LFS_POINTER

    def close(self) -> None:
        with suppress(OSError):  # what was read was read
            os.close(self.fd)

    def read(self, offset: int, nbytes: int) -> bytes:
        """Exactly `nbytes` bytes from `offset`."""
        buffer = bytearray(nbytes)
        self.read_into(memoryview(buffer), offset)
        return bytes(buffer)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` from `offset`."""
        done = 0
        while done < len(buffer):
            try:
                count = system.read_at(self.fd, buffer[done:], self.begin + offset + done)
            except OSError as error:
                raise FormatError(
                    f"{self.path}: read error at offset {offset + done}: {error.strerror}"
                ) from error
            if count == 0:
                raise FormatError(
                    f"{self.path}: file ends at {offset + done}, "
                    f"expected {offset + len(buffer)} bytes or more (truncated while reading?)"
                )
            done += count

    def pieces(self) -> Iterator[bytes]:
        """All of the file, front to back, at most `PIECE_BYTES` at a time."""
        for begin in range(0, self.size, PIECE_BYTES):
            yield self.read(begin, min(PIECE_BYTES, self.size - begin))

    def check_unchanged(self) -> None:
        """Raise FormatError when the file was modified since it was opened."""
        if _identity(os.fstat(self.fd)) != self._identity:
            raise FormatError(f"{self.path}: file changed while it was read")


def _identity(status: os.stat_result) -> tuple[int, int, int, int]:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
