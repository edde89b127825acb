"""An output file that appears complete or not at all: temporary name, fsync, rename, fsync."""

import errno
import os
import secrets
import stat
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from gguf_mtp.errors import OutputError

TEMP_SUFFIX = ".gguf-mtp-partial"


def check_output(path: Path, inputs: Iterable[Path], *, force: bool, needed: int) -> None:
    """Refuse, before any weight is read, an output that could not or must not be written.

    Raises OutputError: the directory is missing, read-only or too full for `needed` bytes; `path`
    is one of `inputs` under any name; it exists (`force` allows to replace regular files).
    """
    directory = path.parent
    if not directory.is_dir():
        raise OutputError(f"{path}: directory {directory} does not exist")
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        status = None
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror}") from error
    if status is not None:
        _check_existing(path, status, inputs, force)
    if not os.access(directory, os.W_OK | os.X_OK):
        raise OutputError(f"{path}: directory {directory} is not writable")
    room = os.statvfs(directory)
    free = room.f_bavail * room.f_frsize
    if needed > free:
        raise OutputError(f"{path}: needs {needed} bytes, {free} are free on its file system")


def _check_existing(
    path: Path, status: os.stat_result, inputs: Iterable[Path], force: bool
) -> None:
    if stat.S_ISLNK(status.st_mode):
        try:
            status = os.stat(path)
        except OSError:
            raise OutputError(f"{path}: is a dangling symbolic link") from None
    for other in inputs:
        if os.path.samestat(status, os.stat(other)):
            raise OutputError(f"{path}: is also the input {other}")
    if stat.S_ISDIR(status.st_mode):
        raise OutputError(f"{path}: is a directory")
    if not stat.S_ISREG(status.st_mode):
        raise OutputError(f"{path}: is not a regular file")
    if not force:
        raise OutputError(f"{path}: exists (--force replaces it)")


class OutputFile:
    """A temporary file beside `path`, removed unless `publish` has moved it there."""

    def __init__(self, path: Path, nbytes: int) -> None:
        self.path = path
        self.temp = path.with_name(f".{path.name[:180]}.{secrets.token_hex(6)}{TEMP_SUFFIX}")
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self.fd = os.open(self.temp, flags, 0o666)
            os.ftruncate(self.fd, nbytes)
        except OSError as error:
            self._remove()
            raise OutputError(f"{path}: cannot make {nbytes} bytes: {error.strerror}") from error
        except BaseException:
            # A signal's exception, before there is anything to enter.
            self._remove()
            raise
        self._open = True

    def __enter__(self) -> "OutputFile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.discard()

    def write(self, data: memoryview, offset: int) -> None:
        """All of `data` at `offset`; safe from several threads."""
        done = 0
        while done < len(data):
            try:
                done += os.pwrite(self.fd, data[done:], offset + done)
            except OSError as error:
                raise self._failure("write", error, f" at offset {offset + done}") from error

    def sync(self) -> None:
        """Put the bytes on the medium; from here on a power cut cannot lose them."""
        try:
            os.fsync(self.fd)
        except OSError as error:
            raise self._failure("fsync", error) from error

    def publish(self) -> None:
        """Close the file and give it its name, durably."""
        self._open = False
        try:
            os.close(self.fd)
            os.replace(self.temp, self.path)
        except OSError as error:
            self._remove()
            raise self._failure("rename", error) from error
        directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        except OSError as error:
            raise self._failure("fsync of the directory", error) from error
        finally:
            os.close(directory)

    def discard(self) -> None:
        """Remove the temporary file, if it has not been published."""
        if self._open:
            self._open = False
            os.close(self.fd)
            self._remove()

    def _remove(self) -> None:
        if os.path.lexists(self.temp):
            os.unlink(self.temp)

    def _failure(self, what: str, error: OSError, where: str = "") -> OutputError:
        if error.errno == errno.ENOSPC:
            room = os.statvfs(self.path.parent)
            free = room.f_bavail * room.f_frsize
            return OutputError(f"{self.path}: {what} failed{where}: disk full ({free} bytes free)")
        return OutputError(f"{self.path}: {what} failed{where}: {error.strerror}")
