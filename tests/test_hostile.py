"""The command line over every hostile input: exit code 2, one line, nothing left behind."""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from backend_runs import clean_environment
from gguf_mtp.readers.gguf import read_gguf
from hostile import CASES
from hostile.case import (
    ENVIRON,
    FINDS,
    RUNS,
    RUNS_SOUND,
    USES,
    WRITES_NOTHING,
    Case,
    Good,
    Maker,
    make_good,
)
from llama_programs import programs

DRIVER = Path(__file__).resolve().parent / "drive_lines.py"
# Several times what the slowest takes here; a hang is cut off by the driver.
MAX_SECONDS = 20


Everything = dict[str, tuple["Run", dict[str, Any]]]
# What a directory holds: sizes and times of change by name.
State = dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Run:
    """One command over one input; `out` is where it could write, `before` what lay about `path`."""

    key: str
    use: str
    line: list[str]
    path: Path
    out: Path
    before: State

    @property
    def environ(self) -> dict[str, str]:
        return ENVIRON[self.use](self.path) if self.use in ENVIRON else {}


def _planned(name: str, make: Maker, use: str, good: Good, where: Path) -> Run:
    (where / "in").mkdir(parents=True)
    (where / "out").mkdir()
    path = make(good, where / "in", use)
    line = [str(word) for word in USES[use](good, path, where / "out")]
    return Run(f"{name}|{use}", use, line, path, where / "out", state(where / "in"))


def state(directory: Path) -> State:
    found = ((path, path.stat()) for path in directory.rglob("*"))
    return {
        str(path.relative_to(directory)): (status.st_size, status.st_mtime_ns)
        for path, status in found
    }


def has_library() -> bool:
    """Whether there is a llama.cpp; fails where GGUF_MTP_REQUIRE_LLAMA asks for one."""
    try:
        programs("default")
    except pytest.skip.Exception:
        return False
    return importlib.util.find_spec("llama_cpp") is not None


def uses(case: Case) -> list[str]:
    return [use for use in case.uses if use not in RUNS or has_library()]


def control_uses(case: Case) -> list[str]:
    return [use for use in case.control_uses if use not in RUNS_SOUND or has_library()]


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Everything:
    """Every run and what came of it, all in one child. Equal controls are run once."""
    root = tmp_path_factory.mktemp("hostile")
    (root / "good").mkdir()
    good = make_good(root / "good")
    runs: list[Run] = []
    controls: dict[tuple[Maker, str], Run] = {}
    for number, case in enumerate(CASES):
        for use in uses(case):
            runs.append(_planned(case.name, case.hostile, use, good, root / f"{number}-{use}"))
        for use in control_uses(case):
            made = (case.control, use)
            if made not in controls:
                where = root / f"{number}-control-{use}"
                controls[made] = _planned(f"sound {case.name}", case.control, use, good, where)
    lines, results = root / "lines.json", root / "results.json"
    runs += controls.values()
    lines.write_text(json.dumps([[run.key, run.line, run.environ] for run in runs]))
    before = state(root / "good")
    # Other tests may have chosen a library by now; this child loads the recorded one.
    environ = clean_environment() | {"OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, str(DRIVER), str(lines), str(results)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr == ""
    found = json.loads(results.read_text())
    assert state(root / "good") == before
    results_of = {run.key: (run, found[run.key]) for run in runs}
    for case in CASES:
        for use in control_uses(case):
            shared = controls[case.control, use]
            results_of[f"{case.name}|control|{use}"] = (shared, found[shared.key])
    return results_of


def left(run: Run) -> list[str]:
    return sorted(path.name for path in run.out.rglob("*"))


@pytest.mark.parametrize("case", [c for c in CASES if c.is_refused], ids=lambda case: case.name)
def test_refused(everything: Everything, case: Case) -> None:
    for use in uses(case):
        run, found = everything[f"{case.name}|{use}"]
        assert found["exception"] == "", (use, found["exception"])
        assert found["code"] == 2, (use, found)
        assert found["out"] == ""
        line = found["err"]
        assert line.startswith(f"error: {run.path.parent}{os.sep}"), line
        assert line.endswith("\n")
        assert line[:-1].isprintable()
        assert len(line) < 1500
        for words in case.says:
            assert words in line, (use, words, line)
        assert left(run) == []
        assert state(run.out.with_name("in")) == run.before
        assert found["seconds"] < MAX_SECONDS


@pytest.mark.parametrize("case", [c for c in CASES if not c.is_refused], ids=lambda case: case.name)
def test_harmless(everything: Everything, case: Case) -> None:
    for use in uses(case):
        run, found = everything[f"{case.name}|{use}"]
        _accepted(run, found)
        for words in case.notes:
            assert words in found["err"], (use, words, found["err"])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_control(everything: Everything, case: Case) -> None:
    assert case.control_uses
    for use in control_uses(case):
        _accepted(*everything[f"{case.name}|control|{use}"])


def _accepted(run: Run, found: dict[str, Any]) -> None:
    assert found["exception"] == "", (run.use, found["exception"])
    assert found["code"] == (1 if run.use in FINDS else 0), (run.use, found)
    assert all(line.startswith("note: ") for line in found["err"].splitlines())
    assert bool(left(run)) == (run.use not in WRITES_NOTHING), left(run)
    assert found["seconds"] < MAX_SECONDS


def test_the_table_is_as_long_as_promised() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    assert len(names) >= 60
    assert sum(case.is_refused for case in CASES) >= 150


def test_names_that_are_no_text(tmp_path: Path) -> None:
    """Directories and files may be called anything: all verbs go on, and files hold valid text."""
    good = make_good(tmp_path)
    begin = os.fsdecode(b"\xff\n")
    odd = tmp_path / begin
    try:
        odd.mkdir()
    except OSError:
        pytest.skip("this file system has only names that are text")
    names = {}
    for name in ("target", "drafter", "base", "heads", "package"):
        path: Path = getattr(good, name)
        names[name] = odd / f"{begin}{name}{path.suffix}"
        names[name].symlink_to(path)
    merged = odd / f"{begin}m.gguf"
    for line in (
        ["convert", "--base", names["target"], "--heads", names["drafter"], "-o", odd],
        ["convert", "--base", names["base"], "--heads", names["heads"], "-o", merged],
        ["inspect", merged],
        ["card", merged, "-q"],
        ["split", merged, "--base-out", odd / f"{begin}b.gguf", "--heads-out", odd],
        ["extract", names["package"], "-o", odd / "extracted"],
        ["audit", "--litert", names["package"], "--hf", odd / "extracted"],
    ):
        words = [os.fsencode(str(word)) for word in line]
        command = [os.fsencode(sys.executable), b"-m", b"gguf_mtp.cli.main", *words]
        done = subprocess.run(command, capture_output=True)
        assert done.returncode == 0, (line, done.stderr.decode("utf-8", "replace"))
    made = [path for path in odd.glob("*.gguf") if not path.is_symlink()]
    assert len(made) == 4
    for path in made:
        assert [key.value for key in read_gguf(path).keys]
