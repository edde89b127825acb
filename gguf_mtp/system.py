"""Where Linux, macOS and Windows differ for a program that reads and writes large files.

Source: Python's ``os``, ``fcntl`` and ``msvcrt``; macOS's ``fcntl(2)`` on ``F_FULLFSYNC``;
Microsoft's "Naming Files, Paths, and Namespaces". On Linux a function is the one call of its name.
"""

import contextlib
import os
import re
import threading
import unicodedata
from importlib import import_module
from pathlib import Path

WINDOWS = os.name == "nt"
# No flag where the system has none. Windows would turn newlines in data into two bytes.
CLOSE_ON_EXEC = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOINHERIT", 0)
BINARY = getattr(os, "O_BINARY", 0)
NO_WAITING = getattr(os, "O_NONBLOCK", 0)  # opening a pipe that nobody writes to
READ = os.O_RDONLY | CLOSE_ON_EXEC | BINARY | NO_WAITING
READ_WRITE = os.O_RDWR | CLOSE_ON_EXEC | BINARY | NO_WAITING
CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | CLOSE_ON_EXEC | BINARY

_RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])( *(\..*)?)", re.I)
_FORBIDDEN = re.compile(r'[<>:"|?*\x00-\x1f]')
# Windows locks bytes, and those that are locked cannot be read: one that no model has.
_LOCKED_BYTE = 1 << 42
_seeking = threading.Lock()


def read_at(fd: int, buffer: memoryview, offset: int) -> int:
    """Bytes read from `offset` into `buffer`, 0 at the end; safe from several threads."""
    if hasattr(os, "preadv"):
        return os.preadv(fd, [buffer], offset)
    with _seeking:
        os.lseek(fd, offset, os.SEEK_SET)
        data = os.read(fd, len(buffer))
    buffer[: len(data)] = data
    return len(data)


def write_at(fd: int, data: memoryview, offset: int) -> int:
    """Bytes of `data` written at `offset`; safe from several threads."""
    if hasattr(os, "pwrite"):
        return os.pwrite(fd, data, offset)
    with _seeking:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.write(fd, data)


def sync(fd: int) -> None:
    """Put a file's bytes on the medium. macOS's fsync leaves them in the drive's own memory."""
    with contextlib.suppress(ImportError, AttributeError, OSError):
        fcntl = import_module("fcntl")
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
        return
    os.fsync(fd)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable. Windows opens no directories: NTFS keeps a journal."""
    if WINDOWS:
        return
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync(directory)
    finally:
        os.close(directory)


def lock(fd: int) -> None:
    """Keep other processes from locking the file of `fd` until it is closed. Raises OSError."""
    if WINDOWS:
        msvcrt = import_module("msvcrt")
        os.lseek(fd, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        return
    fcntl = import_module("fcntl")
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def wrong_name(name: str) -> str:
    """Why Windows can have no file `name`, or has another one under it; empty where it can.

    A colon names a hidden stream of a file, ``con.gguf`` the console, and a dot at the end is lost.
    """
    if _FORBIDDEN.search(name):
        return "has a character that Windows allows in no name"
    if _RESERVED.fullmatch(name):
        return "is a name that Windows keeps for devices"
    if name != name.rstrip(". "):
        return "ends in a dot or space, which Windows leaves off"
    return ""


def place(path: Path) -> tuple[object, str]:
    """The same for two paths, of files that need not exist, that may be one file on some system:
    its directory under any spelling, and its name where upper and lower case are one."""
    try:
        status = os.stat(path.parent)
        directory: object = status.st_dev, status.st_ino
    except OSError:
        directory = path.parent.absolute()
    return directory, unicodedata.normalize(
        "NFC", unicodedata.normalize("NFC", path.name).casefold()
    )
