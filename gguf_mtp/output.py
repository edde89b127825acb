"""Output files: one that appears complete or not at all (temporary name, fsync, rename, fsync),
and one that gets a tail in place without its own bytes being touched."""

import errno
import hashlib
import os
import secrets
import shutil
import stat
import weakref
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from gguf_mtp import system
from gguf_mtp.closing import Closing
from gguf_mtp.errors import OutputError
from gguf_mtp.readers.tail import Footer, read_footer

TEMP_SUFFIX = ".gguf-mtp-partial"
READ_BYTES = 1 << 20


def check_output(path: Path, inputs: Iterable[Path], *, force: bool, needed: int) -> None:
    """Refuse, before any weight is read, an output that could not or must not be written.

    Raises OutputError: the directory is missing, read-only or too full for `needed` bytes; `path`
    is one of `inputs` under any name; it exists (`force` allows to replace regular files); the
    system can have no file of that name.
    """
    directory = path.parent
    if not directory.is_dir():
        raise OutputError(f"{path}: directory {directory} does not exist")
    if system.WINDOWS and (reason := system.wrong_name(path.name)):
        raise OutputError(f"{path}: {reason}; choose another")
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
    free = free_bytes(directory)
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


class Target(Closing):
    """A file that is being written; closing it undoes what is not finished."""

    path: Path
    fd: int
    written = 0  # bytes, about: several threads count

    def write(self, data: memoryview, offset: int) -> None:
        """All of `data` at `offset`; safe from several threads."""
        done = 0
        while done < len(data):
            try:
                done += system.write_at(self.fd, data[done:], offset + done)
            except OSError as error:
                raise self._failure("write", error, f" at offset {offset + done}") from error
        self.written += done

    def sha256(self, begin: int, end: int) -> bytes:
        """The SHA-256 of what has been written between two offsets."""
        digest, buffer = hashlib.sha256(), memoryview(bytearray(READ_BYTES))
        while begin < end:
            try:
                count = system.read_at(self.fd, buffer[: end - begin], begin)
            except OSError as error:
                raise self._failure("reading", error, f" at offset {begin}") from error
            if not count:
                raise OutputError(f"{self.path}: ends at {begin}, expected {end} bytes")
            digest.update(buffer[:count])
            begin += count
        return digest.digest()

    def sync(self) -> None:
        """Put the bytes on the medium; from here on a power cut cannot lose them."""
        try:
            system.sync(self.fd)
        except OSError as error:
            raise self._failure("fsync", error) from error

    def _failure(self, what: str, error: OSError, where: str = "") -> OutputError:
        if error.errno == errno.ENOSPC:
            free = free_bytes(self.path.parent)
            return OutputError(f"{self.path}: {what} failed{where}: disk full ({free} bytes free)")
        return OutputError(f"{self.path}: {what} failed{where}: {error.strerror}")


class OutputFile(Target):
    """A temporary file beside `path`, removed unless publishing it has moved it there.

    One that `vouches` says by being there that others are complete, as a set's first part does:
    `publish_all` moves it last and takes its old version away first.
    """

    def __init__(self, path: Path, nbytes: int, *, vouches: bool = False) -> None:
        self.path = path
        self.vouches = vouches
        self.temp = path.with_name(f".{path.name[:180]}.{secrets.token_hex(6)}{TEMP_SUFFIX}")
        # Also where a signal's exception leaves nobody to close it: at the latest on exit.
        self._discard = weakref.finalize(self, _remove, self.temp)
        self._open = False
        try:
            self.fd = os.open(self.temp, system.CREATE, 0o666)
            self._open = True
            os.ftruncate(self.fd, nbytes)
        except OSError as error:
            self.close()
            raise OutputError(f"{path}: cannot make {nbytes} bytes: {error.strerror}") from error

    def finish(self) -> None:
        """Put all on the medium: from here on the file only lacks its name. Raises OutputError,
        also where the file system reports when closing that writing failed."""
        self.sync()
        self._close_descriptor()

    def _close_descriptor(self) -> None:
        if self._open:
            self._open = False
            try:
                os.close(self.fd)
            except OSError as error:
                raise self._failure("close", error) from error

    def take_name(self) -> None:
        """Move the file to `path`; it stays there whatever happens now."""
        try:
            os.replace(self.temp, self.path)
        except OSError as error:
            raise self._failure("rename", error) from error
        self._discard.detach()

    def close(self) -> None:
        # What is thrown away need not be whole.
        with suppress(OutputError):
            self._close_descriptor()
        self._discard()


