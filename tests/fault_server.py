"""Runs verbs of gguf-mtp, each in a fork, with fault_shim.c between them and the kernel.

Started by `faults.py` with the shim preloaded. One JSON object a line on stdin is a run, the exit
code (negative: the signal) comes back on stdout.
"""

import ctypes
import faulthandler
import importlib
import json
import os
import resource
import sys
from typing import Any

from gguf_mtp.cli.main import VERBS, main

LIMIT_SECONDS = 60
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2
CAPABILITY_VERSION = 0x20080522  # two words of each set


def drop_override() -> None:
    """Root, too, is then held to the permissions of files."""
    words = ctypes.c_uint32 * 6
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    sets, libc = words(), ctypes.CDLL(None, use_errno=True)
    if libc.capget(header, sets) == 0:
        for effective_or_permitted in (0, 1):
            sets[effective_or_permitted] &= ~(1 << CAP_DAC_OVERRIDE | 1 << CAP_DAC_READ_SEARCH)
        libc.capset(header, sets)


def child(job: dict[str, Any]) -> None:
    """Never returns."""
    for number, path in ((1, job["stdout"]), (2, job["stderr"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    for name, most in job["limits"].items():
        resource.setrlimit(getattr(resource, name), (most, most))
    if job["drop_override"]:
        drop_override()
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    shim = ctypes.CDLL(None)
    shim.fault_arm(
        os.fsencode(job["directory"]),
        ctypes.c_uint(job["kinds"]),
        ctypes.c_long(job["at"]),
        ctypes.c_int(job["action"]),
        ctypes.c_long(job["argument"]),
        os.fsencode(job["victim"]),
        ctypes.c_int(log),
    )
    # One that hangs says where, and fails.
    faulthandler.dump_traceback_later(LIMIT_SECONDS, exit=True)
    main(job["arguments"], prog_name="gguf-mtp")


if __name__ == "__main__":
    for verb in VERBS:
        importlib.import_module(f"gguf_mtp.cli.{verb}")
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            child(json.loads(line))
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
