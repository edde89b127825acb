"""llama.cpp's own tests of its server, with models of ours: theirs come from a hub.

Many of them expect the texts of their models and fail with any other. So outcomes are compared:
what passes on the stock server has to pass on the patched one, without drafts and with them.
"""

import os
import stat
import subprocess
import sys
import tempfile
import venv
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from llamacpp.pin import SetupError, cache_dir

# Those that need nothing but a language model.
FILES = (
    "test_basic",
    "test_chat_completion",
    "test_compat_anthropic",
    "test_compat_gcp",
    "test_compat_oai_responses",
    "test_completion",
    "test_ctx_shift",
    "test_ignore_eos",
    "test_infill",
    "test_kv_keep_only_active",
    "test_metrics",
    "test_security",
    "test_sleep",
    "test_slot_save",
    "test_stream",
    "test_template",
    "test_tokenize",
)
DEADLINE_SECONDS = 1800
PORT = "18080"

# Stands for llama-server: the tests name models of a hub, this gives another one.
_STAND_IN = """#!{python}
import os, sys
arguments, given = [{program!r}], sys.argv[1:]
while given:
    word = given.pop(0)
    if word == "--hf-repo":
        given.pop(0)
        arguments += ["--model", {model!r}]
    elif word in ("--hf-file", "--mmproj-url"):
        given.pop(0)
    elif word != "--offline":
        arguments.append(word)
os.execv(arguments[0], arguments + {flags!r})
"""


@dataclass(frozen=True)
class Mode:
    """A server and the model it gets, for one run of all tests."""

    name: str
    program: Path
    model: Path
    flags: tuple[str, ...] = ()


def python(tree: Path) -> Path:
    """An interpreter with what the tests import, in the cache."""
    directory = cache_dir() / "server-tests"
    found = directory / "bin" / "python"
    if not (directory / "ready").exists():
        venv.create(directory, with_pip=True, clear=True)
        wanted = tree / "tools" / "server" / "tests" / "requirements.txt"
        command = [str(found), "-m", "pip", "install", "--quiet", "-r", str(wanted)]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode != 0:
            raise SetupError(f"cannot install {wanted}: {result.stderr.strip()[-300:]}")
        (directory / "ready").touch()
    return found


def passed(tree: Path, mode: Mode, only: Iterable[str] = ()) -> set[str]:
    """The tests that pass, of all or of `only`, named as pytest names them.

    Raises SetupError where the tests could not be run at all.
    """
    tests = list(only) or [f"unit/{name}.py" for name in FILES]
    with tempfile.TemporaryDirectory() as scratch:
        stand_in, report = Path(scratch) / "llama-server", Path(scratch) / "report.xml"
        stand_in.write_text(
            _STAND_IN.format(
                python=sys.executable,
                program=str(mode.program),
                model=str(mode.model),
                flags=list(mode.flags),
            )
        )
        stand_in.chmod(stand_in.stat().st_mode | stat.S_IXUSR)
        environment = {
            **os.environ,
            "LLAMA_SERVER_BIN_PATH": str(stand_in),
            "LLAMA_ARG_THREADS": "1",
            "PORT": PORT,
        }
        command = [str(python(tree)), "-m", "pytest", "-q", "-m", "not slow"]
        command += ["-p", "no:cacheprovider", "--junitxml", str(report), *tests]
        try:
            result = subprocess.run(
                command,
                cwd=tree / "tools" / "server" / "tests",
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=DEADLINE_SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise SetupError(f"the server's tests took too long, {mode.name}") from None
        if not report.exists():
            lines = (result.stdout + result.stderr).strip().splitlines() or ["no output"]
            raise SetupError(f"the server's tests did not run, {mode.name}: {lines[-1]}")
        cases = ElementTree.parse(report).iter("testcase")
        failed = ("failure", "error", "skipped")
        return {_name(case) for case in cases if all(case.find(tag) is None for tag in failed)}


def _name(case: ElementTree.Element) -> str:
    return f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"


def lost(tree: Path, before: set[str], mode: Mode) -> tuple[set[str], list[str]]:
    """What passes in a mode, and what of `before` does not, even on a second try."""
    found = passed(tree, mode)
    missing = before - found
    if missing:
        found |= passed(tree, mode, sorted(missing))
    return found, sorted(before - found)
