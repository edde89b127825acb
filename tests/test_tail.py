"""The tail layout: the base's bytes as they were, a drafter that any llama.cpp loads, and no moment
at which the base could be lost."""

import errno
import fcntl
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_mtp.api import attach, convert, detach, plan_convert, split
from gguf_mtp.cli.main import main
from gguf_mtp.errors import FormatError, GgufMtpError, OutputError, UnsupportedError
from gguf_mtp.model import half_from_gguf
from gguf_mtp.plan import plan
from gguf_mtp.readers.gguf import read_gguf
from gguf_mtp.readers.tail import FOOTER_BYTES, Footer, read_footer
from gguf_mtp.tail import read_tail
from gguf_mtp.writer import write_gguf
from llama_programs import programs, speculative_simple

CALLS = ("pwrite", "fsync", "ftruncate")


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory, tiny_merged: Path) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("halves")
    split(tiny_merged, root / "b.gguf", root / "h.gguf")
    return root / "b.gguf", root / "h.gguf"


@pytest.fixture
def base(tmp_path: Path, halves: tuple[Path, Path]) -> Path:
    """A base of its own for each test."""
    path = tmp_path / "base.gguf"
    path.write_bytes(halves[0].read_bytes())
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_the_parts_are_where_the_format_says(base: Path, halves: tuple[Path, Path]) -> None:
    before = base.read_bytes()
    attach(base, halves[1])
    data = base.read_bytes()
    footer = read_footer(base)
    assert footer is not None
    begin, end = footer.heads_window
    assert data[: len(before)] == before
    assert not any(data[len(before) : begin])
    assert (begin % 4096, begin - len(before) < 4096) == (0, True)
    assert len(data) == end + FOOTER_BYTES
    assert hashlib.sha256(data[begin:end]).digest() == footer.sha256
    # Field by field, as another program would read it.
    raw = data[-72:]
    assert raw[:8] == b"GGUF-MTP"
    numbers = [int.from_bytes(raw[at : at + 8], "little") for at in (8, 16, 24)]
    assert numbers == [len(before), begin, end - begin]
    assert raw[32:64] == footer.sha256
    assert int.from_bytes(raw[64:68], "little") == 1


def test_the_drafter_is_the_one_that_split_writes(base: Path, halves: tuple[Path, Path]) -> None:
    attach(base, halves[1])
    tail = read_tail(base)
    assert tail is not None
    drafter = read_gguf(halves[1])
    assert tail.heads.keys == drafter.keys
    assert [(r.name, r.dtype, r.shape) for r in tail.heads.tensors] == [
        (r.name, r.dtype, r.shape) for r in drafter.tensors
    ]
    whole = read_gguf(base, window=tail.footer.heads_window)
    marks = {key.name: key.value for key in whole.keys[-2:]}
    assert marks == {"mtp.format.version": 1, "mtp.format.layout": "tail"}
    assert not any(ref.name.startswith("masked_embd") for ref in whole.tensors)


@pytest.mark.parametrize("heads_type", ["bf16", "auto"])
def test_every_way_gives_the_same_file(
    tmp_path: Path, tiny_target: Path, tiny_drafter: Path, heads_type: str
) -> None:
    """From checkpoints at once, attached to the base, in place or in a copy."""
    once, inline = tmp_path / "once.gguf", tmp_path / "inline.gguf"
    convert(tiny_target, tiny_drafter, once, heads_type=heads_type, layout="tail")
    convert(tiny_target, tiny_drafter, inline, heads_type=heads_type)
    split(inline, tmp_path / "b.gguf", tmp_path / "h.gguf")
    original = (tmp_path / "b.gguf").read_bytes()
    convert(tmp_path / "b.gguf", tmp_path / "h.gguf", tmp_path / "copy.gguf", layout="tail")
    attach(tmp_path / "b.gguf", tmp_path / "h.gguf")
    expected = once.read_bytes()
    assert (tmp_path / "copy.gguf").read_bytes() == expected
    assert (tmp_path / "b.gguf").read_bytes() == expected
    split(once, tmp_path / "b2.gguf", tmp_path / "h2.gguf")
    assert (tmp_path / "b2.gguf").read_bytes() == original
    assert (tmp_path / "h2.gguf").read_bytes() == (tmp_path / "h.gguf").read_bytes()
    convert(tmp_path / "b2.gguf", tmp_path / "h2.gguf", tmp_path / "inline2.gguf")
    assert (tmp_path / "inline2.gguf").read_bytes() == inline.read_bytes()


