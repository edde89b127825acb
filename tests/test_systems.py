"""What Windows and macOS have otherwise, as far as it can be tried here: neither was run."""

import os
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
from click.testing import CliRunner

from gguf_mtp import system
from gguf_mtp.api import convert
from gguf_mtp.cli import made
from gguf_mtp.cli.main import main
from gguf_mtp.cli.signals import ENDINGS
from gguf_mtp.doctor import checks
from gguf_mtp.errors import OutputError
from gguf_mtp.hub.reference import Reference, parse
from gguf_mtp.output import check_output

WINDOWS_LIKE = Path(__file__).resolve().parent / "windows_like.py"
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def windows(tmp_path: Path) -> Run:
    """Runs gguf-mtp in `tmp_path` without what Windows lacks."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(WINDOWS_LIKE), *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    return run


def test_the_writing_verbs_without_posix(
    windows: Run, tmp_path: Path, tiny_target: Path, tiny_drafter: Path, tiny_merged: Path
) -> None:
    """Positional reads and writes by seeking, no directory synced, bytes locked: the same files."""
    pair = ("--base", tiny_target, "--heads", tiny_drafter)
    done = windows("convert", *pair, "-o", "merged.gguf", "--threads", 4, "--verify")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "merged.gguf").read_bytes() == tiny_merged.read_bytes()
    split = ("split", "merged.gguf", "--base-out", "base.gguf", "--heads-out", "heads.gguf")
    for command in (split, ("verify", "merged.gguf"), ("inspect", "merged.gguf")):
        done = windows(*command)
        assert (done.returncode, done.stderr) == (0, "locks: 0\n")
    base = (tmp_path / "base.gguf").read_bytes()
    done = windows("attach", "base.gguf", "--heads", "heads.gguf", "--in-place")
    assert (done.returncode, done.stderr) == (0, "locks: 1\n")
    assert (tmp_path / "base.gguf").read_bytes() != base
    assert windows("detach", "base.gguf").stderr == "locks: 1\n"
    assert (tmp_path / "base.gguf").read_bytes() == base


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("con.gguf", "keeps for devices"),
        ("NUL", "keeps for devices"),
        ("com1.tar.gz", "keeps for devices"),
        ("e2b:q8.gguf", "allows in no name"),
        ("what?.gguf", "allows in no name"),
        ("model.", "ends in a dot or space"),
        ("console.gguf", ""),
        ("com10.gguf", ""),
        ("Gemma-4 E2B (q8).gguf", ""),
    ],
)
def test_names_that_windows_cannot_have(
    name: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_output(tmp_path / name, (), force=False, needed=1)
    monkeypatch.setattr(system, "WINDOWS", True)
    if reason:
        with pytest.raises(OutputError, match=reason):
            check_output(tmp_path / name, (), force=False, needed=1)
    else:
        check_output(tmp_path / name, (), force=False, needed=1)


@pytest.mark.parametrize(
    "text",
    [
        r"C:\models\gemma-4-E2B-it",
        r"C:\models/gemma.gguf",
        "C:/models",
        r"models\gemma-4-E2B-it",
        r"\\server\share\gemma.gguf",
        r"..\gemma-4-E2B-it",
        "D:gemma",
    ],
)
def test_a_windows_path_is_no_repository(text: str) -> None:
    assert PureWindowsPath(text).parts
    assert parse(text) is None


def test_a_name_on_the_hub_is_one_on_windows_too() -> None:
    assert parse("google/gemma-4-E2B-it") == Reference("google/gemma-4-E2B-it")


@pytest.mark.parametrize(
    ("path", "separators", "value"),
    [(PureWindowsPath, ["\\", "/"], r"C:\Users\me\base"), (PurePosixPath, ["/"], "/home/me/base")],
)
def test_reports_name_no_folders(
    path: type, separators: list[str], value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(made, "SEPARATORS", separators)
    monkeypatch.setattr(made, "Path", path)
    assert made._word(value) == "base"


def test_one_output_under_two_names(tmp_path: Path, tiny_merged: Path) -> None:
    """On a Mac and on Windows E2B.gguf is e2b.gguf; so is a directory under another path."""
    (tmp_path / "link").symlink_to(tmp_path)
    for other in ("BASE.gguf", "link/base.gguf", "../" + tmp_path.name + "/base.gguf"):
        arguments = ("--base-out", tmp_path / "base.gguf", "--heads-out", tmp_path / other)
        result = CliRunner().invoke(main, ["split", str(tiny_merged), *map(str, arguments)])
        assert result.exit_code == 2
        assert "is the same file as the other output" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


def test_an_input_under_another_name_is_not_overwritten(
    tmp_path: Path, tiny_merged: Path, tiny_drafter: Path
) -> None:
    """By the file's identity, as names say nothing where case does not count."""
    base, other = tmp_path / "base.gguf", tmp_path / "BASE.GGUF"
    arguments = ["split", str(tiny_merged), "--base-out", str(base)]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    other.hardlink_to(base)
    before = base.read_bytes()
    with pytest.raises(OutputError, match="is also the input"):
        convert(base, tiny_drafter, other, force=True)
    assert base.read_bytes() == before


class Fcntl(types.ModuleType):
    """macOS's: `refuses` where the file system has no F_FULLFSYNC."""

    F_FULLFSYNC = 51

    def __init__(self, refuses: bool = False) -> None:
        super().__init__("fcntl")
        self.refuses = refuses
        self.calls: list[tuple[int, int]] = []

    def fcntl(self, fd: int, command: int) -> None:
        self.calls.append((fd, command))
        if self.refuses:
            raise OSError(45, "Operation not supported")


@pytest.mark.parametrize("refuses", [False, True])
def test_macos_puts_bytes_on_the_medium(
    refuses: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = Fcntl(refuses)
    synced: list[int] = []
    monkeypatch.setitem(sys.modules, "fcntl", fcntl)
    monkeypatch.setattr(os, "fsync", synced.append)
    with (tmp_path / "file").open("wb") as file:
        system.sync(file.fileno())
        assert fcntl.calls == [(file.fileno(), Fcntl.F_FULLFSYNC)]
        assert synced == ([file.fileno()] if refuses else [])


def test_signals_are_those_of_the_system() -> None:
    assert signal.SIGTERM in ENDINGS
    assert (signal.SIGHUP in ENDINGS) == hasattr(signal, "SIGHUP")


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_what_a_console_cannot_show_is_escaped(
    encoding: str, tmp_path: Path, tiny_target: Path, tiny_drafter: Path
) -> None:
    """Names, helps and tokens in all languages; Windows' pipes have a code page."""
    out = tmp_path / "Ωμέγα-模型.gguf"
    pair = ("--base", tiny_target, "--heads", tiny_drafter)
    environ = os.environ | {"PYTHONIOENCODING": encoding}
    for arguments in (
        ("convert", *pair, "-o", out),
        ("inspect", out),
        ("card", out),
        *((verb, "--help") for verb in ("convert", "attach", "validate", "run")),
    ):
        command = [sys.executable, "-m", "gguf_mtp.cli.main", *map(str, arguments)]
        done = subprocess.run(command, env=environ, capture_output=True, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, b""), done.stderr.decode(encoding)
        # click takes ASCII for a mistake and writes UTF-8.
        done.stdout.decode("utf-8" if encoding == "ascii" else encoding)


def test_what_to_install_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    (cmake,) = (row for row in checks.PROGRAMS if row.name == "cmake")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert checks.program(cmake).next == "brew install cmake"
    monkeypatch.setattr(system, "WINDOWS", True)
    assert checks.program(cmake).next == "winget install Kitware.CMake"
