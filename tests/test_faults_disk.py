"""Real disks that are full or read-only, real limits, and outputs that are no files: what a verb
would have written is not there, what was there is, and one line says why."""

import errno
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from fault_cases import CASES, Bench, Inputs, make_inputs
from fault_disk import SmallDisk
from faults import Action, Kind
from gguf_mtp.cli.main import main
from test_faults_killed import ONE_LINE

DISK_BYTES = 8 << 20


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallDisk]:
    with SmallDisk(tmp_path_factory.mktemp("faults"), DISK_BYTES) as started:
        yield started


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def bench(request: pytest.FixtureRequest, disk: SmallDisk, inputs: Inputs) -> Iterator[Bench]:
    """A verb whose output directory is on the small disk."""
    place = disk.root / request.param.name
    place.mkdir()
    yield Bench(disk, request.param, inputs, place)
    shutil.rmtree(place)


@pytest.fixture
def on_disk(bench: Bench) -> Bench:
    """The same, with older files there."""
    bench.reset(old=True)
    return bench


def test_a_disk_that_is_too_small(on_disk: Bench, disk: SmallDisk) -> None:
    filler = disk.leave(4 * 4096)
    run = on_disk.run()
    assert run.code == 2
    said = re.fullmatch(
        r"error: \S+: needs (\d+) bytes, (\d+) are free on its file system\n", run.stderr
    )
    assert said is not None, run.stderr
    assert int(said[1]) > int(said[2]) == 4 * 4096
    assert [call for call in run.calls if call.kind & Kind.WRITE] == []
    assert on_disk.check(killed=False) == on_disk.old
    filler.unlink()
    assert on_disk.run().code == 0
    assert on_disk.check(killed=False) == on_disk.new


