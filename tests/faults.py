"""Faults for tests: a verb of gguf-mtp whose k-th call to the kernel is killed, fails or falls
short (`fault_shim.c`), in a process of its own that costs no new start of Python."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from pathlib import Path

import pytest

from gguf_mtp.closing import Closing
from hung import HUNG

HERE = Path(__file__).resolve().parent


class Kind(IntFlag):
    """Calls, as fault_shim.c has them."""

    CREATE = 1
    WRITE = 2
    TRUNCATE = 4
    SYNC = 8
    RENAME = 16
    UNLINK = 32
    CLOSE = 64
    READ = 128


# Each of these is a moment at which a file system is as it never was before.
STEPS = Kind.CREATE | Kind.WRITE | Kind.TRUNCATE | Kind.SYNC | Kind.RENAME | Kind.UNLINK
NONE = Kind(0)
KIND_OF = {
    "create": Kind.CREATE,
    "mkdir": Kind.CREATE,
    "write": Kind.WRITE,
    "ftruncate": Kind.TRUNCATE,
    "fallocate": Kind.TRUNCATE,
    "fsync": Kind.SYNC,
    "fdatasync": Kind.SYNC,
    "rename": Kind.RENAME,
    "unlink": Kind.UNLINK,
    "rmdir": Kind.UNLINK,
    "close": Kind.CLOSE,
    "read": Kind.READ,
}


class Action(IntEnum):
    """What becomes of the call; `argument` is an errno, a number of bytes or a signal."""

    NOTHING = 0
    KILL = 1  # SIGKILL instead of the call
    FAIL = 2  # this call fails
    FAIL_ON = 3  # this one and all later ones fail
    SHORT = 4  # `argument` bytes are transferred
    SHORT_KILL = 5  # the same, then SIGKILL
    SIGNAL = 6  # the signal arrives, the call is made
    CUT = 7  # the file `victim` is cut to `argument` bytes first
    FILL = 8  # the file `victim` grows until the disk is full
    SIGNAL_ON = 9  # the signal arrives at this call and at all later ones


@dataclass(frozen=True)
class Call:
    """A call that was made, or broken: `offset` is -1 where the file's own position counts."""

    name: str
    offset: int
    nbytes: int
    path: Path

    @property
    def kind(self) -> Kind:
        return KIND_OF[self.name]


@dataclass(frozen=True)
class Run:
    """How a run ended; `code` is negative for a signal."""

    code: int
    stderr: str
    calls: tuple[Call, ...]

    def count(self, kinds: Kind) -> int:
        return sum(bool(call.kind & kinds) for call in self.calls)

    def numbers(self, kinds: Kind, most: int, every: Kind = NONE) -> list[int]:
        """Numbers, among the calls of `kinds`, of all that are of `every` too, and of `most` of the
        others: the first, the last, and evenly spread ones between."""
        counted = [call for call in self.calls if call.kind & kinds]
        chosen = [at for at, call in enumerate(counted, 1) if call.kind & every]
        rest = [at for at, call in enumerate(counted, 1) if not call.kind & every]
        steps = max(1, min(most, len(rest)) - 1)
        spread = [rest[at * (len(rest) - 1) // steps] for at in range(steps + 1)] if rest else []
        return sorted({*chosen, *spread})


class FaultServer(Closing):
    """Starts runs; files are kept in `scratch`. Skips the test where the shim cannot be built."""

    def __init__(self, scratch: Path, *, within: Sequence[str] = ()) -> None:
        """`within` is a command that goes before the server's."""
        compiler = shutil.which("cc") or shutil.which("c++")
        if not sys.platform.startswith("linux") or compiler is None:
            pytest.skip("the shim needs Linux and a C compiler")
        self.shim = scratch / "fault_shim.so"
        # fmt: off
        subprocess.run([compiler, "-xc", "-shared", "-fPIC", "-O1", str(HERE / "fault_shim.c"),
                        "-o", str(self.shim)], check=True)
        # fmt: on
        self.scratch = scratch
        self.environ = os.environ | {
            "LD_PRELOAD": str(self.shim),
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
        }
        self.process = subprocess.Popen(
            [*within, sys.executable, str(HERE / "fault_server.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self.environ,
        )

    def close(self) -> None:
        self.process.communicate(timeout=HUNG)

    def seen(self, argument: object) -> str:
        """An argument or path as the verb is given it."""
        return str(argument)

    def run(
        self,
        arguments: Sequence[object],
        directory: Path,
        action: Action = Action.NOTHING,
        kinds: Kind = STEPS,
        *,
        at: int = 0,
        argument: int = 0,
        victim: Path = Path(),
        limits: dict[str, int] | None = None,
        drop_override: bool = False,
    ) -> Run:
        """Run a verb with the `at`-th call of `kinds` on files below `directory` broken."""
        log, stdout, stderr = (self.scratch / name for name in ("calls", "stdout", "stderr"))
        job = {
            "arguments": [self.seen(argument) for argument in arguments],
            "directory": self.seen(directory),
            "kinds": int(kinds),
            "at": at,
            "action": int(action),
            "argument": argument,
            "victim": self.seen(victim),
            "limits": limits or {},
            "drop_override": drop_override,
            "log": str(log),
            "stdout": str(stdout),
            "stderr": str(stderr),
        }
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        code = int(self.process.stdout.readline())
        return Run(code, stderr.read_text(), tuple(_calls(log.read_text().splitlines())))


def _calls(lines: Iterable[str]) -> Iterable[Call]:
    for line in lines:
        name, offset, nbytes, path = line.split("\t")
        yield Call(name, int(offset), int(nbytes), Path(path))
