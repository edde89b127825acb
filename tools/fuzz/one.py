"""Fuzz one target until libFuzzer's limits are reached: ``python one.py TARGET [libFuzzer's ...]``.

A process of its own, as libFuzzer ends the process it runs in. A finding makes it end with another
exit code than 0, and its input is kept.
"""

import os
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# Only what reads is watched: numpy and click are not ours to explore. atheris 3.0 keeps every array
# that watched code compares, and the search through arrays of strings compares a megabyte each.
with atheris.instrument_imports(include=["gguf_mtp"], exclude=["gguf_mtp.string_array"]):
    from fuzz.small import make_small
    from fuzz.targets import TARGETS
    from gguf_mtp.errors import MAX_MESSAGE, GgufMtpError

# An error is one line; some room for what marks a cut.
MAX_LINE = MAX_MESSAGE + 1000


# Of CPU time: on a machine that has other things to do the clock says little.
MAX_SECONDS = 10


class TooSlowError(BaseException):
    """An input took more than `MAX_SECONDS`; nothing may catch it."""


def _too_slow(number: int, frame: FrameType | None) -> None:
    raise TooSlowError


def main() -> None:
    target = TARGETS[sys.argv[1]]
    with tempfile.TemporaryDirectory() as name:
        # Relative, and so the same in every run: messages hold the names.
        os.chdir(name)
        small, given = Path("small"), Path("input")
        small.mkdir()
        given.mkdir()
        run = target.runner(make_small(small), given)

        signal.signal(signal.SIGPROF, _too_slow)

        def one(data: bytes) -> None:
            signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)
            try:
                run(data)
            except GgufMtpError as error:
                line = str(error)
                if not line.isprintable() or not 0 < len(line) < MAX_LINE:
                    raise ValueError(f"no line of error: {line!a}") from error

        atheris.Setup([sys.argv[0], *sys.argv[2:]], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