def test_a_disk_that_fills_up(on_disk: Bench, disk: SmallDisk) -> None:
    """Somebody else takes the room, before the first write or behind half of them."""
    victim = disk.root / "somebody"
    n_writes = on_disk.clean.count(Kind.WRITE)
    for at in {1, (n_writes + 1) // 2}:
        on_disk.reset(old=True)
        run = on_disk.run(action=Action.FILL, kinds=Kind.WRITE, at=at, victim=victim)
        assert run.code == 2, run.stderr
        assert re.fullmatch(
            r"error: \S+: write failed at offset \d+: disk full \(\d+ bytes free\)\n", run.stderr
        )
        assert on_disk.check(killed=False) == on_disk.old
        victim.unlink()


def test_a_disk_that_is_read_only(on_disk: Bench, disk: SmallDisk) -> None:
    disk.remount("ro")
    try:
        run = on_disk.run()
    finally:
        disk.remount("rw")
    assert run.code == 2
    assert ONE_LINE.fullmatch(run.stderr), run.stderr
    assert "is not writable" in run.stderr or "Read-only file system" in run.stderr
    assert on_disk.check(killed=False) == on_disk.old


def test_a_directory_that_is_read_only(on_disk: Bench) -> None:
    directories = [on_disk.out, *(path for path in on_disk.out.rglob("*") if path.is_dir())]
    for directory in directories:
        directory.chmod(0o555)
    run = on_disk.run(drop_override=True)
    for directory in directories:
        directory.chmod(0o755)
    assert run.code == 2
    assert ONE_LINE.fullmatch(run.stderr), run.stderr
    assert "is not writable" in run.stderr
    assert on_disk.check(killed=False) == on_disk.old


def test_a_limit_of_file_size(on_disk: Bench) -> None:
    largest = max(map(len, on_disk.new.values()))
    for limit in (largest - 1, 5000):
        run = on_disk.run(limits={"RLIMIT_FSIZE": limit})
        assert run.code == 2
        assert ONE_LINE.fullmatch(run.stderr), run.stderr
        assert os.strerror(errno.EFBIG) in run.stderr
        assert on_disk.check(killed=False) == on_disk.old


class InPlace:
    """The base on the small disk, to attach heads to, or with heads, to detach them."""

    def __init__(self, disk: SmallDisk, inputs: Inputs) -> None:
        self.inputs = inputs
        self.file = disk.root / "base.gguf"
        self.attach = ["attach", self.file, "--heads", inputs.heads, "--in-place", "-q"]
        self.detach = ["detach", self.file, "-q"]

    def holds(self, content: Path) -> bool:
        return self.file.read_bytes() == content.read_bytes()


@pytest.fixture
def in_place(disk: SmallDisk, inputs: Inputs) -> Iterator[InPlace]:
    place = InPlace(disk, inputs)
    shutil.copyfile(inputs.base, place.file)
    yield place
    for path in disk.root.iterdir():
        if path.is_file():
            path.unlink()


def test_attaching_to_a_disk_that_is_too_small(in_place: InPlace, disk: SmallDisk) -> None:
    disk.leave(4 * 4096)
    run = disk.run(in_place.attach, disk.root)
    assert run.code == 2
    assert re.fullmatch(r"error: \S+: needs \d+ bytes more, 16384 are free\n", run.stderr)
    assert in_place.holds(in_place.inputs.base)


def test_attaching_to_a_disk_that_fills_up(in_place: InPlace, disk: SmallDisk) -> None:
    clean = disk.run(in_place.attach, disk.root)
    assert clean.code == 0
    victim = disk.root / "somebody"
    # The last one goes into a page that is there.
    for at in clean.numbers(Kind.WRITE, 3)[:-1]:
        shutil.copyfile(in_place.inputs.base, in_place.file)
        run = disk.run(in_place.attach, disk.root, Action.FILL, Kind.WRITE, at=at, victim=victim)
        assert run.code == 2, (at, run.stderr)
        assert re.fullmatch(r"error: \S+: write failed at .*: disk full \(.*\)\n", run.stderr)
        assert in_place.holds(in_place.inputs.base)
        victim.unlink()


def test_attaching_and_detaching_on_a_disk_that_is_read_only(
    in_place: InPlace, disk: SmallDisk
) -> None:
    for content, command in (
        (in_place.inputs.base, in_place.attach),
        (in_place.inputs.tail, in_place.detach),
    ):
        shutil.copyfile(content, in_place.file)
        disk.remount("ro")
        try:
            run = disk.run(command, disk.root)
        finally:
            disk.remount("rw")
        assert run.code == 2
        assert re.fullmatch(r"error: \S+: cannot be changed: Read-only file system\n", run.stderr)
        assert in_place.holds(content)


def test_attaching_under_a_limit_of_file_size(in_place: InPlace, disk: SmallDisk) -> None:
    base, tail = in_place.inputs.base, in_place.inputs.tail
    for limit in (base.stat().st_size + 1, tail.stat().st_size - 1):
        run = disk.run(in_place.attach, disk.root, limits={"RLIMIT_FSIZE": limit})
        assert run.code == 2
        assert ONE_LINE.fullmatch(run.stderr), run.stderr
        assert os.strerror(errno.EFBIG) in run.stderr
        assert in_place.holds(base)


# Verb -> its words for an output. `split` and `convert` take a directory for "in there".
WRITERS = {
    "convert": "convert --base {base} --heads {heads} --force -o {out}",
    "convert-tail": "convert --base {base} --heads {heads} --force --layout tail -o {out}",
    "attach": "attach {base} --heads {heads} --force -o {out}",
    "attach-in-place": "attach {out} --heads {heads} --in-place",
    "detach": "detach {tail} --force -o {out}",
    "detach-in-place": "detach {out}",
    "split-base": "split {merged} --force --base-out {out}",
    "split-heads": "split {merged} --force --heads-out {out}",
    "extract": "extract {package} --force -o {out}",
    "card": "card {merged} --force -o {out}",
    "validate": "validate {merged} --output {out}",
    "validate-page": "validate {merged} --html {out}",
    "bench": "bench {merged} --output {out}",
}
TAKES_A_DIRECTORY = ("convert", "convert-tail", "split-base", "split-heads", "extract")
ODD: dict[str, Callable[[Path], object]] = {
    "null": lambda path: path.symlink_to("/dev/null"),
    "full": lambda path: path.symlink_to("/dev/full"),
    "fifo": os.mkfifo,
    "directory": Path.mkdir,
    "dangling": lambda path: path.symlink_to("nowhere"),
    "loop": lambda path: path.symlink_to(path.name),
    "link-to-a-directory": lambda path: path.symlink_to("."),
    "behind-a-file": lambda path: path.parent.joinpath("f").touch(),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("verb", WRITERS)
def test_an_output_that_is_no_file(inputs: Inputs, tmp_path: Path, verb: str, kind: str) -> None:
    if verb in TAKES_A_DIRECTORY and "directory" in kind:
        return
    out = tmp_path / "o.gguf"
    ODD[kind](out)
    if kind == "behind-a-file":
        out = tmp_path / "f" / "o.gguf"
    values = {name: str(path) for name, path in vars(inputs).items()}
    before = sorted((path.name, path.lstat().st_mode) for path in tmp_path.iterdir())
    result = CliRunner().invoke(main, WRITERS[verb].format(**values, out=out).split())
    assert (result.exit_code, result.stdout) == (2, ""), result
    assert ONE_LINE.fullmatch(result.stderr), result.stderr
    assert str(out) in result.stderr
    assert sorted((path.name, path.lstat().st_mode) for path in tmp_path.iterdir()) == before
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize("words", ["inspect {merged}", "inspect {merged} --json", "card {merged}"])
def test_a_stdout_that_is_full(inputs: Inputs, words: str) -> None:
    values = {name: str(path) for name, path in vars(inputs).items()}
    command = [sys.executable, "-m", "gguf_mtp.cli.main", *words.format(**values).split()]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (2, "error: stdout: No space left on device\n")