@pytest.mark.parametrize("padded", [True, False])
def test_detach_gives_the_bytes_back(base: Path, halves: tuple[Path, Path], padded: bool) -> None:
    """Whether the base ends in padding or with its last tensor's data."""
    half = half_from_gguf(read_gguf(base))
    scales = [item for item in half.tensors if item.shape == (1,)]
    rest = [item for item in half.tensors if item not in scales]
    other = base.with_name("other.gguf")
    write_gguf(plan(half.keys, (*rest, *scales)), other)
    last = read_gguf(other).tensors[-1]
    before = other.read_bytes() if padded else other.read_bytes()[: last.offset + last.nbytes]
    assert len(before) % 32 == (0 if padded else 4)
    base.write_bytes(before)
    attach(base, halves[1])
    assert base.stat().st_size > len(before)
    copy = base.with_name("copy.gguf")
    detach(base, copy)
    assert copy.read_bytes() == before
    detach(base)
    assert base.read_bytes() == before
    with pytest.raises(FormatError, match="has no heads in a tail"):
        detach(base)


class Killed(BaseException):
    """What SIGKILL is to this test: from here on nothing of the program runs."""


def kill_at(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """The `number`-th change of a file, and every later one, does not happen."""
    count = 0

    def stop(real: Any) -> Any:
        def wrapper(*args: Any) -> Any:
            nonlocal count
            count += 1
            if count >= number:
                raise Killed
            return real(*args)

        return wrapper

    for name in CALLS:
        monkeypatch.setattr(os, name, stop(getattr(os, name)))


def test_killed_at_any_step_the_base_is_there_and_can_be_repaired(
    base: Path, halves: tuple[Path, Path]
) -> None:
    before = base.read_bytes()
    attach(base, halves[1])
    finished = base.read_bytes()
    for number in range(1, 200):
        base.write_bytes(before)
        with pytest.MonkeyPatch.context() as patch:
            kill_at(patch, number)
            try:
                attach(base, halves[1])
            except Killed:
                killed = True
            else:
                killed = False
        if not killed:
            break
        half_done = base.read_bytes()
        assert half_done[: len(before)] == before
        if half_done != before:
            footer = read_footer(base)
            assert footer is not None
            assert footer.pending == (len(half_done) > len(finished))
            if footer.pending:
                with pytest.raises(FormatError, match="attaching heads was interrupted"):
                    read_tail(base)
                detach(base, base.with_name("copy.gguf"), force=True)
                assert base.with_name("copy.gguf").read_bytes() == before
        attach(base, halves[1], replace_heads=half_done == finished)
        assert base.read_bytes() == finished
        base.write_bytes(half_done)
        if half_done != before:
            detach(base)
        assert base.read_bytes() == before
    assert number > 30


@pytest.mark.parametrize(
    ("call", "calls", "number", "message"),
    [
        ("pwrite", 1, errno.ENOSPC, "disk full"),
        ("pwrite", 20, errno.ENOSPC, "disk full"),
        ("fsync", 1, errno.EIO, "fsync failed"),
        ("fsync", 2, errno.EIO, "fsync failed"),
        ("preadv", 20, errno.EIO, "read error"),
    ],
)
def test_a_failing_call_leaves_the_base(
    base: Path,
    halves: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    calls: int,
    number: int,
    message: str,
) -> None:
    before = base.read_bytes()
    real, count = getattr(os, call), 0

    def fail(*args: Any) -> Any:
        nonlocal count
        count += 1
        if count == calls:
            raise OSError(number, os.strerror(number))
        return real(*args)

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(GgufMtpError, match=message):
        attach(base, halves[1])
    monkeypatch.undo()
    assert base.read_bytes() == before


def test_durable_before_it_is_finished(
    base: Path, halves: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pending footer, then the heads, then the cut that makes them count: each is synced."""
    calls: list[str] = []
    for name in CALLS:
        real = getattr(os, name)

        def wrapper(*args: Any, name: str = name, real: Any = real) -> Any:
            calls.append(name)
            return real(*args)

        monkeypatch.setattr(os, name, wrapper)
    attach(base, halves[1])
    assert calls[:2] == ["pwrite", "fsync"]
    assert calls[-4:] == ["pwrite", "fsync", "ftruncate", "fsync"]
    assert set(calls[2:-3]) == {"pwrite"}


def test_two_at_once_are_not_let_in(base: Path, halves: tuple[Path, Path]) -> None:
    before = base.read_bytes()
    with base.open("r+b") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match="is being changed by another process"):
            attach(base, halves[1])
    assert base.read_bytes() == before


def test_heads_are_replaced_only_on_request(base: Path, halves: tuple[Path, Path]) -> None:
    attach(base, halves[1])
    finished = base.read_bytes()
    with pytest.raises(UnsupportedError, match=r"already has MTP heads \(--replace-heads"):
        attach(base, halves[1])
    with pytest.raises(UnsupportedError, match="already has MTP heads"):
        plan_convert(base, halves[1])
    attach(base, halves[1], replace_heads=True)
    assert base.read_bytes() == finished


@pytest.mark.parametrize("old", ["inline", "tail"])
@pytest.mark.parametrize("new", ["inline", "tail"])
def test_convert_replaces_the_heads_of_either_layout(
    tmp_path: Path, tiny_target: Path, tiny_drafter: Path, old: str, new: str
) -> None:
    first, second, fresh = (tmp_path / f"{name}.gguf" for name in ("first", "second", "fresh"))
    convert(tiny_target, tiny_drafter, first, layout=old, heads_type="f32")
    convert(first, tiny_drafter, second, layout=new, replace_heads=True)
    split(second, tmp_path / "b.gguf", None)
    convert(tmp_path / "b.gguf", tiny_drafter, fresh, layout=new)
    # The heads' own record of their target names the file they were merged into.
    assert strip(second) == strip(fresh)


def strip(path: Path) -> list[Any]:
    tail = read_tail(path)
    files = [read_gguf(path)] if tail is None else [tail.base, tail.heads]
    data = path.read_bytes()
    skipped = ("mtp.target.name", "mtp.target.files")
    return [
        [(key.name, key.raw) for key in file.keys if key.name not in skipped]
        + [(ref.name, data[ref.offset :][: ref.nbytes]) for ref in file.tensors]
        for file in files
    ]


def test_attach_refuses_what_it_cannot_append_to(
    tmp_path: Path, tiny_target: Path, tiny_merged: Path, halves: tuple[Path, Path], base: Path
) -> None:
    with pytest.raises(UnsupportedError, match="is a directory; attach takes a GGUF"):
        attach(tiny_target, halves[1])
    with pytest.raises(UnsupportedError, match="already has MTP heads"):
        attach(tiny_merged, halves[1])
    with pytest.raises(UnsupportedError, match="its heads are inline"):
        attach(tiny_merged, halves[1], replace_heads=True)
    attach(base, halves[1])
    with pytest.raises(UnsupportedError, match="has a base model in it; split it first"):
        plan_convert(halves[0], base)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, FOOTER_BYTES - 1), st.integers(1, 255))
def test_a_damaged_footer_is_found(halves: tuple[Path, Path], at: int, flip: int) -> None:
    path = halves[0].with_name("damaged.gguf")
    if not path.exists():
        path.write_bytes(halves[0].read_bytes())
        attach(path, halves[1])
    raw = bytearray(path.read_bytes())
    raw[at - FOOTER_BYTES] ^= flip
    other = path.with_name("flipped.gguf")
    other.write_bytes(raw)
    with pytest.raises((FormatError, UnsupportedError)):
        split(other, other.with_name("never.gguf"), None, force=True)
    if at >= 8:
        with pytest.raises(FormatError, match="checksum is"):
            read_footer(other)


@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=0, max_size=200), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_a_footer_is_not_believed(
    tmp_path_factory: pytest.TempPathFactory, body: bytes, base_bytes: int, heads_bytes: int
) -> None:
    """Any lengths, with a right checksum: a footer or an error, never bytes outside the file."""
    path = tmp_path_factory.getbasetemp() / "lies.gguf"
    try:
        encoded = Footer(base_bytes, heads_bytes).encode()
    except Exception:
        assert base_bytes > 2**64 - 4096
        return
    path.write_bytes(body + encoded)
    try:
        footer = read_footer(path)
    except FormatError:
        return
    assert footer is not None
    assert footer.heads_window[1] == len(body)


def test_damaged_heads_are_found(tmp_path: Path, base: Path, halves: tuple[Path, Path]) -> None:
    attach(base, halves[1])
    tail = read_tail(base)
    assert tail is not None
    raw = bytearray(base.read_bytes())
    raw[tail.heads.tensors[0].offset] ^= 1
    base.write_bytes(raw)
    with pytest.raises(FormatError, match="the footer says"):
        split(base, None, tmp_path / "h.gguf")
    assert not (tmp_path / "h.gguf").exists()


def test_the_verbs(tmp_path: Path, base: Path, halves: tuple[Path, Path]) -> None:
    before = base.read_bytes()
    result = run("attach", base, "--heads", halves[1], "--in-place")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith(f"{base}: 27 heads tensors attached, ")
    finished = base.read_bytes()

    shown = run("inspect", base).stdout
    assert "layout tail" in shown
    assert "rows in token order, carried as keys" in shown
    assert "heads in the tail" in shown
    assert "nextn.pre_projection.weight" in shown
    facts = json.loads(run("inspect", base, "--json").stdout)
    assert facts["bytes"] == len(finished)
    assert facts["summary"]["heads"]["layout"] == "tail"
    assert facts["tail"]["offset"] % 4096 == 0
    assert len(facts["tail"]["tensors"]) == 27

    result = run("split", base, "--base-out", tmp_path / "b.gguf", "--heads-out", tmp_path / "h")
    assert result.exit_code == 0
    assert (tmp_path / "b.gguf").read_bytes() == before
    assert (tmp_path / "h").read_bytes() == halves[1].read_bytes()

    result = run("detach", base, "-q")
    assert (result.exit_code, result.output) == (0, "")
    assert base.read_bytes() == before
    result = run("attach", base, "--heads", halves[1], "-o", tmp_path / "c.gguf", "--json")
    assert json.loads(result.stdout)["layout"] == "tail"
    assert (tmp_path / "c.gguf").read_bytes() == finished
    facts = json.loads(run("detach", tmp_path / "c.gguf", "--json").stdout)
    assert (facts["bytes"], facts["was_interrupted"]) == (len(before), False)
    assert (tmp_path / "c.gguf").read_bytes() == before


def test_the_verbs_say_what_is_wrong(base: Path, halves: tuple[Path, Path]) -> None:
    result = run("attach", base, "--heads", halves[1])
    assert (result.exit_code, "give --in-place or -o OUTPUT" in result.stderr) == (2, True)
    result = run("detach", base)
    expected = f"error: {base}: has no heads in a tail (split takes apart what convert merged)\n"
    assert (result.exit_code, result.stderr) == (2, expected)


def test_stock_llama_cpp_loads_the_plain_base(merged_f32: Path, tmp_path: Path) -> None:
    base, heads = tmp_path / "b.gguf", tmp_path / "h.gguf"
    split(merged_f32, base, heads)
    both = tmp_path / "tail.gguf"
    convert(base, heads, both, layout="tail")
    stock = programs("stock")
    draft = ("-md", heads, "--spec-type", "draft-mtp")
    plain, tail = (
        speculative_simple(stock, "-m", file, *draft, prompt="def f(", n_predict=24)
        for file in (base, both)
    )
    assert tail.text == plain.text
    assert tail.figure("n_accept") == plain.figure("n_accept") > 0


VALIDATE = ("--n-prompts", "2", "--n-predict", "24", "--threads", "1", "--json")


def validate(variant: str, *arguments: object) -> dict[str, Any]:
    """`gguf-mtp validate` on one of the built libraries, in a process of its own."""
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("llama-cpp-python is not installed")
    environ = os.environ | {"LLAMA_CPP_LIB_PATH": str(programs(variant))}
    command = [sys.executable, "-m", "gguf_mtp.cli.main", "validate", *map(str, arguments)]
    done = subprocess.run([*command, *VALIDATE], env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.mark.parametrize("variant", ["stock", "exact"])
def test_any_library_runs_mtp_from_the_one_file(
    merged_f32: Path, tmp_path: Path, variant: str
) -> None:
    base, heads, both = (tmp_path / f"{name}.gguf" for name in ("b", "h", "tail"))
    split(merged_f32, base, heads)
    convert(base, heads, both, layout="tail")
    one = validate(variant, both, "--against", base)
    two = validate(variant, base, "--heads", heads)
    drafted, expected = (
        {name: value for name, value in report["acceptance"].items() if "seconds" not in name}
        for report in (one, two)
    )
    assert drafted == expected
    assert drafted["rounds"] > 0
