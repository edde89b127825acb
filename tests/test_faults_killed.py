"""Every writing verb, killed, failing or interrupted at each of its steps: what it writes is
absent, old or completely new, and its inputs are as they were."""

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from fault_cases import CASES, Bench, Case, Inputs, make_inputs, read_files
from faults import STEPS, Action, Call, FaultServer, Kind

# All of these are tried, and a few of the writes, which are many and alike.
DECISIVE = STEPS & ~Kind.WRITE
ONE_LINE = re.compile(r"error: [^\n]+\n")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultServer]:
    with FaultServer(tmp_path_factory.mktemp("faults")) as started:
        yield started


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inputs]:
    root = tmp_path_factory.mktemp("inputs")
    made = make_inputs(root)
    before = read_files(root)
    yield made
    assert read_files(root) == before


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def bench(
    request: pytest.FixtureRequest,
    server: FaultServer,
    inputs: Inputs,
    tmp_path_factory: pytest.TempPathFactory,
) -> Bench:
    return Bench(server, request.param, inputs, tmp_path_factory.mktemp("bench"))


@pytest.mark.parametrize("old", [False, True], ids=["nothing-there", "old-there"])
def test_killed_before_any_step(bench: Bench, old: bool) -> None:
    clean = bench.clean
    if not old:
        bench.reset(old=False)
        clean = bench.run()
        assert bench.check(killed=False) == bench.new
    for at in clean.numbers(STEPS, 4 if old else 1, DECISIVE if old else Kind.RENAME):
        bench.reset(old=old)
        run = bench.run(action=Action.KILL, at=at)
        assert run.code == -signal.SIGKILL
        bench.check(killed=True)
    # Whatever the last one has left, the next run is not in its way.
    assert bench.run().code == 0
    assert bench.check(killed=True) == bench.new


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        (Kind.CREATE, errno.EACCES),
        (Kind.WRITE, errno.ENOSPC),
        (Kind.TRUNCATE, errno.ENOSPC),
        (Kind.SYNC, errno.EIO),
        (Kind.RENAME, errno.EIO),
        (Kind.CLOSE, errno.EIO),
    ],
    ids=lambda value: (value.name or "").lower() if isinstance(value, Kind) else "",
)
def test_a_call_fails(bench: Bench, kind: Kind, number: int) -> None:
    for at in bench.clean.numbers(kind, 2):
        bench.reset(old=True)
        run = bench.run(action=Action.FAIL, kinds=kind, at=at, argument=number)
        files = bench.check(killed=False)
        place = [place for place, call in enumerate(run.calls) if call.kind & kind][at - 1]
        before, broken = run.calls[:place], run.calls[place]
        if kind is Kind.CLOSE and not was_written(before, broken.path):
            assert run.code == 0, broken  # what was read was read
            continue
        assert run.code == 2, (broken, run.stderr)
        assert ONE_LINE.fullmatch(run.stderr), run.stderr
        assert broken.path.name in run.stderr or bench.out.name in run.stderr
        begun = any(call.kind & (Kind.RENAME | Kind.UNLINK) for call in before)
        assert begun or files == bench.old


def was_written(before: Sequence[Call], path: Path) -> bool:
    """Whether a descriptor of `path` that is now closed was one to write with."""
    of_path = [call.name for call in before if call.path == path]
    return bool(of_path) and of_path[-1] == "fsync"


def test_a_disk_that_stays_full(bench: Bench) -> None:
    bench.reset(old=True)
    at = bench.clean.count(Kind.WRITE) // 2
    run = bench.run(action=Action.FAIL_ON, kinds=Kind.WRITE, at=at + 1, argument=errno.ENOSPC)
    assert run.code == 2
    assert re.fullmatch(
        r"error: \S+: write failed at offset \d+: disk full \(\d+ bytes free\)\n", run.stderr
    )
    assert bench.check(killed=False) == bench.old


def test_reading_fails(bench: Bench) -> None:
    for at in bench.clean.numbers(Kind.READ, 3):
        bench.reset(old=True)
        run = bench.run(action=Action.FAIL, kinds=Kind.READ, at=at, argument=errno.EIO)
        assert run.code == 2, run.stderr
        assert ONE_LINE.fullmatch(run.stderr), run.stderr
        broken = [call for call in run.calls if call.kind & Kind.READ][at - 1]
        assert str(broken.path) in run.stderr or bench.out.name in run.stderr
        assert "Input/output error" in run.stderr
        assert bench.check(killed=False) == bench.old


@pytest.mark.parametrize("action", [Action.SHORT, Action.FAIL])
def test_short_and_interrupted_calls_are_continued(bench: Bench, action: Action) -> None:
    """Half a transfer, or EINTR, at calls of every kind that may come back early."""
    argument = {Action.SHORT: 7, Action.FAIL: errno.EINTR}[action]
    for kind in (Kind.WRITE, Kind.READ, *([Kind.SYNC] if action is Action.FAIL else [])):
        for at in bench.clean.numbers(kind, 1):
            bench.reset(old=False)
            run = bench.run(action=action, kinds=kind, at=at, argument=argument)
            assert (run.code, run.stderr) == (0, "")
            assert bench.check(killed=False) == bench.new


def test_killed_in_the_middle_of_a_write(bench: Bench) -> None:
    for at in bench.clean.numbers(Kind.WRITE, 2):
        bench.reset(old=True)
        run = bench.run(action=Action.SHORT_KILL, kinds=Kind.WRITE, at=at, argument=3)
        assert run.code == -signal.SIGKILL
        assert bench.check(killed=True) == bench.old


