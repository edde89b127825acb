"""The command line over every hostile input: exit code 2, one line, nothing left behind."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hostile import CASES
from hostile.case import FINDS, USES, WRITES_NOTHING, Case, Good, Maker, make_good

DRIVER = Path(__file__).resolve().parent / "drive_lines.py"
# Several times what the slowest takes here; a hang is cut off by the driver.
MAX_SECONDS = 20


Everything = dict[str, tuple["Run", dict[str, Any]]]


@dataclass(frozen=True)
class Run:
    """One command over one input; `out` is where it could write."""

    key: str
    use: str
    line: list[str]
    path: Path
    out: Path


def _planned(name: str, make: Maker, use: str, good: Good, where: Path) -> Run:
    (where / "in").mkdir(parents=True)
    (where / "out").mkdir()
    path = make(good, where / "in", use)
    line = [str(word) for word in USES[use](good, path, where / "out")]
    return Run(f"{name}|{use}", use, line, path, where / "out")


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Everything:
    """Every run and what came of it, all in one child. Equal controls are run once."""
    root = tmp_path_factory.mktemp("hostile")
    (root / "good").mkdir()
    good = make_good(root / "good")
    runs: list[Run] = []
    controls: dict[tuple[Maker, str], Run] = {}
    for number, case in enumerate(CASES):
        for use in case.uses:
            runs.append(_planned(case.name, case.hostile, use, good, root / f"{number}-{use}"))
        for use in case.control_uses:
            made = (case.control, use)
            if made not in controls:
                where = root / f"{number}-control-{use}"
                controls[made] = _planned(f"sound {case.name}", case.control, use, good, where)
    lines, results = root / "lines.json", root / "results.json"
    runs += controls.values()
    lines.write_text(json.dumps([[run.key, run.line] for run in runs]))
    environ = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, str(DRIVER), str(lines), str(results)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr == ""
    found = json.loads(results.read_text())
    results_of = {run.key: (run, found[run.key]) for run in runs}
    for case in CASES:
        for use in case.control_uses:
            shared = controls[case.control, use]
            results_of[f"{case.name}|control|{use}"] = (shared, found[shared.key])
    return results_of


def left(run: Run) -> list[str]:
    return sorted(path.name for path in run.out.rglob("*"))


@pytest.mark.parametrize("case", [c for c in CASES if c.is_refused], ids=lambda case: case.name)
def test_refused(everything: Everything, case: Case) -> None:
    for use in case.uses:
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
        assert found["seconds"] < MAX_SECONDS


@pytest.mark.parametrize("case", [c for c in CASES if not c.is_refused], ids=lambda case: case.name)
def test_harmless(everything: Everything, case: Case) -> None:
    for use in case.uses:
        _accepted(*everything[f"{case.name}|{use}"])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_control(everything: Everything, case: Case) -> None:
    assert case.control_uses
    for use in case.control_uses:
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
