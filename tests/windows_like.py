"""Run gguf-mtp where everything is missing that Windows has not: ``python windows_like.py VERB …``.

Not Windows, but what can be seen of it elsewhere: names of system calls, flags and signals that are
not there, modules that cannot be imported, locks by bytes, directories that cannot be opened.
"""

import os
import shutil  # noqa: F401  looks for os.statvfs when it is imported
import signal
import subprocess  # noqa: F401  so do these look for fcntl
import sys
import tempfile  # noqa: F401
import types

MISSING = {
    os: (
        *("pread", "preadv", "pwrite", "pwritev", "sched_getaffinity", "sysconf", "posix_fadvise"),
        *("O_CLOEXEC", "O_NONBLOCK", "O_DIRECTORY", "copy_file_range", "sendfile", "getuid"),
    ),
    signal: ("SIGHUP", "SIGKILL"),
}
MODULES = ("fcntl", "resource", "pwd", "grp", "termios")
LK_NBLCK = 2
locked: list[tuple[int, int]] = []


def _locking(fd: int, mode: int, nbytes: int) -> None:
    assert (mode, nbytes) == (LK_NBLCK, 1)
    position = os.lseek(fd, 0, os.SEEK_CUR)
    assert position > os.fstat(fd).st_size  # what is locked cannot be read
    locked.append((fd, position))


def become() -> None:
    """Take away what Windows lacks, and put its msvcrt in place."""
    for module, names in MISSING.items():
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    for name in MODULES:
        sys.modules[name] = None  # type: ignore[assignment]
    msvcrt = types.ModuleType("msvcrt")
    msvcrt.__dict__.update(LK_NBLCK=LK_NBLCK, locking=_locking)
    sys.modules["msvcrt"] = msvcrt
    from gguf_mtp import system

    system.WINDOWS = True


if __name__ == "__main__":
    become()
    from gguf_mtp.cli.main import main

    try:
        main()
    finally:
        print(f"locks: {len(locked)}", file=sys.stderr)
