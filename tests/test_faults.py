"""At any moment the output is absent, the old file, or the complete new one."""

import errno
import os
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

import tiny
from gguf_mtp.api import convert
from gguf_mtp.errors import FormatError, GgufMtpError, OutputError
from gguf_mtp.output import TEMP_SUFFIX
from hung import HUNG


def listing(directory: Path) -> list[str]:
    return sorted(item.name for item in directory.iterdir())


def fail_after(monkeypatch: pytest.MonkeyPatch, name: str, calls: int, number: int) -> None:
    """Make the `calls`-th call of os.`name` fail with errno `number`."""
    real, count = getattr(os, name), 0

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count >= calls:
            raise OSError(number, os.strerror(number))
        return real(*args, **kwargs)

    monkeypatch.setattr(os, name, wrapper)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    ("call", "calls", "number", "message"),
    [
        ("pwrite", 1, errno.ENOSPC, "disk full"),
        ("pwrite", 40, errno.ENOSPC, "disk full"),
        ("pwrite", 3, errno.EFBIG, "File too large"),
        ("pwrite", 3, errno.EIO, "Input/output error"),
        ("ftruncate", 1, errno.EFBIG, "File too large"),
        ("fsync", 1, errno.EIO, "fsync failed"),
        ("replace", 1, errno.EIO, "rename failed"),
        ("preadv", 100, errno.EIO, "read error at offset"),
    ],
)
def test_failing_call_leaves_what_was_there(
    tmp_path: Path,
    tiny_target: Path,
    tiny_drafter: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    calls: int,
    number: int,
    message: str,
    old: bool,
) -> None:
    out = tmp_path / "m.gguf"
    if old:
        out.write_bytes(b"old")
    fail_after(monkeypatch, call, calls, number)
    with pytest.raises(GgufMtpError, match=message):
        convert(tiny_target, tiny_drafter, out, force=True)
    monkeypatch.undo()
    assert listing(tmp_path) == (["m.gguf"] if old else [])
    assert not old or out.read_bytes() == b"old"


