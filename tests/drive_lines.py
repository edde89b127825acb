"""Runs command lines in this process, one after the other, and says what came of each.

Reads a JSON list of ``[key, arguments, environment]`` from a file and writes ``{key: result}`` to
another. The address space is bounded at a margin above what is mapped after the imports, the CPU
time of each line by a timer, so that what hangs or takes all memory is a result like any other.
"""

import json
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

from click.testing import CliRunner

from gguf_mtp.cli.main import VERBS, main

MARGIN = 1 << 30
MAX_SECONDS = 30.0


class TooSlow(BaseException):
    """A line took more than its CPU time; nothing may catch it."""


def too_slow(number: int, frame: FrameType | None) -> None:
    raise TooSlow


def outcome(arguments: list[str], environ: dict[str, str]) -> dict[str, Any]:
    before = {name: os.environ.get(name) for name in environ}
    os.environ.update(environ)
    began = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)
    try:
        result = CliRunner().invoke(main, arguments)
        odd = result.exception
        text = "" if odd is None or isinstance(odd, SystemExit) else _trace(odd)
        found = {"code": result.exit_code, "out": result.stdout[:500], "err": result.stderr}
    except TooSlow:
        found, text = {"code": -1, "out": "", "err": ""}, f"more than {MAX_SECONDS} s of CPU time"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    return found | {"exception": text, "seconds": time.process_time() - began}


def _trace(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))[-2000:]


def run() -> None:
    lines = json.loads(Path(sys.argv[1]).read_text())
    for verb in VERBS:
        main.get_command(None, verb)  # type: ignore[arg-type]
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MARGIN, mapped + MARGIN))
    signal.signal(signal.SIGPROF, too_slow)
    found = {key: outcome(arguments, environ) for key, arguments, environ in lines}
    Path(sys.argv[2]).write_text(json.dumps(found))


if __name__ == "__main__":
    run()