def test_a_signal_at_any_step(bench: Bench) -> None:
    kinds = STEPS | Kind.READ | Kind.CLOSE
    endings = (
        (signal.SIGTERM, "terminated"),
        (signal.SIGINT, "interrupted"),
        (signal.SIGHUP, "hung up"),
    )
    points = bench.clean.numbers(kinds, 4, Kind.RENAME | Kind.TRUNCATE)
    for turn, at in enumerate(points):
        number, text = endings[turn % 3]
        bench.reset(old=True)
        run = bench.run(action=Action.SIGNAL, kinds=kinds, at=at, argument=number)
        assert (run.code, run.stderr) == (128 + number, f"error: {text}\n")
        bench.check(killed=False)


def test_a_second_ctrl_c_while_cleaning_up(bench: Bench) -> None:
    """And a third, and so on: one at each call from some step on."""
    kinds = STEPS | Kind.READ | Kind.CLOSE
    for at in bench.clean.numbers(kinds, 4):
        bench.reset(old=True)
        run = bench.run(action=Action.SIGNAL_ON, kinds=kinds, at=at, argument=signal.SIGINT)
        assert (run.code, run.stderr) == (130, "error: interrupted\n")
        bench.check(killed=False)


@pytest.mark.parametrize("old", [False, True], ids=["nothing-there", "old-there"])
def test_synced_named_synced(bench: Bench, old: bool) -> None:
    """As a power cut needs it: bytes on the medium before the name, the name before success."""
    bench.reset(old=old)
    calls = bench.run().calls
    require_order(calls, len(bench.new), {bench.out / mark for mark in bench.case.marks}, old=old)


def require_order(calls: Sequence[Call], n_files: int, marks: set[Path], *, old: bool) -> None:
    renames = [at for at, call in enumerate(calls) if call.kind & Kind.RENAME]
    # The last time.
    synced = {call.path: at for at, call in enumerate(calls) if call.name == "fsync"}
    temps = {call.path for call in calls if call.name == "create"}
    assert len(renames) == len(temps) == n_files
    for temp in temps:
        written = max(
            at for at, call in enumerate(calls) if call.path == temp and call.kind & STEPS
        )
        assert calls[written].name == "fsync"
        assert written < min(renames), "a file has its name before all are whole"
    for at in renames:
        assert synced[calls[at].path.parent] > at
    # What vouches for others goes first and comes last, with a sync of the directory between.
    for path in marks:
        named = next(at for at in renames if calls[at].path == path)
        others = [at for at in renames if calls[at].path != path]
        between = [at for at, call in enumerate(calls) if call.path == path.parent]
        assert max(others) < max(at for at in between if at < named) < named
        if old:
            gone = [
                at for at, call in enumerate(calls) if (call.name, call.path) == ("unlink", path)
            ]
            assert len(gone) == 1
            assert gone[0] < next(step for step in between if step > gone[0]) < min(others)


def strace_works(tmp_path: Path) -> bool:
    command = ["strace", "-o", str(tmp_path / "probe"), "true"]
    return shutil.which("strace") is not None and not subprocess.run(command).returncode


# Everything that changes files, by the names that Linux has for it.
TRACED = (
    "open,openat,creat,write,pwrite64,writev,pwritev,pwritev2,ftruncate,fallocate,fsync,"
    "fdatasync,sync_file_range,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir,"
    "copy_file_range,sendfile,link,linkat,mmap,io_uring_setup"
)
NAMES = {
    "openat": "create",
    "pwrite64": "write",
    "renameat2": "rename",
    "unlinkat": "unlink",
    "mkdirat": "mkdir",
}


def traced_calls(log: Path, out: Path) -> list[Call]:
    """What strace saw of changes below `out`: a rename by its new name, as the shim has it."""
    calls = []
    for line in log.read_text().splitlines():
        name = re.sub(r"^\d+ +", "", line).split("(")[0]
        assert name != "io_uring_setup"
        paths = re.findall(rf'[<"]({re.escape(str(out))}[^>"]*)[>"]', line)
        if not paths or "resumed" in line or (name.startswith("open") and "O_CREAT" not in line):
            continue
        if name == "mmap":
            assert "PROT_WRITE" not in line
            continue
        calls.append(Call(NAMES.get(name, name), -1, 0, Path(paths["rename" in name])))
    return calls


@pytest.mark.parametrize("case", CASES[:4:2], ids=lambda case: case.name)
def test_the_kernel_sees_that_order(case: Case, inputs: Inputs, tmp_path: Path) -> None:
    """The same verb under strace: what the kernel is asked for keeps the promise, and is what the
    shim counts."""
    if not strace_works(tmp_path):
        pytest.skip("strace is not installed, or may not trace")
    out, log = tmp_path / "out", tmp_path / "strace"
    out.mkdir()
    # fmt: off
    command = ["strace", "-f", "-y", "-qq", "-s", "0", "-o", str(log), "-e", f"trace={TRACED}",
               sys.executable, "-m", "gguf_mtp.cli.main", *case.command(inputs, out)]
    # fmt: on
    environ = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run(command, check=True, env=environ, stdout=subprocess.DEVNULL)
    seen = traced_calls(log, out)
    marks = {out / mark for mark in case.marks}
    require_order(seen, len(read_files(out)), marks, old=False)
    with FaultServer(tmp_path) as server:
        shutil.rmtree(out)
        out.mkdir()
        run = server.run(case.command(inputs, out), out)
    changes = Counter(call.name for call in seen)
    assert changes == Counter(call.name for call in run.calls if call.kind & STEPS)