def test_short_writes_and_reads_are_continued(
    tmp_path: Path, tiny_target: Path, tiny_drafter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(tiny_target, tiny_drafter, tmp_path / "a.gguf")
    pwrite, preadv = os.pwrite, os.preadv
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:1000], at))
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: preadv(fd, [views[0][:999]], at))
    convert(tiny_target, tiny_drafter, tmp_path / "b.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_source_truncated_while_reading(
    tmp_path: Path, tiny_drafter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tiny.write_target(tmp_path / "target")
    weights = target / "model.safetensors"
    convert_dir = tmp_path / "out"
    convert_dir.mkdir()
    real = os.pwrite

    def shrink(fd: int, data: Any, at: int) -> int:
        os.truncate(weights, 5000)
        return real(fd, data, at)

    monkeypatch.setattr(os, "pwrite", shrink)
    with pytest.raises(FormatError, match=r"file ends at \d+"):
        convert(target, tiny_drafter, convert_dir / "m.gguf")
    assert listing(convert_dir) == []


def test_source_modified_while_reading(
    tmp_path: Path, tiny_drafter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tiny.write_target(tmp_path / "target")
    real = os.pwrite

    def touch(fd: int, data: Any, at: int) -> int:
        os.utime(target / "model.safetensors")
        return real(fd, data, at)

    monkeypatch.setattr(os, "pwrite", touch)
    with pytest.raises(FormatError, match="changed while it was read"):
        convert(target, tiny_drafter, tmp_path / "m.gguf")
    assert listing(tmp_path) == ["target"]


def test_fsync_rename_fsync_in_that_order(
    tmp_path: Path, tiny_target: Path, tiny_drafter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for name in ("pwrite", "fsync", "replace"):
        real = getattr(os, name)

        def wrapper(*args: Any, name: str = name, real: Any = real) -> Any:
            kind = ""
            if name == "fsync":
                kind = " dir" if os.path.isdir(f"/proc/self/fd/{args[0]}") else " file"
            calls.append(name + kind)
            return real(*args)

        monkeypatch.setattr(os, name, wrapper)
    convert(tiny_target, tiny_drafter, tmp_path / "m.gguf")
    assert calls[-4:] == ["pwrite", "fsync file", "replace", "fsync dir"]
    assert calls.count("replace") == 1


def test_a_file_that_does_not_read_back_is_not_published(
    tmp_path: Path, tiny_target: Path, tiny_drafter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite

    def flip(fd: int, data: Any, at: int) -> int:
        # A byte of a tensor's name in the header, which is written last.
        damaged = bytearray(data)
        if at == 0:
            damaged[damaged.index(b"output_norm")] ^= 1
        return real(fd, damaged, at)

    monkeypatch.setattr(os, "pwrite", flip)
    with pytest.raises(OutputError, match="does not read back as planned"):
        convert(tiny_target, tiny_drafter, tmp_path / "m.gguf")
    assert listing(tmp_path) == []


def test_preflight_names_needed_and_free(
    tmp_path: Path, tiny_target: Path, tiny_drafter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Room = namedtuple("Room", "f_bavail f_frsize f_blocks f_bfree")
    monkeypatch.setattr(os, "statvfs", lambda path: Room(10, 4096, 20, 10))
    with pytest.raises(OutputError, match=r"needs \d+ bytes, 40960 are free"):
        convert(tiny_target, tiny_drafter, tmp_path / "m.gguf")
    assert listing(tmp_path) == []


@pytest.mark.parametrize(
    ("kind", "force", "message"),
    [
        ("file", False, "exists (--force replaces it)"),
        ("directory", True, "is a directory"),
        ("fifo", True, "is not a regular file"),
        ("dangling", True, "is a dangling symbolic link"),
        ("link to a directory", True, "is a directory"),
        ("no directory", True, "does not exist"),
    ],
)
def test_output_refused(
    tmp_path: Path, tiny_target: Path, tiny_drafter: Path, kind: str, force: bool, message: str
) -> None:
    out = tmp_path / "m.gguf"
    if kind == "file":
        out.write_bytes(b"old")
    elif kind == "directory":
        out.mkdir()
    elif kind == "fifo":
        os.mkfifo(out)
    elif kind == "dangling":
        out.symlink_to(tmp_path / "nowhere")
    elif kind == "link to a directory":
        out.symlink_to(tmp_path)
    else:
        out = tmp_path / "none" / "m.gguf"
    before = listing(tmp_path)
    with pytest.raises(OutputError) as caught:
        convert(tiny_target, tiny_drafter, out, force=force)
    assert message in str(caught.value)
    assert listing(tmp_path) == before


def test_force_replaces_a_regular_file(
    tmp_path: Path, tiny_target: Path, tiny_drafter: Path, tiny_merged: Path
) -> None:
    out = tmp_path / "m.gguf"
    out.write_bytes(b"old")
    convert(tiny_target, tiny_drafter, out, force=True)
    assert out.read_bytes() == tiny_merged.read_bytes()


@pytest.mark.parametrize("how", ["same path", "symlink", "hardlink"])
def test_output_that_is_an_input(tmp_path: Path, tiny_drafter: Path, how: str) -> None:
    target = tiny.write_target(tmp_path / "target")
    weights = target / "model.safetensors"
    before = weights.read_bytes()
    out = weights if how == "same path" else tmp_path / "m.gguf"
    if how == "symlink":
        out.symlink_to(weights)
    elif how == "hardlink":
        out.hardlink_to(weights)
    with pytest.raises(OutputError, match="is also the input"):
        convert(target, tiny_drafter, out, force=True)
    assert weights.read_bytes() == before


# Each write waits for a byte, or for the end of stdin.
SLOW_WRITE = """
import os, sys
import gguf_mtp.cli.convert
real = os.pwrite
def slow(fd, data, at):
    print("writing", flush=True)
    os.read(0, 1)
    return real(fd, data, at)
os.pwrite = slow
from gguf_mtp.cli.main import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)]
)
def test_signal_in_the_middle_of_writing(
    tmp_path: Path, tiny_target: Path, tiny_drafter: Path, number: int, code: int
) -> None:
    out = tmp_path / "m.gguf"
    arguments = ["convert", "--base", str(tiny_target), "--heads", str(tiny_drafter)]
    command = [sys.executable, "-c", SLOW_WRITE, *arguments, "-o", str(out)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for _ in range(2):
            assert process.stdout.readline() == b"writing\n"
            process.stdin.write(b".")
            process.stdin.flush()
        assert process.stdout.readline() == b"writing\n"
        assert any(name.endswith(TEMP_SUFFIX) for name in listing(tmp_path))
        process.send_signal(number)
        errors = process.communicate(timeout=HUNG)[1].decode()
        assert process.returncode == code
    assert "Traceback" not in errors
    left = listing(tmp_path)
    if number == signal.SIGKILL:
        # Nothing can run any more; what remains is recognisable.
        assert len(left) == 1
        assert left[0].endswith(TEMP_SUFFIX)
    else:
        assert left == []


def test_two_runs_at_once_do_not_mix(
    tmp_path: Path, tiny_target: Path, tiny_drafter: Path, tiny_merged: Path
) -> None:
    arguments = ["convert", "--base", str(tiny_target), "--heads", str(tiny_drafter), "--force"]
    command = [sys.executable, "-m", "gguf_mtp.cli.main", *arguments]
    command += ["-q", "-o", str(tmp_path / "m.gguf")]
    runs = [subprocess.Popen(command) for _ in range(2)]
    assert [run.wait(timeout=HUNG) for run in runs] == [0, 0]
    assert listing(tmp_path) == ["m.gguf"]
    assert (tmp_path / "m.gguf").read_bytes() == tiny_merged.read_bytes()