def publish_all(files: Sequence[OutputFile]) -> None:
    """Give finished files their names, durably.

    Killed in between it leaves old and new files, each of them whole, but never one that vouches
    beside others than its own. Raises OutputError.
    """
    directories = dict.fromkeys(file.path.parent for file in files)
    vouching = [file for file in files if file.vouches]
    others = [file for file in files if not file.vouches]
    if others and [file for file in reversed(vouching) if _unlinked(file.path)]:
        _sync_all(directories)
    for step in (others, vouching):
        for file in step:
            file.take_name()
        if step:
            _sync_all(directories)


def write_whole(path: Path, data: bytes) -> None:
    """Put a small file at `path`, complete and durable or not at all. Raises OutputError."""
    with OutputFile(path, len(data)) as file:
        file.write(memoryview(data), 0)
        file.finish()
        publish_all([file])


def _unlinked(path: Path) -> bool:
    """Whether there was a `path` to remove."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise OutputError(f"{path}: cannot be replaced: {error.strerror}") from error
    return True


def _sync_all(directories: Iterable[Path]) -> None:
    """Make the names in `directories` durable."""
    for path in directories:
        try:
            system.sync_directory(path)
        except OSError as error:
            raise OutputError(f"{path}: fsync of the directory failed: {error.strerror}") from error


def _remove(path: Path) -> None:
    with suppress(OSError):
        os.unlink(path)


class AppendedFile(Target):
    """An existing file that gets a tail in place; nothing before `footer.base_bytes` is written.

    First a pending footer goes behind where the finished file will end, so that whoever finds the
    file half done knows the base's length; cutting it off is the last step. An earlier tail, whole
    or not, is cut off before. The file is locked against a second writer. Raises OutputError.
    """

    def __init__(self, path: Path, footer: Footer) -> None:
        self.path = path
        self.footer = footer
        needed = footer.total_bytes - footer.base_bytes
        self.fd = _open_locked(path)
        self._open = True
        try:
            earlier = read_footer(path)
            size = os.fstat(self.fd).st_size if earlier is None else earlier.base_bytes
            if size != footer.base_bytes:
                raise OutputError(f"{path}: has changed since its header was read")
            if earlier is not None:
                os.ftruncate(self.fd, footer.base_bytes)
                self.sync()
            free = free_bytes(path.parent)
            if needed > free:
                raise OutputError(f"{path}: needs {needed} bytes more, {free} are free")
            pending = replace(footer, pending=True)
            super().write(memoryview(pending.encode()), footer.pending_offset)
            self.sync()
        except OSError as error:
            self.close()
            raise self._failure("cutting", error) from error
        except BaseException:
            self.close()
            raise

    def write(self, data: memoryview, offset: int) -> None:
        if offset < self.footer.base_bytes:
            raise ValueError(f"offset {offset} is in the base")
        super().write(data, offset)

    def commit(self) -> None:
        """Make the tail durable, then the file one that has it."""
        self.sync()
        try:
            os.ftruncate(self.fd, self.footer.total_bytes)
        except OSError as error:
            raise self._failure("cutting", error) from error
        self._open = False
        try:
            self.sync()
        finally:
            _close(self.fd, self.path)

    def close(self) -> None:
        if self._open:
            self._open = False
            try:
                os.ftruncate(self.fd, self.footer.base_bytes)
                system.sync(self.fd)
            except OSError as error:
                raise OutputError(
                    f"{self.path}: failed, and cutting it back to the base failed as well: "
                    f"{error.strerror}; detach repairs it"
                ) from error
            finally:
                _close(self.fd, self.path)


def cut(path: Path, nbytes: int) -> None:
    """Shorten `path` to `nbytes`, durably. Raises OutputError."""
    fd = _open_locked(path)
    try:
        os.ftruncate(fd, nbytes)
        system.sync(fd)
    except OSError as error:
        raise OutputError(f"{path}: cutting to {nbytes} bytes failed: {error.strerror}") from error
    finally:
        _close(fd, path)


def _close(fd: int, path: Path) -> None:
    try:
        os.close(fd)
    except OSError as error:
        raise OutputError(f"{path}: close failed: {error.strerror}") from error


def _open_locked(path: Path) -> int:
    """A descriptor to change the regular file `path` with, which no other process has."""
    try:
        fd = os.open(path, system.READ_WRITE)
    except OSError as error:
        raise OutputError(f"{path}: cannot be changed: {error.strerror}") from error
    try:
        system.lock(fd)
    except OSError:
        os.close(fd)
        raise OutputError(f"{path}: is being changed by another process") from None
    return fd


def free_bytes(directory: Path) -> int:
    """What may still be written to the file system of `directory`."""
    return shutil.disk_usage(directory).free
